"""From rollouts to rewards and advantages."""

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vrlvr.batches import Prompts
from vrlvr.models.codec import Codec
from vrlvr.puzzles import verify_many
from vrlvr.puzzles.verdict import Verdict, reward

Weights = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Scores:
    """Verdicts and rewards of P x G samples, puzzle-major."""

    verdicts: list[Verdict]
    reward_PG: Tensor
    seconds_decode: float
    seconds_verify: float


def score(prompts: Prompts, latents_BCFHW: Tensor, codec: Codec, weights: Weights) -> Scores:
    """Decodes the samples and lets each puzzle's verifier judge them. A verifier's crash is raised, never a reward."""
    group = len(latents_BCFHW) // len(prompts.puzzles)
    begin = time.perf_counter()
    videos = codec.decode(prompts.first_BC1HW.repeat_interleave(group, 0), latents_BCFHW)
    decoded = time.perf_counter()
    puzzles = [puzzle for puzzle in prompts.puzzles for _ in range(group)]
    verdicts = verify_many(puzzles, videos)
    rewards = [reward(v, weights[p.task]) for p, v in zip(puzzles, verdicts, strict=True)]
    reward_PG = torch.tensor(rewards, dtype=torch.float64).view(-1, group)
    return Scores(verdicts, reward_PG, decoded - begin, time.perf_counter() - decoded)


def group_advantages(reward_PG: Tensor, eps: float) -> Tensor:
    """(r - mean) / (std + eps) within each group, population std: GRPO's (arXiv 2402.03300), eps large enough that a group
    of nearly equal rewards is not blown up. Exactly 0 where a group has no spread."""
    centred = reward_PG - reward_PG.mean(1, keepdim=True)
    level = (reward_PG == reward_PG[:, :1]).all(1, keepdim=True)  # their mean may differ from them by rounding
    return (centred / (reward_PG.std(1, correction=0, keepdim=True) + eps)).masked_fill(level, 0.0)


def score_scalars(prompts: Prompts, scores: Scores) -> dict[str, list[float]]:
    """Values to average over ranks, by name: reward and success, overall and by task, and every component by task."""
    group = scores.reward_PG.shape[1]
    values: dict[str, list[float]] = {}
    for i, (verdict, r) in enumerate(zip(scores.verdicts, scores.reward_PG.flatten().tolist(), strict=True)):
        task = prompts.puzzles[i // group].task
        for name, value in (("reward", r), ("success", float(verdict.solved))):
            values.setdefault(name, []).append(value)
            values.setdefault(f"{name}_{task}", []).append(value)
        for name, value in verdict.components.items():
            values.setdefault(f"component_{task}_{name}", []).append(value)
    return values


def shuffled(advantage_PG: Tensor, rng: np.random.Generator) -> Tensor:
    """The control: the same advantages, dealt to random samples."""
    flat = advantage_PG.flatten()
    return flat[torch.from_numpy(rng.permutation(len(flat)))].view_as(advantage_PG)
