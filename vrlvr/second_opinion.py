"""Whether the reward still means what it says: a second verifier judges a sample of the rollouts.

A policy that learns to fool the verifier earns more while an independent verifier sees fewer solutions. Both are logged, and
the run says so, once, when over a window the one has risen and the other fallen by more than their noise.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from vrlvr.distributed import World
from vrlvr.errors import UserError
from vrlvr.models.codec import Decoder
from vrlvr.puzzles import Puzzle
from vrlvr.puzzles.second import second_verify
from vrlvr.puzzles.verdict import Verdict

SECOND_STREAM = 5  # keeps its choices apart from other random numbers of the same seed and step
MARGIN = 4.0  # standard errors by which the halves of a window must differ
_WINDOWS = (1, 2, 4, 8)  # compared, in units of the configured one: a slow drift shows in long ones


@dataclass
class SecondOpinionConfig:
    """every: updates from one look to the next; 0: the second verifier is not asked. samples: of a look, over all processes.

    window: looks whose two halves are compared, at least. Raises UserError for values outside their ranges.
    """

    every: int = 2
    samples: int = 16
    window: int = 40

    def __post_init__(self) -> None:
        for name, least in (("every", 0), ("samples", 1), ("window", 4)):
            if getattr(self, name) < least:
                raise UserError(f"grpo.second_opinion.{name}={getattr(self, name)} must be at least {least}; raise it")


class Look(NamedTuple):
    """One look: the update's mean reward over all its samples; how many were judged twice, and solved by the second verdict."""

    reward: float
    samples: int
    solved: int


def drifting_apart(looks: Sequence[Look], window: int) -> bool:
    """Whether the reward rose and the second verifier's success fell over the newest `window` looks, or 2, 4 or 8 times these.

    Even a reward that rises by its dense terms alone, over a constant success, is taken for drift in about 1 of 1,000 runs of
    the default's length.
    """
    lengths = [window * times for times in _WINDOWS if window * times <= len(looks)]
    return any(_apart(looks[-length : -length // 2], looks[-length // 2 :]) for length in lengths)


def _apart(early: Sequence[Look], late: Sequence[Look]) -> bool:
    """Whether the reward rose and success fell, each by more than MARGIN standard errors.

    Welch's for the reward; for success that of two binomials of equal rate, with one success and one failure added, lest a rate
    of 0 or 1 be without noise.
    """
    before, after = (np.array([look.reward for look in looks]) for looks in (early, late))
    reward_error = math.sqrt(before.var(ddof=1) / len(before) + after.var(ddof=1) / len(after))
    samples = [sum(look.samples for look in looks) for looks in (early, late)]
    solved = [sum(look.solved for look in looks) for looks in (early, late)]
    rate = (sum(solved) + 1) / (sum(samples) + 2)
    success_error = math.sqrt(rate * (1 - rate) * (1 / samples[0] + 1 / samples[1]))
    fall = solved[0] / samples[0] - solved[1] / samples[1]
    return bool(after.mean() - before.mean() > MARGIN * reward_error and fall > MARGIN * success_error)


class SecondOpinion:
    """Stands before the rewards' decoder and keeps the videos that the second verifier shall see."""

    def __init__(
        self,
        decoder: Decoder,
        size: tuple[int, int] | None,
        config: SecondOpinionConfig,
        seed: int,
        world: World,
        say: Callable[[str], None],
    ) -> None:
        """size: height and width in which the boards were drawn, where the decoder's videos are smaller."""
        self.decoder, self.size, self.config = decoder, size, config
        self._seed, self._world, self._say = seed, world, say
        self._looks: deque[Look] = deque(maxlen=config.window * _WINDOWS[-1])
        self._warned = False
        self._wanted: set[int] = set()
        self._kept: dict[int, np.ndarray] = {}
        self._decoded = 0

    def expect(self, update: int, num_samples: int) -> None:
        """Chooses among the samples that this rank will decode next: a function of seed, update and rank alone."""
        self._wanted, self._kept, self._decoded = set(), {}, 0
        if self.config.every and update % self.config.every == 0:
            rng = np.random.default_rng(np.random.SeedSequence([self._seed, SECOND_STREAM, update, self._world.rank]))
            number = min(num_samples, math.ceil(self.config.samples / self._world.size))
            self._wanted = set(rng.choice(num_samples, number, replace=False).tolist())

    def decode(self, first_latents_BC1HW: Tensor, latents_BCFHW: Tensor) -> np.ndarray:
        """uint8 video_BTYXC of the next samples."""
        videos = self.decoder.decode(first_latents_BC1HW, latents_BCFHW)
        for i in self._wanted.intersection(range(self._decoded, self._decoded + len(videos))):
            self._kept[i] = videos[i - self._decoded].copy()
        self._decoded += len(videos)
        return videos

    def compare(
        self, update: int, puzzles: Sequence[Puzzle], verdicts: Sequence[Verdict], reward_B: Tensor
    ) -> dict[str, float]:
        """Judges what was kept of the update's samples; given are all of this rank. Every rank calls it.

        Returns what to log: nothing without a look.
        """
        if not self._wanted:
            return {}
        begin = time.perf_counter()
        solved = {i: second_verify(puzzles[i], video, self.size).solved for i, video in self._kept.items()}
        agreed = sum(verdicts[i].solved == second for i, second in solved.items())
        self._kept.clear()
        mine = (float(reward_B.sum()), len(reward_B), agreed, sum(solved.values()), len(solved))
        reward, num, agreed, twice_solved, twice = (
            sum(column) for column in zip(*self._world.gather(mine), strict=True)
        )
        self._looks.append(Look(reward / num, int(twice), int(twice_solved)))
        if not self._warned and drifting_apart(list(self._looks), self.config.window):
            self._warned = True
            self._say(
                f"update {update}: of late the reward rose while the second verifier sees fewer solutions; the policy may be "
                "fooling the first one. Compare reward and second_success, and look at rollouts before trusting this run"
            )
        return {
            "second_success": twice_solved / twice,
            "second_agreement": agreed / twice,
            "seconds_second": time.perf_counter() - begin,
        }

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON values."""
        return {"looks": [list(look) for look in self._looks], "warned": self._warned}

    def load_state(self, state: dict[str, Any]) -> None:
        """Goes on from a `state`."""
        self._looks = deque((Look(*look) for look in state["looks"]), maxlen=self._looks.maxlen)
        self._warned = state["warned"]
