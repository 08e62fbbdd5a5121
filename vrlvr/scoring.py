"""From rollouts to rewards and advantages."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from vrlvr.batches import Prompts
from vrlvr.distributed import own_cores
from vrlvr.models.codec import Decoder
from vrlvr.puzzles import Puzzle, Reading, judge, read_many
from vrlvr.puzzles.verdict import Verdict, reward

Weights = dict[str, dict[str, float]]
# Of puzzles, readings, first_latents_BC1HW and latents_BCFHW: the readings to judge, see AuditedDecoder.reread.
Reread = Callable[[list[Puzzle], list[Reading], Tensor, Tensor], list[Reading]]

_PIECE_BYTES = 2**26  # of pixels that a thread reads at a time
_MAX_THREADS = 8  # of a process


@dataclass(frozen=True)
class Scores:
    """Each sample's puzzle, verdict and reward."""

    puzzles: list[Puzzle]
    verdicts: list[Verdict]
    reward_B: Tensor
    seconds_decode: float
    seconds_verify: float


def score(
    prompts: Prompts,
    puzzle_B: Tensor,
    latents_BCFHW: Tensor,
    decoder: Decoder,
    weights: Weights,
    size: tuple[int, int] | None = None,
    reread: Reread | None = None,
) -> Scores:
    """Decodes the samples and lets each puzzle's verifier judge them. A verifier's crash is raised, never a reward.

    puzzle_B: the place among the prompts of each sample's puzzle. size: height and width in which the boards were drawn, where
    the decoder's videos are smaller. reread: has the last word on what the videos show.
    """
    begin = time.perf_counter()
    first_BC1HW = prompts.first_BC1HW[puzzle_B.to(prompts.first_BC1HW.device)]
    videos = decoder.decode(first_BC1HW, latents_BCFHW)
    seconds_decode = time.perf_counter() - begin
    puzzles = [prompts.puzzles[i] for i in puzzle_B.tolist()]
    readings = _read(puzzles, videos, size)
    if reread is not None:
        read = time.perf_counter()
        readings = reread(puzzles, readings, first_BC1HW, latents_BCFHW)
        seconds_decode += time.perf_counter() - read
    verdicts = [judge(puzzle, reading) for puzzle, reading in zip(puzzles, readings, strict=True)]
    rewards = [reward(v, weights[p.task]) for p, v in zip(puzzles, verdicts, strict=True)]
    reward_B = torch.tensor(rewards, dtype=torch.float64)
    return Scores(puzzles, verdicts, reward_B, seconds_decode, time.perf_counter() - begin - seconds_decode)


def _read(puzzles: list[Puzzle], videos_BTYXC: np.ndarray, size: tuple[int, int] | None) -> list[Reading]:
    """`read_many` on threads, where there are pixels enough for more than one: numpy lets go of the interpreter meanwhile."""
    piece = max(1, _PIECE_BYTES // videos_BTYXC[0].nbytes)

    def of_piece(start: int) -> list[Reading]:
        return read_many(puzzles[start : start + piece], videos_BTYXC[start : start + piece], size)

    starts = range(0, len(puzzles), piece)
    with ThreadPoolExecutor(max(1, min(_MAX_THREADS, own_cores(), len(starts)))) as threads:
        return [reading for part in threads.map(of_piece, starts) for reading in part]


class Scorer:
    """Scores samples part by part, in the background while the caller rolls out what comes next.

    On a GPU the decoder works on a stream of its own there.
    """

    def __init__(
        self,
        decoder: Decoder,
        weights: Weights,
        size: tuple[int, int] | None,
        device: torch.device,
        reread: Reread | None = None,
    ) -> None:
        """See `score`."""
        self._score = partial(score, decoder=decoder, weights=weights, size=size, reread=reread)
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="score")  # one: parts share the decoder
        self._parts: list[Callable[[], Scores]] = []

    def submit(self, prompts: Prompts, puzzle_B: Tensor, latents_BCFHW: Tensor, more: bool) -> None:
        """Takes samples, see `score`. more: others will be rolled out, and these scored meanwhile; else `collect` does it.

        The tensors must stay as they are until then.
        """
        job: Callable[[], Scores] = partial(self._score, prompts, puzzle_B, latents_BCFHW)
        if more:
            ready = None if self._stream is None else torch.cuda.current_stream().record_event()
            job = self._thread.submit(self._in_background, job, ready).result
        self._parts.append(job)

    def collect(self) -> Scores:
        """The scores of all samples since the last call, in their order. Raises what a verifier or the decoder raised."""
        parts, self._parts = [part() for part in self._parts], []
        return Scores(
            puzzles=[puzzle for part in parts for puzzle in part.puzzles],
            verdicts=[verdict for part in parts for verdict in part.verdicts],
            reward_B=torch.cat([part.reward_B for part in parts]),
            seconds_decode=sum(part.seconds_decode for part in parts),
            seconds_verify=sum(part.seconds_verify for part in parts),
        )

    def _in_background(self, job: Callable[[], Scores], ready: "torch.cuda.Event | None") -> Scores:
        with torch.no_grad(), nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            if ready is not None:
                torch.cuda.current_stream().wait_event(ready)
            return job()


def group_advantages(reward_PG: Tensor, eps: float) -> Tensor:
    """(r - mean) / (std + eps) within each group, population std: GRPO's (arXiv 2402.03300), eps large enough that a group
    of nearly equal rewards is not blown up. Exactly 0 where a group has no spread."""
    centred = reward_PG - reward_PG.mean(1, keepdim=True)
    level = (reward_PG == reward_PG[:, :1]).all(1, keepdim=True)  # their mean may differ from them by rounding
    return (centred / (reward_PG.std(1, correction=0, keepdim=True) + eps)).masked_fill(level, 0.0)


def score_scalars(scores: Scores) -> dict[str, list[float]]:
    """Values to average over ranks, by name: reward and success, overall and by task, and every component by task."""
    values: dict[str, list[float]] = {}
    for puzzle, verdict, r in zip(scores.puzzles, scores.verdicts, scores.reward_B.tolist(), strict=True):
        for name, value in (("reward", r), ("success", float(verdict.solved))):
            values.setdefault(name, []).append(value)
            values.setdefault(f"{name}_{puzzle.task}", []).append(value)
        for name, value in verdict.components.items():
            values.setdefault(f"component_{puzzle.task}_{name}", []).append(value)
    return values


def shuffled(advantage_PG: Tensor, rng: np.random.Generator) -> Tensor:
    """The control: the same advantages, dealt to random samples."""
    flat = advantage_PG.flatten()
    return flat[torch.from_numpy(rng.permutation(len(flat)))].view_as(advantage_PG)
