"""What the trainer asks of a video codec. The tiny exact codec and the Wan VAE both give it."""

from typing import Protocol

import numpy as np
from torch import Tensor


class Codec(Protocol):
    """B videos of T = 1 + 4k frames; C latent channels. Latents never hold the first frame, which travels beside them."""

    latent_channels: int

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(C, F, H, W) of the generated latents. Raises UserError if the sizes do not fit."""
        ...

    def encode(self, video_BTYXC: np.ndarray) -> Tensor:
        """uint8 videos -> float32 latents_BCFHW of the frames after the first."""
        ...

    def encode_first(self, frames_BYXC: np.ndarray) -> Tensor:
        """uint8 first frames -> float32 first_latents_BC1HW."""
        ...

    def decode(self, first_latents_BC1HW: Tensor, latents_BCFHW: Tensor) -> np.ndarray:
        """Latents of the first frame and of the generated ones -> uint8 video_BTYXC."""
        ...
