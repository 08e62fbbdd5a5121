"""VideoRLVR: reinforcement learning of video diffusion models from verifiable rewards."""

__version__ = "0.1.0"
