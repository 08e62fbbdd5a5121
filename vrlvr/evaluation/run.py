"""Denoising and judging held-out puzzles with the plain ODE sampler."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch

from vrlvr import puzzles as rooms
from vrlvr.config import Config
from vrlvr.distributed import World
from vrlvr.evaluation.benchmark import puzzle_digest
from vrlvr.evaluation.metrics import Row, mean_gain, paired_gain, summarise
from vrlvr.evaluation.overlap_intervals import overlap_intervals
from vrlvr.evaluation.tables import write_gains, write_results
from vrlvr.policy import Policy
from vrlvr.puzzles import Puzzle
from vrlvr.puzzles.verdict import Verdict
from vrlvr.rollout import FrozenVelocity
from vrlvr.run_log import RunLog
from vrlvr.sampling import sample
from vrlvr.sde import ODE, plan_steps, sigma_schedule
from vrlvr.source import Source
from vrlvr.verifier_version import verifier_version
from vrlvr.video_io import grid, write_gif

_EVAL_SEED = 7_000_000_000  # keeps evaluation noise apart from training's
_SHOWN = 8  # rollouts a task in the GIFs
_GIFS = {"sft": "before", "rl": "after"}


def generate_videos(
    config: Config,
    device: torch.device,
    policy: Policy,
    source: Source,
    batch: list[Puzzle],
    numbers: range,
    noise_seed: int,
) -> Iterator[np.ndarray]:
    """One video a puzzle, uint8 videos_BTYXC of eval.batch_size at a time, by the ODE.

    A puzzle's noise depends on its number and noise_seed alone.
    """
    steps = plan_steps(sigma_schedule(config.sampler.num_steps, config.sampler.shift), ODE, 0.0, 0)
    velocity = FrozenVelocity(policy, config.eval.batch_size)
    for start in range(0, len(batch), config.eval.batch_size):
        prompts = source.prompts(batch[start : start + config.eval.batch_size])
        velocity.refresh(prompts.prompt_B)
        samples_B = torch.tensor(numbers[start : start + config.eval.batch_size], device=device)
        result = sample(
            velocity,
            steps,
            source.latent_shape,
            prompts.first_BC1HW,
            prompts.prompt_B,
            samples_B,
            _EVAL_SEED + noise_seed,
        )
        yield source.codec.decode(prompts.first_BC1HW, result.latents_BCFHW)


def judge_policy(
    config: Config, world: World, policy: Policy, source: Source, batch: list[Puzzle], noise_seeds: range
) -> list[list[Verdict]]:
    """For each puzzle one Verdict per noise seed; ranks share the puzzles and all get every verdict."""
    numbers = world.share(len(batch))
    mine = [batch[i] for i in numbers]
    per_seed = []
    for seed in noise_seeds:
        judged: list[Verdict] = []
        for videos in generate_videos(config, world.device, policy, source, mine, numbers, seed):
            judged += rooms.verify_many(mine[len(judged) : len(judged) + len(videos)], videos)
        per_seed.append(judged)
    per_puzzle = [list(verdicts) for verdicts in zip(*per_seed, strict=True)]
    return [verdicts for part in world.gather(per_puzzle) for verdicts in part]


def success_by_task(
    config: Config,
    world: World,
    policy: Policy,
    source: Source,
    batches: dict[str, list[Puzzle]],
    noise_seed: int,
) -> dict[str, float]:
    """Success rate in [0, 1] of each task, one noise seed."""
    everything = [puzzle for batch in batches.values() for puzzle in batch]
    verdicts = judge_policy(config, world, policy, source, everything, range(noise_seed, noise_seed + 1))
    solved: dict[str, list[bool]] = {task: [] for task in batches}
    for puzzle, (verdict,) in zip(everything, verdicts, strict=True):
        solved[puzzle.task].append(verdict.solved)
    return {task: float(np.mean(values)) for task, values in solved.items()}


def evaluate_systems(
    config: Config,
    world: World,
    log: RunLog,
    run_dir: Path,
    systems: Mapping[str, Callable[[], Policy]],
    source: Source,
    test: dict[str, list[Puzzle]],
) -> None:
    """Judges every system on every task; writes results.json, gains.json, and GIFs of the first rollouts of SFT and RL.

    systems: each is loaded when its turn comes, and let go.
    """
    rows: dict[tuple[str, str], Row] = {}
    verdicts: dict[tuple[str, str], list[list[Verdict]]] = {}
    for system, load in systems.items():
        policy = load()
        for task, batch in test.items():
            judged = judge_policy(config, world, policy, source, batch, range(config.eval.noise_seeds))
            row = summarise(system, task, judged)
            row["num_samples"] = sum(map(len, judged))
            row["precision_ci95"], row["recall_ci95"], row["f1_ci95"] = overlap_intervals(judged)
            row["verifier"], row["test_set"] = verifier_version(), puzzle_digest(batch)
            rows[task, system], verdicts[task, system] = row, judged
            success = {f"success_{system}_{task}": row["success_rate"] / 100}
            log.log("eval", len(rows), len(test) * len(systems), **success)
        if world.is_main and system in _GIFS:
            _write_rollouts(config, world, run_dir / f"rollouts_{_GIFS[system]}.gif", policy, source, test)
        del policy
    if world.is_main:
        gains = []
        before = "base" if config.grpo.start == "model" else "sft"  # what RL started from
        if {before, "rl"} <= systems.keys():
            gains = [paired_gain(before, "rl", task, verdicts[task, before], verdicts[task, "rl"]) for task in test]
        write_results(run_dir / "results.json", [rows[task, system] for task in test for system in systems])
        write_gains(run_dir / "gains.json", [*gains, mean_gain(gains)] if gains else [])


def _write_rollouts(
    config: Config, world: World, path: Path, policy: Policy, source: Source, test: dict[str, list[Puzzle]]
) -> None:
    """A row of rollouts a task, on the same puzzles and noise for every system; solved ones framed green, others red."""
    columns = min(_SHOWN, *(len(batch) for batch in test.values()))
    videos = []
    for batch in test.values():
        shown = batch[:columns]
        numbers = range(len(shown))
        rollouts = np.concatenate(
            list(generate_videos(config, world.device, policy, source, shown, numbers, noise_seed=0))
        )
        verdicts = rooms.verify_many(shown, rollouts)
        videos += [_framed(video, v.solved) for video, v in zip(rollouts, verdicts, strict=True)]
    write_gif(path, grid(np.stack(videos), columns=columns), fps=2, scale=max(1, 64 // config.data.height))


def _framed(video_TYXC: np.ndarray, solved: bool) -> np.ndarray:
    framed = np.pad(video_TYXC, ((0, 0), (1, 1), (1, 1), (0, 0)))
    inside = np.zeros(framed.shape[1:3], bool)
    inside[1:-1, 1:-1] = True
    framed[:, ~inside] = (60, 180, 90) if solved else (210, 60, 60)
    return framed
