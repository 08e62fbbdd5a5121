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
from vrlvr.build import open_reward_decoder
from vrlvr.checkpoint import Checkpoints, TrainState
from vrlvr.config import Config, num_sde_steps, reward_weights
from vrlvr.distributed import World
from vrlvr.ema import Ema
from vrlvr.engine import make_engine
from vrlvr.evaluation.run import success_by_task
from vrlvr.footprint import set_recompute
from vrlvr.optim import cosine_decay
from vrlvr.phases import phase
from vrlvr.policy import Policy
from vrlvr.puzzles import Puzzle
from vrlvr.rollout import FrozenVelocity
from vrlvr.run_log import RunLog
from vrlvr.sampling import Trajectory, joined, sample
from vrlvr.scoring import Scorer, group_advantages, score_scalars, shuffled
from vrlvr.sde import Step, plan_steps, sigma_schedule
from vrlvr.second_opinion import SecondOpinion
from vrlvr.source import Source
from vrlvr.update import accumulate_gradients, build_replay, puzzles_of

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
    """Trains the policy in place and returns its moving average. reference: the frozen SFT policy."""
    grpo, window = config.grpo, num_sde_steps(config)
    device = world.device
    steps = plan_steps(rollout_sigmas(config), grpo.sampler, grpo.noise_level, window)
    ema, progress = Ema(policy, grpo.ema_decay), Progress()
    engine = make_engine(config, world, policy, grpo.weight_decay, grpo.grad_clip)
    state = TrainState(engine, ema, progress)
    checkpoints.restore("grpo", state)
    audited = open_reward_decoder(config, source, world, log.say)
    if audited is not None and progress.audit:
        audited.load_state(progress.audit)
    set_recompute(config, policy, source, world.size, "grpo")
    velocity = FrozenVelocity(policy, grpo.micro_batch)
    decoder, size = (source.codec, None) if audited is None else (audited, audited.size)
    second = SecondOpinion(decoder, size, grpo.second_opinion, config.seed, world, log.say)
    if progress.second_opinion:
        second.load_state(progress.second_opinion)
    settle = None if audited is None else audited.settle
    scorer = Scorer(second, reward_weights(config), size, world.device, settle)
    while progress.step < grpo.updates:
        progress.step += 1
        lr = grpo.lr * cosine_decay(progress.step, grpo.updates, grpo.decay_fraction)
        rng = np.random.default_rng(
            np.random.SeedSequence([config.seed, GRPO_STREAM, progress.step])
        )  # alike on all ranks

        begin, cpu_begin = time.perf_counter(), time.process_time()
        mine, first = world.share(grpo.puzzles * grpo.group_size), progress.step * grpo.puzzles
        puzzle_B = puzzles_of(mine, grpo.group_size)
        numbers = [first + mine.start // grpo.group_size + i for i in range(int(puzzle_B[-1]) + 1)]
        prompts = source.prompts([source.rl_puzzle(n) for n in numbers])
        samples_B = torch.arange(mine.start, mine.stop, device=device) + first * grpo.group_size
        second.expect(progress.step, len(mine))
        with phase("rollout"), engine.whole_weights():
            velocity.refresh(prompts.prompt_B)
            trajectory = _roll_out(config, velocity, steps, source.latent_shape, prompts, puzzle_B, samples_B, scorer)
        rolled_out = time.perf_counter()

        with phase("score"):
            scores = scorer.collect()
        with phase("advantage"):
            reward_PG = torch.cat(world.gather(scores.reward_B)).view(-1, grpo.group_size)
            advantage_PG = group_advantages(reward_PG, grpo.advantage_eps)
            zero_spread = (advantage_PG == 0).all(1).double().tolist()
            if grpo.shuffle_advantages:
                advantage_PG = shuffled(advantage_PG, rng)
        scored = time.perf_counter()

        replay = build_replay(config, world, trajectory, prompts, advantage_PG, rng)
        scalars: dict[str, list[float]] = {"grad_norm": [0.0]}
        # Without a term on any rank there is nothing to learn from, and AdamW's momentum shall not act alone.
        for epoch in range(grpo.inner_epochs if replay.num_terms else 0):
            with engine.accumulate():
                scalars |= accumulate_gradients(config, policy, reference, replay, first_pass=epoch == 0)
            with phase("optimizer"):
                scalars["grad_norm"] = [engine.step(lr)]
        with engine.whole_weights():
            ema.update(policy, progress.step)

        scalars |= score_scalars(scores)
        if audited is not None:
            first_B = prompts.first_BC1HW[puzzle_B.to(device)]
            found = audited.audit(progress.step, scores.puzzles, first_B, trajectory.latents_BCFHW, scores.verdicts)
            scalars |= {name: [value] for name, value in found.items()}
            progress.audit = audited.state()
        found = second.compare(progress.step, scores.puzzles, scores.verdicts, scores.reward_B)
        scalars |= {name: [value] for name, value in found.items()}
        progress.second_opinion = second.state()
        scalars["zero_spread_fraction"] = zero_spread
        scalars["seconds_rollout"] = [rolled_out - begin]
        scalars["seconds_decode"], scalars["seconds_verify"] = [scores.seconds_decode], [scores.seconds_verify]
        scalars["seconds_score"] = [scored - rolled_out]  # what decoding and verification delayed
        scalars["seconds_update"] = [time.perf_counter() - scored]
        del trajectory, replay  # gigabytes at full size, which the next rollout needs
        cpu = time.process_time() - cpu_begin
        scalars["seconds_cpu"] = [world.size * cpu]  # the mean over ranks is then their sum
        means = average_over_ranks(world, scalars) | {"lr": lr}
        if progress.step % grpo.validate_every == 0:
            with engine.whole_weights():
                success = success_by_task(config, world, ema.model, source, val, noise_seed=0)
            means["val_success"] = float(np.mean(list(success.values())))
            means |= {f"val_success_{task}": value for task, value in success.items()}
        log.log("grpo", progress.step, grpo.updates, **means)
        if progress.step % grpo.save_every == 0 and progress.step < grpo.updates:
            checkpoints.save("grpo", state, name=f"grpo-{progress.step:06d}")
    checkpoints.save("grpo", state, name="grpo-final")
    engine.close()
    return ema.model


def rollout_sigmas(config: Config) -> list[float]:
    """The window on the sampler's grid, the tail on a coarser one if tail_steps says so."""
    steps, window, tail = config.sampler.num_steps, num_sde_steps(config), config.grpo.tail_steps
    coarse = None if tail is None else min(tail, steps - window)
    return sigma_schedule(steps, config.sampler.shift, window, coarse)


def _roll_out(
    config: Config,
    velocity: FrozenVelocity,
    steps: list[Step],
    shape: tuple[int, int, int, int],
    prompts: Prompts,
    puzzle_B: Tensor,
    samples_B: Tensor,
    scorer: Scorer,
) -> Trajectory:
    """Samples grpo.rollout_puzzles of the prompts' puzzles at a time; the scorer gets each part while the next is made."""
    size = config.grpo.rollout_puzzles or len(prompts.puzzles)
    parts = []
    for start in range(0, len(prompts.puzzles), size):
        part, mine = prompts.part(slice(start, start + size)), (puzzle_B >= start) & (puzzle_B < start + size)
        first, prompt, samples = part.first_BC1HW, part.prompt_B, samples_B[mine.to(samples_B.device)]
        grpo = config.grpo
        parts.append(
            sample(velocity, steps, shape, first, prompt, samples, config.seed, grpo.shared_noise, grpo.group_size)
        )
        scorer.submit(part, puzzle_B[mine] - start, parts[-1].latents_BCFHW, more=start + size < len(prompts.puzzles))
    return joined(parts)


def average_over_ranks(world: World, values: dict[str, list[float]]) -> dict[str, float]:
    """The mean of each named list over all ranks' entries (a rank may lack a name)."""
    merged: dict[str, list[float]] = {}
    for part in world.gather(values):
        for name, entries in part.items():
            merged.setdefault(name, []).extend(entries)
    return {name: float(np.mean(entries)) for name, entries in merged.items() if entries}
