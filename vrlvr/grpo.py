"""SDE-GRPO with Early-Step Focus.

GRPO (arXiv 2402.03300) on a denoising policy (Flow-GRPO, arXiv 2505.05470; VideoRLVR, arXiv 2605.15458), less what one update
a rollout makes idle: no critic, no old-log-prob pass (the ratio's denominator is the detached log-prob of the same forward),
no KL by default. Added: noise and gradient in the first sde_steps only (ESF); one forward a prompt at step 0, where a group
shares its noise; samples of small |advantage| dropped; an anchor to the SFT velocity after the window, without which the
untrained late steps drift.
"""

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vrlvr.batches import Prompts
from vrlvr.checkpoint import Checkpoints, TrainState
from vrlvr.config import Config, num_sde_steps
from vrlvr.distributed import World
from vrlvr.ema import Ema
from vrlvr.engine import Engine, make_engine
from vrlvr.evaluation.run import success_by_task
from vrlvr.footprint import set_recompute
from vrlvr.judges import Judges
from vrlvr.optim import cosine_decay
from vrlvr.phases import phase
from vrlvr.policy import Policy
from vrlvr.puzzles import Puzzle
from vrlvr.rollout import FrozenVelocity
from vrlvr.run_log import RunLog
from vrlvr.sampling import Trajectory, joined, sample
from vrlvr.scoring import Scorer, group_advantages, score_scalars, shuffled
from vrlvr.sde import Step, plan_steps, sigma_schedule
from vrlvr.source import Source
from vrlvr.update import Replay, accumulate_gradients, build_replay, puzzles_of

GRPO_STREAM = 3


@dataclass
class Progress:
    """Updates done, and what the reward decoder's audit and the second verifier have found."""

    step: int = 0
    audit: dict[str, Any] = field(default_factory=dict)
    second_opinion: dict[str, Any] = field(default_factory=dict)


def train_grpo(
    config: Config,
    world: World,
    log: RunLog,
    checkpoints: Checkpoints,
    policy: Policy,
    reference: Policy,
    source: Source,
    val: dict[str, list[Puzzle]],
) -> Policy:
    """Trains the policy in place and returns its moving average. reference: the frozen policy that it starts from."""
    grpo = config.grpo
    steps = plan_steps(rollout_sigmas(config), grpo.sampler, grpo.noise_level, num_sde_steps(config))
    ema, progress = Ema(policy, grpo.ema_decay), Progress()
    engine = make_engine(config, world, policy, grpo.weight_decay, grpo.grad_clip)
    state = TrainState(engine, ema, progress)
    restored = checkpoints.restore("grpo", state)
    first_update = progress.step + 1
    judges = Judges(config, source, world, log.say)
    judges.load_states(progress.audit, progress.second_opinion)
    set_recompute(config, policy, source, world.size, "grpo")
    velocity = FrozenVelocity(policy, grpo.micro_batch)
    while progress.step < grpo.updates:
        progress.step += 1
        lr = grpo.lr * cosine_decay(progress.step, grpo.updates, grpo.decay_fraction)
        # Alike on all ranks.
        rng = np.random.default_rng(np.random.SeedSequence([config.seed, GRPO_STREAM, progress.step]))

        begin, cpu_begin = time.perf_counter(), time.process_time()
        draw = _draw(config, world, source, progress.step)
        judges.expect(progress.step, len(draw.samples_B))
        with phase("rollout"), engine.whole_weights():
            velocity.refresh(draw.prompts.prompt_B)
            trajectory = _roll_out(config, velocity, steps, source.latent_shape, draw, judges.scorer)
        rolled_out = time.perf_counter()

        with phase("score"):
            scores = judges.scorer.collect()
        with phase("advantage"):
            reward_PG = torch.cat(world.gather(scores.reward_B)).view(-1, grpo.group_size)
            advantage_PG = group_advantages(reward_PG, grpo.advantage_eps)
            zero_spread = (advantage_PG == 0).all(1).double().tolist()
            if grpo.shuffle_advantages:
                advantage_PG = shuffled(advantage_PG, rng)
        scored = time.perf_counter()

        replay = build_replay(config, world, trajectory, draw.prompts, advantage_PG, rng)
        scalars = _update(config, engine, policy, reference, replay, lr)
        with engine.whole_weights():
            ema.update(policy, progress.step)

        scalars |= score_scalars(scores) | {"zero_spread_fraction": zero_spread}
        first_BC1HW = draw.prompts.first_BC1HW[draw.puzzle_B.to(world.device)]
        scalars |= judges.look(progress.step, first_BC1HW, trajectory.latents_BCFHW, scores)
        progress.audit, progress.second_opinion = judges.states()
        seconds = {
            "rollout": rolled_out - begin,
            "decode": scores.seconds_decode,
            "verify": scores.seconds_verify,
            "score": scored - rolled_out,  # what decoding and verification delayed
            "update": time.perf_counter() - scored,
        }
        del trajectory, replay  # gigabytes at full size, which the next rollout needs
        seconds["cpu"] = world.size * (time.process_time() - cpu_begin)  # the mean over ranks is then their sum
        means = average_over_ranks(world, scalars | {f"seconds_{name}": [value] for name, value in seconds.items()})
        if progress.step % grpo.validate_every == 0:
            with engine.whole_weights():
                success = success_by_task(config, world, ema.model, source, val, noise_seed=0)
            means |= {"val_success": float(np.mean(list(success.values())))}
            means |= {f"val_success_{task}": value for task, value in success.items()}
        log.log("grpo", progress.step, grpo.updates, lr=lr, **means)
        if progress.step % grpo.save_every == 0 and progress.step < grpo.updates:
            checkpoints.save("grpo", state, name=f"grpo-{progress.step:06d}")
    if restored != "grpo-final" or progress.step >= first_update:  # else it is there
        checkpoints.save("grpo", state, name="grpo-final")
    engine.close()
    return ema.model


def rollout_sigmas(config: Config) -> list[float]:
    """The window on the sampler's grid, the tail on a coarser one if tail_steps says so."""
    steps, window, tail = config.sampler.num_steps, num_sde_steps(config), config.grpo.tail_steps
    coarse = None if tail is None else min(tail, steps - window)
    return sigma_schedule(steps, config.sampler.shift, window, coarse)


@dataclass(frozen=True)
class _Draw:
    """This rank's samples of an update. puzzle_B: the place of each one's puzzle among the prompts. samples_B: their numbers in
    the run, which name their noise.
    """

    prompts: Prompts
    puzzle_B: Tensor
    samples_B: Tensor


def _draw(config: Config, world: World, source: Source, update: int) -> _Draw:
    """Samples are dealt to ranks evenly, whatever the group size: a group may lie on several."""
    grpo = config.grpo
    mine, first = world.share(grpo.puzzles * grpo.group_size), update * grpo.puzzles
    puzzle_B = puzzles_of(mine, grpo.group_size)
    numbers = [first + mine.start // grpo.group_size + i for i in range(int(puzzle_B[-1]) + 1)]
    samples_B = torch.arange(mine.start, mine.stop, device=world.device) + first * grpo.group_size
    return _Draw(source.prompts([source.rl_puzzle(n) for n in numbers]), puzzle_B, samples_B)


def _roll_out(
    config: Config,
    velocity: FrozenVelocity,
    steps: list[Step],
    shape: tuple[int, int, int, int],
    draw: _Draw,
    scorer: Scorer,
) -> Trajectory:
    """Samples grpo.rollout_puzzles of the prompts' puzzles at a time; the scorer gets each part while the next is made."""
    grpo, prompts, puzzle_B = config.grpo, draw.prompts, draw.puzzle_B
    size = grpo.rollout_puzzles or len(prompts.puzzles)
    parts = []
    for start in range(0, len(prompts.puzzles), size):
        part, mine = prompts.part(slice(start, start + size)), (puzzle_B >= start) & (puzzle_B < start + size)
        first, prompt, samples = part.first_BC1HW, part.prompt_B, draw.samples_B[mine.to(draw.samples_B.device)]
        parts.append(
            sample(velocity, steps, shape, first, prompt, samples, config.seed, grpo.shared_noise, grpo.group_size)
        )
        scorer.submit(part, puzzle_B[mine] - start, parts[-1].latents_BCFHW, more=start + size < len(prompts.puzzles))
    return joined(parts)


def _update(
    config: Config, engine: Engine, policy: Policy, reference: Policy, replay: Replay, lr: float
) -> dict[str, list[float]]:
    """The optimizer's steps on a rollout, one an inner epoch; values to log, by name.

    Without a term on any rank there is nothing to learn from, and AdamW's momentum shall not act alone.
    """
    scalars: dict[str, list[float]] = {"grad_norm": [0.0]}
    for epoch in range(config.grpo.inner_epochs if replay.num_terms else 0):
        with engine.accumulate():
            scalars |= accumulate_gradients(config, policy, reference, replay, first_pass=epoch == 0)
        with phase("optimizer"):
            scalars["grad_norm"] = [engine.step(lr)]
    return scalars


def average_over_ranks(world: World, values: dict[str, list[float]]) -> dict[str, float]:
    """The mean of each named list over all ranks' entries (a rank may lack a name)."""
    merged: dict[str, list[float]] = {}
    for part in world.gather(values):
        for name, entries in part.items():
            merged.setdefault(name, []).extend(entries)
    return {name: float(np.mean(entries)) for name, entries in merged.items() if entries}
