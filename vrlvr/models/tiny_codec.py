"""The exact codec of tiny runs: space-to-depth onto a fixed whitened basis, reconstruction error 0 on our renderings.

A board cell of 4x4 pixels is drawn in two tones (see vrlvr.puzzles.board), so a group of four frames of a cell lives in
4 frames x 2 tones x 3 colours = 24 dimensions. The latent channels are the directions among them in which planners' videos
vary at all, whitened: of unit variance, the scale of the diffusion noise (unwhitened latents were found not to train).
Like the Wan VAE it codes the first frame alone (as if it stood still for a group) and then groups of four.
"""

import numpy as np
import torch
from torch import Tensor

from vrlvr.errors import UserError
from vrlvr.puzzles.board import MIN_CELL_PX, core_mask, layout

GROUP = 4
TONES = GROUP * 2 * 3  # raw dimensions of a cell of a group
_NEUTRAL = 127.5


def check_board(task: str, rows: int, cols: int, height: int, width: int) -> None:
    """Raises UserError unless a board of rows x cols is drawn in cells of 4x4 pixels that fall on the codec's."""
    fits = min(height // rows, width // cols) == MIN_CELL_PX and height % MIN_CELL_PX == width % MIN_CELL_PX == 0
    place = layout(rows, cols, height, width) if fits else None
    if place is None or place.top % MIN_CELL_PX or place.left % MIN_CELL_PX:
        raise UserError(
            f"data.height={height}, data.width={width} do not give the {rows}x{cols} board of {task} cells of "
            f"{MIN_CELL_PX}x{MIN_CELL_PX} pixels, all that the tiny codec codes; use data.height={rows * MIN_CELL_PX}, "
            f"data.width={cols * MIN_CELL_PX}"
        )


class TinyCodec:
    """B videos, T = 1 + 4k frames, R x K cells of 4x4 pixels; latents have C channels, F = k frames, H, W = R, K."""

    def __init__(self, mean_T: Tensor, basis_TC: Tensor, std_C: Tensor):
        """From `fit` or a checkpoint. mean_T: of the 24 raw dimensions. basis_TC: orthonormal directions. std_C: along them."""
        self.mean_T, self.basis_TC, self.std_C = mean_T.double(), basis_TC.double(), std_C.double()
        self.latent_channels = len(std_C)
        core = torch.from_numpy(core_mask(MIN_CELL_PX)).double()
        self._average = torch.stack([(1 - core) / (1 - core).sum(), core / core.sum()])  # (2, 4, 4)
        self._core = core.bool()

    @classmethod
    def fit(cls, videos: np.ndarray) -> "TinyCodec":
        """Principal directions and their deviations over videos_BTYXC uint8; directions without variance are left out.

        What first frames alone show, as a player's start in videos that begin with its first move, adds directions.
        Raises UserError if the videos are not coded exactly, as boards drawn in other cells than 4x4 pixels are not.
        """
        plain = cls(torch.zeros(TONES), torch.eye(TONES), torch.ones(TONES))
        groups, first = (
            latents.double().movedim(1, -1).reshape(-1, TONES)
            for latents in (plain.encode(videos), plain.encode_first(videos[:, 0]))
        )
        mean_T = groups.mean(0)
        basis_TC, std_C = _principal(groups.T.cov())
        rest = first - mean_T
        rest = rest - rest @ basis_TC @ basis_TC.T
        more_TC, more_std_C = _principal(rest.T @ rest / len(rest), at_least=1e-9 * std_C[-1].item() ** 2)
        codec = cls(mean_T, torch.cat((basis_TC, more_TC), 1), torch.cat((std_C, more_std_C)))
        if not np.array_equal(codec.decode(codec.encode_first(videos[:, 0]), codec.encode(videos)), videos):
            raise UserError(
                f"videos of {videos.shape[2]}x{videos.shape[3]} pixels are not coded exactly by the tiny codec; draw the "
                f"boards in cells of {MIN_CELL_PX}x{MIN_CELL_PX} pixels, on a multiple of that"
            )
        return codec

    def state_dict(self) -> dict[str, Tensor]:
        return {"mean": self.mean_T, "basis": self.basis_TC, "std": self.std_C}

    @classmethod
    def from_state_dict(cls, state: dict[str, Tensor]) -> "TinyCodec":
        return cls(state["mean"], state["basis"], state["std"])

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(C, F, H, W) of the generated latents, the first frame's excluded. Raises UserError if the sizes do not fit."""
        if num_frames % GROUP != 1 or num_frames == 1:
            raise UserError(f"num_frames={num_frames} must be 1 + 4k; use {1 + GROUP * max(1, num_frames // GROUP)}")
        if height % MIN_CELL_PX or width % MIN_CELL_PX:
            raise UserError(f"height={height}, width={width} must be multiples of {MIN_CELL_PX} for the tiny codec")
        return self.latent_channels, num_frames // GROUP, height // MIN_CELL_PX, width // MIN_CELL_PX

    def encode(self, video_BTYXC: np.ndarray) -> Tensor:
        """uint8 videos -> float32 latents_BCFHW of the frames after the first."""
        b, t, y, x, _ = video_BTYXC.shape
        _, f, h, w = self.latent_shape(t, y, x)
        pixels = torch.from_numpy(video_BTYXC[:, 1:]).double() - _NEUTRAL
        cells = pixels.view(b, f, GROUP, h, MIN_CELL_PX, w, MIN_CELL_PX, 3)
        tones = torch.einsum("bfghpwqc,npq->bfhwgnc", cells, self._average).reshape(b, f, h, w, TONES)
        return ((tones - self.mean_T) @ self.basis_TC / self.std_C).float().movedim(-1, 1).contiguous()

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
        tones = (
            ((latents * self.std_C) @ self.basis_TC.T + (self.mean_T + _NEUTRAL)).round().clamp(0, 255).to(torch.uint8)
        )
        tones = tones.view(b, f, h, w, GROUP, 2, 3).permute(5, 0, 1, 4, 2, 3, 6)  # (2, B, F, group, H, W, 3)
        rim, core = (tone.reshape(b, f * GROUP, h, 1, w, 1, 3) for tone in tones)
        mask = self._core[:, None, :, None]
        return torch.where(mask, core, rim).reshape(b, f * GROUP, h * MIN_CELL_PX, w * MIN_CELL_PX, 3).numpy()


def _principal(covariance_TT: Tensor, at_least: float = 0.0) -> tuple[Tensor, Tensor]:
    """Orthonormal directions (T, C) with a variance worth the name, above at_least, and their deviations (C), ascending."""
    values, vectors = torch.linalg.eigh(covariance_TT)
    kept = values > max(at_least, 1e-9 * values[-1].item())
    basis_TC = vectors[:, kept]
    strongest = basis_TC.abs().argmax(0)
    signs = basis_TC[strongest, torch.arange(basis_TC.shape[1])].sign()  # eigenvectors have no own sign
    return basis_TC * signs, values[kept].sqrt()
