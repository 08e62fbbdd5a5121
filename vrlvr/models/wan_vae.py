"""The Wan video VAE as a codec, by diffusers: Wan2.1's (16 channels, 8x8 pixels), Wan2.2's (48 channels, 16x16 pixels).

The VAE is causal in time: frame 0 alone is latent frame 0, each further group of four frames is one more. The trainer
never generates latent frame 0 (the clean image): `encode` and `latent_shape` leave it out, it travels as first_latents.
Latents are the posterior's mode, normalised per channel by the config's latents_mean and latents_std.

Shapes: B videos, T/Y/X video frames/rows/columns, C latent channels, F/H/W latent frames/rows/columns.
"""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from vrlvr.errors import UserError
from vrlvr.models.wan_decode import WanDecoder, Window

FRAMES_PER_LATENT = 4  # diffusers' encoder reads its input in groups of four whatever the config
# Latent positions, of all videos and frames together, that pass the decoder at once: 4 frames of 480x832 behind Wan2.2's VAE.
# Its largest activation is then 512 channels of 16 frames of 240x416: 1.5 GiB in bfloat16, of which about 4 live at a time.
MAX_LATENTS = 6240


class WanVAECodec:
    """Videos of 1 + 4k frames to latents and back; computes where, and in the dtype in which, the VAE lives."""

    def __init__(self, vae: Any, max_latents: int = MAX_LATENTS) -> None:
        """vae: diffusers' AutoencoderKLWan, frozen from here on. max_latents: bounds the memory of a decode."""
        self.vae, self.max_latents = vae.eval().requires_grad_(False), max_latents
        config = vae.config
        self.latent_channels: int = config.z_dim
        self.pixels_per_latent: int = 2 ** (len(config.dim_mult) - 1) * (config.patch_size or 1)
        self._mean_C111 = torch.tensor(config.latents_mean, device=vae.device).view(-1, 1, 1, 1)
        self._std_C111 = torch.tensor(config.latents_std, device=vae.device).view(-1, 1, 1, 1)

    @classmethod
    def from_pretrained(
        cls, folder: Path, device: torch.device, dtype: torch.dtype = torch.float32, encodes: bool = True
    ) -> Self:
        """From the `vae` folder of a diffusers checkpoint (config.json and safetensors). It codes one video at a time,
        which at full size is what memory allows. encodes: False keeps the encoder's weights off the device. Raises UserError
        if the folder holds no such checkpoint, or a part of it."""
        if not (folder / "config.json").is_file():
            raise UserError(f"{folder} has no config.json; give the `vae` folder of a downloaded Wan model")
        from diffusers import AutoencoderKLWan  # costs seconds, so only those who use it pay

        try:
            vae, loaded = AutoencoderKLWan.from_pretrained(
                str(folder), torch_dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:  # shapes that differ, among others
            reason = " ".join(str(error).split())
            raise UserError(f"{folder} is no readable VAE ({reason}); download the model again") from error
        if loaded["missing_keys"]:  # diffusers would go on without them
            raise UserError(f"{folder} lacks {min(loaded['missing_keys'])}; download the model again")
        vae.enable_slicing()
        if not encodes:
            drop_encoder(vae)
        return cls(vae.to(device))

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(C, F, H, W) of the generated latents, without frame 0's. Raises UserError if the sizes do not fit."""
        group = FRAMES_PER_LATENT
        if num_frames % group != 1 or num_frames == 1:
            nearest = 1 + group * max(1, round((num_frames - 1) / group))
            raise UserError(f"num_frames={num_frames} must be 1 + 4k with k at least 1; use {nearest}")
        return self.latent_channels, num_frames // group, *self._latent_size(height, width)

    def _latent_size(self, height: int, width: int) -> tuple[int, int]:
        side = self.pixels_per_latent
        if height % side or width % side or not height or not width:
            nearest = [side * max(1, round(size / side)) for size in (height, width)]
            raise UserError(
                f"a video of {height}x{width} pixels must have a height and a width divisible by the VAE's {side}; "
                f"use {nearest[0]}x{nearest[1]}"
            )
        return height // side, width // side

    def encode(self, video_BTYXC: np.ndarray) -> Tensor:
        """uint8 RGB -> float32 latents_BCFHW, without latent frame 0. Raises UserError if the sizes do not fit."""
        self.latent_shape(*video_BTYXC.shape[1:4])
        return self._encode(video_BTYXC)[:, :, 1:]

    def encode_first(self, frames_BYXC: np.ndarray) -> Tensor:
        """uint8 RGB -> float32 first_latents_BC1HW. Raises UserError if the sizes do not fit."""
        self._latent_size(*frames_BYXC.shape[1:3])
        return self._encode(frames_BYXC[:, None])

    def _encode(self, video_BTYXC: np.ndarray) -> Tensor:
        return self.encode_pixels(torch.from_numpy(video_BTYXC).to(self.vae.device).movedim(-1, 1).float() / 127.5 - 1)

    @torch.no_grad()
    def encode_pixels(self, pixels_BCTYX: Tensor) -> Tensor:
        """RGB in [-1, 1] -> float32 latents_BCFHW, latent frame 0 included. The sizes must fit, see `latent_shape`."""
        latents_BCFHW = self.vae.encode(pixels_BCTYX.to(self.vae.dtype)).latent_dist.mode()
        return (latents_BCFHW.float() - self._mean_C111) / self._std_C111

    def decode(self, first_latents_BC1HW: Tensor, latents_BCFHW: Tensor, chunk_frames: int | None = None) -> np.ndarray:
        """Normalised latents -> uint8 RGB video_BTYXC, T = 1 + 4 F.

        chunk_frames: latent frames that pass the decoder at once; by default as many as max_latents allows, and then as
        many videos. The videos are the same to rounding.
        """
        return np.concatenate(
            [
                torch.cat([levels(p) for p in self.pixels(*batch, chunk_frames)], dim=1).cpu().numpy()
                for batch in self.batches(first_latents_BC1HW, latents_BCFHW, chunk_frames)
            ]
        )

    def decode_window(self, first_latents_BC1HW: Tensor, latents_BCFHW: Tensor, window: Window) -> np.ndarray:
        """`decode` of the pixels of a window of latent positions alone: uint8 RGB video_BTYXC. F may be 0: the first frame."""
        pixels = self.pixels(first_latents_BC1HW, latents_BCFHW, window=window)
        return torch.cat([levels(p) for p in pixels], dim=1).cpu().numpy()

    def batches(
        self, first_latents_BC1HW: Tensor, latents_BCFHW: Tensor, chunk_frames: int | None = None
    ) -> list[tuple[Tensor, Tensor]]:
        """The latents by as many videos as max_latents allows to pass at once."""
        positions = latents_BCFHW[0, 0, 0].numel() * (chunk_frames or self._chunk_frames(latents_BCFHW))
        videos = max(1, self.max_latents // positions)
        return list(zip(first_latents_BC1HW.split(videos), latents_BCFHW.split(videos), strict=True))

    def pixels(
        self,
        first_latents_BC1HW: Tensor,
        latents_BCFHW: Tensor,
        chunk_frames: int | None = None,
        window: Window | None = None,
    ) -> Iterator[Tensor]:
        """Normalised latents -> pixels_BCTYX in [-1, 1] in the VAE's dtype: of the first frame, then of chunk_frames latent
        frames at a time. All videos pass at once, see `batches`. window: of latent positions, by default all."""
        chunk = chunk_frames or self._chunk_frames(latents_BCFHW)
        latents = torch.cat((first_latents_BC1HW, latents_BCFHW), dim=2).to(self.vae.device, torch.float32)
        return self._decoder.chunks((latents * self._std_C111 + self._mean_C111).to(self.vae.dtype), chunk, window)

    def _chunk_frames(self, latents_BCFHW: Tensor) -> int:
        """As many latent frames of a video as max_latents allows."""
        _, _, frames, height, width = latents_BCFHW.shape
        return max(1, min(frames, self.max_latents // (height * width)))

    @cached_property
    def _decoder(self) -> WanDecoder:
        """Made when first used, since those who only encode need no copies of its weights."""
        return WanDecoder(self.vae)


def drop_encoder(vae: Any) -> None:
    """Leaves an AutoencoderKLWan that only decodes: of Wan2.2's 705 M parameters 555 M."""
    del vae.encoder, vae.quant_conv


def levels(pixels_BCTYX: Tensor) -> Tensor:
    """Pixels in [-1, 1] -> uint8 levels_BTYXC."""
    return ((pixels_BCTYX.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).movedim(1, -1)
