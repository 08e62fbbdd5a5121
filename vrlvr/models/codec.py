"""What the trainer asks of a video codec. The tiny exact codec and the Wan VAE both give it."""

from typing import Protocol

import numpy as np
from torch import Tensor

from vrlvr.models.wan_decode import Window


class Decoder(Protocol):
    """The decode side of a codec."""

    def decode(self, first_latents_BC1HW: Tensor, latents_BCFHW: Tensor) -> np.ndarray:
        """Latents of the first frame and of the generated ones -> uint8 video_BTYXC."""
        ...


class WindowDecoder(Decoder, Protocol):
    """One that can show a part of the frames alone. pixels_per_latent: of a latent position's side."""

    pixels_per_latent: int

    def decode_window(self, first_latents_BC1HW: Tensor, latents_BCFHW: Tensor, window: Window) -> np.ndarray:
        """`decode` of the pixels of a window of latent positions; without generated latents, of the first frame's."""
        ...


class Codec(Decoder, Protocol):
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
