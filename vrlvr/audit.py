"""Trust in the small reward decoder, earned anew in every update.

Where the two decoders' verdicts differ, the small frames mostly show a cell that is hard to read: such cells are read anew off
the full decode, see vrlvr.reread. A random share of each update's samples is decoded in full, and the two verdicts are
compared. Too many that differ, and the rest of the run decodes in full.

Shapes: B samples of this rank, C latent channels, F/H/W latent frames/rows/columns.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from vrlvr.distributed import World
from vrlvr.errors import UserError
from vrlvr.evaluation.metrics import Interval, wilson
from vrlvr.models.codec import Decoder, WindowDecoder
from vrlvr.puzzles import Puzzle, Reading, verify_many
from vrlvr.puzzles.verdict import Verdict
from vrlvr.reread import doubtful_cells, reread

_MANY = 0.5  # of the samples, of which cells are read anew: more, and the small decoder may save little
AUDIT_STREAM = 4  # keeps its choices apart from other random numbers of the same seed and step


@dataclass
class AuditConfig:
    """When the small decoder is trusted.

    doubt: levels from its look beyond which a cell is read anew, off the full decode of a window around all such cells.
    share: of every update's samples that is decoded in full too, at least one a rank; 0 audits none.
    threshold: disagreement above which the small decoder is no longer used, once the 95 % interval lies above it.
    window: audited samples, the newest, that count. tolerance: in a reward component, that still is agreement.
    Raises UserError for values outside their ranges.
    """

    doubt: float = 20.0
    share: float = 0.02
    threshold: float = 0.01
    window: int = 1000
    tolerance: float = 0.05

    def __post_init__(self) -> None:
        for name in ("share", "threshold", "tolerance"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name}={getattr(self, name)} of the audit must lie in [0, 1]")
        if not self.doubt >= 0:
            raise UserError(f"doubt={self.doubt} of the audit must be at least 0 levels; use for instance 20")
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


class AuditedDecoder:
    """Decodes by the small decoder while it is trusted, else in full. Ranks agree on it, since all see all outcomes.

    Its videos may be smaller than those that the boards were drawn in: verify them with `size`.
    """

    def __init__(
        self,
        small: Decoder,
        full: WindowDecoder,
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
        self._seen = self._reread = 0  # of this update's samples
        self._warned = False

    def decode(self, first_latents_BC1HW: Tensor, latents_BCFHW: Tensor) -> np.ndarray:
        """uint8 video_BTYXC, by the decoder in use."""
        return (self.small if self.trusted else self.full).decode(first_latents_BC1HW, latents_BCFHW)

    def reread(
        self,
        puzzles: Sequence[Puzzle],
        readings: Sequence[Reading],
        first_latents_BC1HW: Tensor,
        latents_BCFHW: Tensor,
    ) -> list[Reading]:
        """The readings of what `decode` gave, with the cells that are in doubt read off the full decode.

        May be called part by part.
        """
        settled = list(readings)
        if not self.trusted:
            return settled
        self._seen += len(puzzles)
        for i, reading in enumerate(readings):
            if (box := doubtful_cells(reading, self.config.doubt)) is not None:
                latents = first_latents_BC1HW[i : i + 1], latents_BCFHW[i : i + 1]
                settled[i] = reread(puzzles[i], reading, box, *latents, self.full, self.size)
                self._reread += 1
        return settled

    def audit(
        self,
        update: int,
        puzzles: Sequence[Puzzle],
        first_latents_BC1HW: Tensor,
        latents_BCFHW: Tensor,
        verdicts: Sequence[Verdict],
    ) -> dict[str, float]:
        """Compares a share of the update's verdicts with those of the full decode. Every rank calls it once an update.

        verdicts: of the B samples, by what `reread` gave. Returns what to log. Nothing is decoded once trust has
        ended.
        """
        if self.trusted and self.config.share > 0:
            mine = self._audited(update, len(puzzles))
            videos = self.full.decode(first_latents_BC1HW[mine], latents_BCFHW[mine])
            exact = verify_many([puzzles[i] for i in mine], videos, self.size)
            differ = [not agree(verdicts[i], e, self.config.tolerance) for i, e in zip(mine, exact, strict=True)]
            self._record(update, [outcome for part in self._world.gather(differ) for outcome in part])
        share_reread = self._reread / max(1, self._seen)  # of this rank
        self._seen = self._reread = 0
        if share_reread > _MANY and not self._warned:
            self._warned = True
            self._say(
                f"update {update}: {share_reread:.0%} of the samples had cells that the small reward decoder left in doubt, so "
                "they were decoded in full; train it longer (`vrlvr distill-decoder --steps`), or raise grpo.audit.doubt"
            )
        rate, (low, high) = disagreement(self._outcomes)
        return {
            "decoder_disagreement": rate,
            "decoder_disagreement_low": low,
            "decoder_disagreement_high": high,
            "decoder_audited": float(len(self._outcomes)),
            "decoder_small_in_use": float(self.trusted),
            "decoder_reread": share_reread,
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
