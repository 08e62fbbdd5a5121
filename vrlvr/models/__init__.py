"""The Wan diffusion transformer, the video codecs and the text encoders."""
