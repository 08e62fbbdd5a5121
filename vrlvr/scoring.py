"""From rollouts to rewards and advantages."""

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vrlvr.audit import Decoder
from vrlvr.batches import Prompts
from vrlvr.puzzles import Puzzle, verify_many
from vrlvr.puzzles.verdict import Verdict, reward

Weights = dict[str, dict[str, float]]


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
) -> Scores:
    """Decodes the samples and lets each puzzle's verifier judge them. A verifier's crash is raised, never a reward.

    puzzle_B: the place among the prompts of each sample's puzzle. size: height and width in which the boards were drawn, where
    the decoder's videos are smaller.
    """
    begin = time.perf_counter()
    videos = decoder.decode(prompts.first_BC1HW[puzzle_B.to(prompts.first_BC1HW.device)], latents_BCFHW)
    decoded = time.perf_counter()
    puzzles = [prompts.puzzles[i] for i in puzzle_B.tolist()]
    verdicts = verify_many(puzzles, videos, size)
    rewards = [reward(v, weights[p.task]) for p, v in zip(puzzles, verdicts, strict=True)]
    reward_B = torch.tensor(rewards, dtype=torch.float64)
    return Scores(puzzles, verdicts, reward_B, decoded - begin, time.perf_counter() - decoded)


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
