"""A small policy on the latents of a small VAE, by the product's own SFT and GRPO, and its samples of held-out puzzles.

Shapes: B samples, C/F/H/W latent channels, frames, rows and columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vrlvr.batches import generate_all
from vrlvr.build import build_policy
from vrlvr.checkpoint import Checkpoints
from vrlvr.config import Config, DataConfig, EvalConfig, GrpoConfig, SftConfig, num_sde_steps
from vrlvr.distributed import World
from vrlvr.ema import frozen_copy
from vrlvr.grpo import rollout_sigmas, train_grpo
from vrlvr.models.wan_vae import WanVAECodec
from vrlvr.policy import Policy
from vrlvr.puzzles import Puzzle
from vrlvr.rollout import FrozenVelocity
from vrlvr.run_log import RunLog
from vrlvr.sampling import sample
from vrlvr.sde import ODE, plan_steps, sigma_schedule
from vrlvr.sft import train_sft
from vrlvr.source import Rendered

_NEVER = 10**9
_BATCH = 256
_SAMPLE_SEED = 5_000_000_000  # keeps the noise of samples apart from training's


@dataclass(frozen=True)
class Samples:
    """Latents of puzzles' videos, the first frame's apart, on the CPU."""

    puzzles: Sequence[Puzzle]
    first_BC1HW: Tensor
    latents_BCFHW: Tensor

    def part(self, indices: Sequence[int]) -> "Samples":
        chosen = list(indices)
        return Samples([self.puzzles[i] for i in chosen], self.first_BC1HW[chosen], self.latents_BCFHW[chosen])

    @classmethod
    def joined(cls, parts: "Sequence[Samples]") -> "Samples":
        first, latents = ([getattr(part, name) for part in parts] for name in ("first_BC1HW", "latents_BCFHW"))
        return cls([puzzle for part in parts for puzzle in part.puzzles], torch.cat(first), torch.cat(latents))


def make_config(run_dir: Path, data: DataConfig, sft_steps: int, updates: int) -> Config:
    """The default recipe on other latents, without validation on the way, and in small updates."""
    return Config(
        run_dir=str(run_dir),
        resume="auto",
        data=data,
        sft=SftConfig(max_steps=sft_steps, stop_success=None, adaptive_mix=False, validate_every=_NEVER),
        grpo=GrpoConfig(updates=updates, puzzles=12, validate_every=_NEVER, save_every=_NEVER),
        eval=EvalConfig(batch_size=_BATCH),
    )


def train_policies(config: Config, source: Rendered) -> tuple[Policy, Policy]:
    """The SFT policy and the one after RL, from config.run_dir where they are there already."""
    world, run_dir = World(), Path(config.run_dir)
    train = generate_all(config, world, "train", config.data.num_train)
    checkpoints = Checkpoints(run_dir, world, resume=True)
    with RunLog(run_dir) as log:
        sft = train_sft(config, world, log, checkpoints, build_policy(config, source, world.device), source, train, {})
        learner = build_policy(config, source, world.device)
        learner.load_state_dict(sft.state_dict())
        rl = train_grpo(config, world, log, checkpoints, learner, frozen_copy(sft), source, {})
    return sft, rl


def draw_samples(config: Config, policy: Policy, codec: WanVAECodec, puzzles: Sequence[Puzzle], noisy: bool) -> Samples:
    """One sample a puzzle: by the ODE, as evaluation makes them, or by the rollouts' SDE (noisy)."""
    source, grpo = Rendered(config, codec, World().device), config.grpo
    if noisy:
        steps = plan_steps(rollout_sigmas(config), grpo.sampler, grpo.noise_level, num_sde_steps(config))
    else:
        steps = plan_steps(sigma_schedule(config.sampler.num_steps, config.sampler.shift), ODE, 0.0, 0)
    velocity, parts = FrozenVelocity(policy, _BATCH), []
    for start in range(0, len(puzzles), _BATCH):
        prompts = source.prompts(puzzles[start : start + _BATCH])
        velocity.refresh(prompts.prompt_B)
        numbers = torch.arange(start, start + len(prompts.puzzles))
        drawn = sample(
            velocity, steps, source.latent_shape, prompts.first_BC1HW, prompts.prompt_B, numbers, _SAMPLE_SEED + noisy
        )
        parts.append(Samples(prompts.puzzles, prompts.first_BC1HW, drawn.latents_BCFHW))
    return Samples.joined(parts)
