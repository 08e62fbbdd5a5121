"""Denoising and judging held-out puzzles with the plain ODE sampler."""

import numpy as np
import torch
from torch import nn

from vrlvr import puzzles as rooms
from vrlvr.batches import prompts_of
from vrlvr.config import Config
from vrlvr.distributed import World
from vrlvr.models.tiny_codec import TinyCodec
from vrlvr.puzzles import Puzzle
from vrlvr.puzzles.verdict import Verdict
from vrlvr.sampling import sample
from vrlvr.sde import ODE, plan_steps, sigma_schedule

_EVAL_SEED = 7_000_000_000  # keeps evaluation noise apart from training's


def generate_videos(
    config: Config,
    device: torch.device,
    policy: nn.Module,
    codec: TinyCodec,
    batch: list[Puzzle],
    numbers: range,
    noise_seed: int,
) -> np.ndarray:
    """One video a puzzle, uint8 videos_BTYXC, by the ODE. A puzzle's noise depends on its number and noise_seed alone."""
    data = config.data
    shape = codec.latent_shape(data.num_frames, data.height, data.width)
    steps = plan_steps(sigma_schedule(config.sampler.num_steps, config.sampler.shift), ODE, 0.0, 0)
    videos = []
    for start in range(0, len(batch), config.eval.batch_size):
        prompts = prompts_of(batch[start : start + config.eval.batch_size], config, codec, device)
        samples_B = torch.tensor(numbers[start : start + config.eval.batch_size], device=device)
        result = sample(
            policy, steps, shape, prompts.first_BC1HW, prompts.task_B, samples_B, _EVAL_SEED + noise_seed
        )
        videos.append(codec.decode(prompts.first_BC1HW, result.latents_BCFHW))
    return np.concatenate(videos)


def judge_policy(
    config: Config, world: World, policy: nn.Module, codec: TinyCodec, batch: list[Puzzle], noise_seeds: range
) -> list[list[Verdict]]:
    """For each puzzle one Verdict per noise seed; ranks share the puzzles and all get every verdict."""
    numbers = world.share(len(batch))
    mine = [batch[i] for i in numbers]
    per_seed = [
        rooms.verify_many(mine, generate_videos(config, world.device, policy, codec, mine, numbers, seed))
        for seed in noise_seeds
    ]
    per_puzzle = [list(verdicts) for verdicts in zip(*per_seed, strict=True)]
    return [verdicts for part in world.gather(per_puzzle) for verdicts in part]


def success_by_task(
    config: Config,
    world: World,
    policy: nn.Module,
    codec: TinyCodec,
    batches: dict[str, list[Puzzle]],
    noise_seed: int,
) -> dict[str, float]:
    """Success rate in [0, 1] of each task, one noise seed."""
    everything = [puzzle for batch in batches.values() for puzzle in batch]
    verdicts = judge_policy(config, world, policy, codec, everything, range(noise_seed, noise_seed + 1))
    solved: dict[str, list[bool]] = {task: [] for task in batches}
    for puzzle, (verdict,) in zip(everything, verdicts, strict=True):
        solved[puzzle.task].append(verdict.solved)
    return {task: float(np.mean(values)) for task, values in solved.items()}
