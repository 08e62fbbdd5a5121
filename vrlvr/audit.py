"""Trust in the small reward decoder, earned anew in every update.

Where the two decoders' verdicts differ, the small frames mostly show a cell that is hard to read: the samples that are read
worst are judged by the full decode. A random share of each update's samples is decoded in full as well, and the two verdicts
are compared. Too many that differ, and the rest of the run decodes in full.

Shapes: B samples of this rank, C latent channels, F/H/W latent frames/rows/columns.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from vrlvr.distributed import World
from vrlvr.errors import UserError
from vrlvr.evaluation.metrics import Interval, wilson
from vrlvr.puzzles import Puzzle, read, verify_many
from vrlvr.puzzles.verdict import Verdict

AUDIT_STREAM = 4  # keeps its choices apart from other random numbers of the same seed and step


class Decoder(Protocol):
    """The decode side of a codec."""

    def decode(self, first_latents_BC1HW: Tensor, latents_BCFHW: Tensor) -> np.ndarray:
        """Latents of the first frame and of the generated ones -> uint8 video_BTYXC."""
        ...


@dataclass
class AuditConfig:
    """When the small decoder is trusted.

    doubtful: share of the samples, those whose worst cell is read worst, that the full decode judges; 0 is none.
    share: of every update's samples that is decoded in full too, at least one a rank; 0 audits none.
    threshold: disagreement above which the small decoder is no longer used, once the 95 % interval lies above it.
    window: audited samples, the newest, that count. tolerance: in a reward component, that still is agreement.
    Raises UserError for values outside their ranges.
    """

    doubtful: float = 0.05
    share: float = 0.02
    threshold: float = 0.01
    window: int = 1000
    tolerance: float = 0.05

    def __post_init__(self) -> None:
        for name in ("doubtful", "share", "threshold", "tolerance"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name}={getattr(self, name)} of the audit must lie in [0, 1]")
        if self.window < 1:
            raise UserError(f"window={self.window} of the audit must be at least 1; use for instance 1000")


def agree(a: Verdict, b: Verdict, tolerance: float) -> bool:
    """Whether two verdicts of one sample teach the same: both solved or neither, every component within tolerance."""
    return a.solved == b.solved and all(
        abs(a.components[name] - b.components[name]) <= tolerance for name in a.components
    )


def disagreement(outcomes: Sequence[bool]) -> tuple[float, Interval]:
    """The rate of True among outcomes, and Wilson's 95 % interval; without outcomes 0 and (0, 1)."""
    if not outcomes:
        return 0.0, (0.0, 1.0)
    rate = sum(outcomes) / len(outcomes)
    return rate, wilson(rate, len(outcomes))


def worst_cell(puzzle: Puzzle, video_TYXC: np.ndarray, size: tuple[int, int]) -> float:
    """The largest distance, in levels, of a cell in any frame from the look that it is read as. size: see AuditedDecoder."""
    return float(read(puzzle, video_TYXC, size)[1].max())


def doubtful(worst_B: Sequence[float], number: int) -> list[int]:
    """The `number` of samples whose worst cell is read worst."""
    return sorted(range(len(worst_B)), key=lambda i: -worst_B[i])[:number]


class AuditedDecoder:
    """Decodes by the small decoder while it is trusted, else in full. Ranks agree on it, since all see all outcomes.

    Its videos may be smaller than those that the boards were drawn in: verify them with `size`.
    """

    def __init__(
        self,
        small: Decoder,
        full: Decoder,
        size: tuple[int, int],
        config: AuditConfig,
        seed: int,
        world: World,
        say: Callable[[str], None],
    ) -> None:
        """size: height and width of the full videos. say: takes the line that tells of the end of trust."""
        self.small, self.full, self.size, self.config = small, full, size, config
        self.trusted = True
        self._seed, self._world, self._say = seed, world, say
        self._outcomes: deque[bool] = deque(maxlen=config.window)
        self._seen = self._settled = 0  # of this update's samples

    def decode(self, first_latents_BC1HW: Tensor, latents_BCFHW: Tensor) -> np.ndarray:
        """uint8 video_BTYXC, by the decoder in use."""
        return (self.small if self.trusted else self.full).decode(first_latents_BC1HW, latents_BCFHW)

    def settle(
        self,
        puzzles: Sequence[Puzzle],
        videos_BTYXC: np.ndarray,
        first_latents_BC1HW: Tensor,
        latents_BCFHW: Tensor,
        verdicts: Sequence[Verdict],
    ) -> list[Verdict]:
        """The verdicts, those of doubtful samples by the full decode. videos: what `decode` gave.

        May be called part by part: what is rounded up is the share of the update's samples so far.
        """
        settled = list(verdicts)
        if not self.trusted:
            return settled
        self._seen += len(puzzles)
        number = math.ceil(self.config.doubtful * self._seen) - self._settled
        if number:
            worst = [worst_cell(puzzle, video, self.size) for puzzle, video in zip(puzzles, videos_BTYXC, strict=True)]
            chosen = doubtful(worst, number)
            exact = self._in_full(chosen, puzzles, first_latents_BC1HW, latents_BCFHW)
            for i, verdict in zip(chosen, exact, strict=True):
                settled[i] = verdict
            self._settled += len(chosen)
        return settled

    def _in_full(
        self, chosen: list[int], puzzles: Sequence[Puzzle], first_latents_BC1HW: Tensor, latents_BCFHW: Tensor
    ) -> list[Verdict]:
        videos = self.full.decode(first_latents_BC1HW[chosen], latents_BCFHW[chosen])
        return verify_many([puzzles[i] for i in chosen], videos, self.size)

    def audit(
        self,
        update: int,
        puzzles: Sequence[Puzzle],
        first_latents_BC1HW: Tensor,
        latents_BCFHW: Tensor,
        verdicts: Sequence[Verdict],
    ) -> dict[str, float]:
        """Compares a share of the update's verdicts with those of the full decode. Every rank calls it once an update.

        verdicts: of the B samples, after `settle`. Returns what to log. Nothing is decoded once trust has ended.
        """
        if self.trusted and self.config.share > 0:
            mine = self._audited(update, len(puzzles))
            exact = self._in_full(mine, puzzles, first_latents_BC1HW, latents_BCFHW)
            differ = [not agree(verdicts[i], e, self.config.tolerance) for i, e in zip(mine, exact, strict=True)]
            self._record(update, [outcome for part in self._world.gather(differ) for outcome in part])
        self._seen = self._settled = 0
        rate, (low, high) = disagreement(self._outcomes)
        return {
            "decoder_disagreement": rate,
            "decoder_disagreement_low": low,
            "decoder_disagreement_high": high,
            "decoder_audited": float(len(self._outcomes)),
            "decoder_small_in_use": float(self.trusted),
        }

    def _audited(self, update: int, num_samples: int) -> list[int]:
        """The samples of this rank to decode in full: a function of seed, update and rank alone."""
        rng = np.random.default_rng(np.random.SeedSequence([self._seed, AUDIT_STREAM, update, self._world.rank]))
        number = math.ceil(self.config.share * num_samples)
        return sorted(rng.choice(num_samples, number, replace=False).tolist())

    def _record(self, update: int, outcomes: Sequence[bool]) -> None:
        self._outcomes.extend(outcomes)
        rate, (low, high) = disagreement(self._outcomes)
        if low > self.config.threshold:
            self.trusted = False
            self._say(
                f"update {update}: the small reward decoder's verdicts differ from the full decode's on {rate:.2%} of the "
                f"last {len(self._outcomes)} audited samples (95 % interval {low:.2%} to {high:.2%}), above the threshold of "
                f"{self.config.threshold:.2%}; the rest of the run decodes in full"
            )

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON values."""
        return {"trusted": self.trusted, "outcomes": list(self._outcomes)}

    def load_state(self, state: dict[str, Any]) -> None:
        """Goes on from a `state`."""
        self.trusted = state["trusted"]
        self._outcomes = deque(state["outcomes"], maxlen=self.config.window)
