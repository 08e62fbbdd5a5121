"""The exact codec of tiny runs: space-to-depth onto a fixed whitened basis, reconstruction error 0 on our renderings.

A board cell of 4x4 pixels is drawn in two tones (see vrlvr.puzzles.board), so a group of four frames of a cell lives in
4 frames x 2 tones x 3 colours = 24 dimensions, which are the latent channels. Like the Wan VAE it codes the first frame
alone (as if it stood still for a group) and then groups of four. Whitening makes the channels of unit variance, the scale of
the diffusion noise; unwhitened latents were found not to train.
"""

import numpy as np
import torch
from torch import Tensor

from vrlvr.errors import UserError
from vrlvr.puzzles.board import MIN_CELL_PX, core_mask

GROUP = 4
CHANNELS = GROUP * 2 * 3
_NEUTRAL = 127.5


class TinyCodec:
    """B videos, T = 1 + 4k frames, R x K cells of 4x4 pixels; latents have C = 24 channels, F = k frames, H, W = R, K."""

    latent_channels = CHANNELS

    def __init__(self, mean_C: Tensor, whiten_CC: Tensor):
        """mean_C, whiten_CC: float64, from `fit` or a checkpoint."""
        self.mean_C, self.whiten_CC = mean_C.double(), whiten_CC.double()
        self.unwhiten_CC = torch.linalg.inv(self.whiten_CC)
        core = torch.from_numpy(core_mask(MIN_CELL_PX)).double()
        self._average = torch.stack([(1 - core) / (1 - core).sum(), core / core.sum()])  # (2, 4, 4)
        self._core = core.bool()

    @classmethod
    def fit(cls, videos: np.ndarray) -> "TinyCodec":
        """Whitens (ZCA: symmetric, hence without arbitrary signs) by the moments of videos_BTYXC uint8, 1 + 4k frames."""
        plain = cls(torch.zeros(CHANNELS), torch.eye(CHANNELS))
        rows = plain.encode(videos).double().movedim(1, -1).reshape(-1, CHANNELS)
        values, vectors = torch.linalg.eigh(rows.T.cov())
        if values[0] <= 1e-6 * values[-1]:
            raise UserError(
                f"the sample of {len(videos)} videos does not span the codec's {CHANNELS} dimensions; "
                "fit it on more videos that move, of every task"
            )
        return cls(rows.mean(0), vectors @ torch.diag(values.rsqrt()) @ vectors.T)

    def state_dict(self) -> dict[str, Tensor]:
        return {"mean": self.mean_C, "whiten": self.whiten_CC}

    @classmethod
    def from_state_dict(cls, state: dict[str, Tensor]) -> "TinyCodec":
        return cls(state["mean"], state["whiten"])

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(C, F, H, W) of the generated latents, the first frame's excluded. Raises UserError if the sizes do not fit."""
        if num_frames % GROUP != 1 or num_frames == 1:
            raise UserError(f"num_frames={num_frames} must be 1 + 4k; use {num_frames // GROUP * GROUP + 1 or 5}")
        if height % MIN_CELL_PX or width % MIN_CELL_PX:
            raise UserError(f"height={height}, width={width} must be multiples of {MIN_CELL_PX} for the tiny codec")
        return CHANNELS, num_frames // GROUP, height // MIN_CELL_PX, width // MIN_CELL_PX

    def encode(self, video_BTYXC: np.ndarray) -> Tensor:
        """uint8 videos -> float32 latents_BCFHW of the frames after the first."""
        b, t, y, x, _ = video_BTYXC.shape
        _, f, h, w = self.latent_shape(t, y, x)
        pixels = torch.from_numpy(video_BTYXC[:, 1:]).double() - _NEUTRAL
        cells = pixels.view(b, f, GROUP, h, MIN_CELL_PX, w, MIN_CELL_PX, 3)
        tones = torch.einsum("bfghpwqc,npq->bfhwgnc", cells, self._average).reshape(b, f, h, w, CHANNELS)
        return ((tones - self.mean_C) @ self.whiten_CC).float().movedim(-1, 1).contiguous()

    def encode_first(self, frames_BYXC: np.ndarray) -> Tensor:
        """uint8 first frames -> float32 first_latents_BC1HW: the latents of a group in which the frame stands still."""
        return self.encode(np.repeat(frames_BYXC[:, None], 1 + GROUP, axis=1))

    def decode(self, first_latents_BC1HW: Tensor, latents_BCFHW: Tensor) -> np.ndarray:
        """Latents -> uint8 video_BTYXC."""
        first_BTYXC = self._paint(first_latents_BC1HW)[:, :1]
        return np.concatenate([first_BTYXC, self._paint(latents_BCFHW)], axis=1)

    def _paint(self, latents_BCFHW: Tensor) -> np.ndarray:
        b, _, f, h, w = latents_BCFHW.shape
        latents = latents_BCFHW.detach().double().cpu().movedim(1, -1)
        tones = (latents @ self.unwhiten_CC + (self.mean_C + _NEUTRAL)).round().clamp(0, 255).to(torch.uint8)
        tones = tones.view(b, f, h, w, GROUP, 2, 3).permute(5, 0, 1, 4, 2, 3, 6)  # (2, B, F, group, H, W, 3)
        rim, core = (tone.reshape(b, f * GROUP, h, 1, w, 1, 3) for tone in tones)
        mask = self._core[:, None, :, None]
        return torch.where(mask, core, rim).reshape(b, f * GROUP, h * MIN_CELL_PX, w * MIN_CELL_PX, 3).numpy()
