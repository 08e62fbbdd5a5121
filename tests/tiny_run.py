"""A run of debug sizes, and what tests of training make from it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vrlvr import options
from vrlvr.batches import Prompts, generate, videos_of
from vrlvr.build import build_policy
from vrlvr.config import Config
from vrlvr.models.tiny_codec import TinyCodec
from vrlvr.policy import Policy
from vrlvr.puzzles import Puzzle
from vrlvr.source import Rendered

CPU = torch.device("cpu")
ARGUMENTS = ["--config", str(Path(__file__).parent / "assets" / "debug.yaml")]


def tiny_config(*arguments: str) -> Config:
    """The debug configuration, with further options."""
    return options.parse([*ARGUMENTS, *arguments])


def tiny_puzzles(config: Config, number: int) -> list[Puzzle]:
    """Puzzles of all tasks in turn."""
    tasks = config.data.tasks
    return [generate(config, "rl", tasks[i % len(tasks)], i) for i in range(number)]


def tiny_codec(config: Config) -> TinyCodec:
    return TinyCodec.fit(videos_of(tiny_puzzles(config, 48), config.data))


def random_policy(config: Config, codec: TinyCodec, seed: int = 0) -> Policy:
    """A policy whose velocity is not zero, as that of a fresh one is."""
    policy = build_policy(config, Rendered(config, codec, CPU), CPU)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
    return policy


def tiny_prompts(config: Config, codec: TinyCodec, number: int) -> Prompts:
    return Rendered(config, codec, CPU).prompts(tiny_puzzles(config, number))


def planned_latents(prompts: Prompts, config: Config, codec: TinyCodec) -> Tensor:
    """The planner's own videos of some prompts, encoded."""
    return codec.encode(videos_of(prompts.puzzles, config.data))


def gradients(policy: Policy) -> Tensor:
    """All gradients of a policy in one float64 vector; a missing one counts as zero."""
    grads: Sequence[Tensor] = [p.grad if p.grad is not None else torch.zeros_like(p) for p in policy.parameters()]
    return torch.cat([grad.flatten() for grad in grads]).double()


def rng() -> np.random.Generator:
    return np.random.default_rng(0)
