"""Where the tensors of puzzles come from: drawn and encoded when asked for, or read from what `vrlvr encode` left.

Shapes: B puzzles, C/F/H/W latent channels, frames (without the first), rows, columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from vrlvr import puzzles
from vrlvr.batches import Prompts, generate, videos_of
from vrlvr.config import Config
from vrlvr.encoded import EncodedData
from vrlvr.models.codec import Codec
from vrlvr.puzzles import Puzzle

_RL_ORDER_STREAM = 4
Row = tuple[Tensor, Tensor, Tensor]  # x0_CFHW, first_C1HW and the prompt's number, of one training video


class TrainingSet(Protocol):
    """The planner's videos of some puzzles, encoded."""

    def __len__(self) -> int: ...

    def row(self, index: int) -> Row: ...


class Source(Protocol):
    """codec: decodes, and where nothing was encoded beforehand also encodes. latent_shape: (C, F, H, W)."""

    @property
    def codec(self) -> Codec: ...

    @property
    def latent_shape(self) -> tuple[int, int, int, int]: ...

    def prompts(self, batch: Sequence[Puzzle]) -> Prompts:
        """First frames and prompts of puzzles."""
        ...

    def training_set(self, batch: Sequence[Puzzle]) -> TrainingSet: ...

    def rl_puzzle(self, number: int) -> Puzzle:
        """The RL puzzle of a global number: tasks take turns as `grpo.mix` says."""
        ...


def task_of(config: Config, number: int) -> tuple[str, int]:
    """The task of the RL puzzle with this global number, and how many of that task came before it."""
    cycle = [task for task in config.data.tasks for _ in range(config.grpo.mix.get(task, 1))]
    turn, place = divmod(number, len(cycle))
    task = cycle[place]
    return task, turn * cycle.count(task) + cycle[:place].count(task)


@dataclass(frozen=True)
class InMemory:
    """All rows of a training set side by side."""

    x0: Tensor
    first: Tensor
    prompt: Tensor

    def __len__(self) -> int:
        return len(self.x0)

    def row(self, index: int) -> Row:
        return self.x0[index], self.first[index], self.prompt[index]


@dataclass(frozen=True)
class Rendered:
    """Puzzles drawn and encoded by the codec; a prompt is the task's number. RL puzzles are new ones without end."""

    config: Config
    codec: Codec
    device: torch.device

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        data = self.config.data
        return self.codec.latent_shape(data.num_frames, data.height, data.width)

    def prompts(self, batch: Sequence[Puzzle]) -> Prompts:
        data = self.config.data
        frames = np.stack([puzzles.render_first_frame(p, data.height, data.width) for p in batch])
        prompt_B = torch.tensor([data.tasks.index(p.task) for p in batch], device=self.device)
        return Prompts(list(batch), self.codec.encode_first(frames).to(self.device), prompt_B)

    def training_set(self, batch: Sequence[Puzzle]) -> InMemory:
        prompts = self.prompts(batch)
        x0 = self.codec.encode(videos_of(batch, self.config.data)).to(self.device)
        return InMemory(x0, prompts.first_BC1HW, prompts.prompt_B)

    def rl_puzzle(self, number: int) -> Puzzle:
        return generate(self.config, "rl", task_of(self.config, number)[0], number)


@dataclass(frozen=True)
class OnDisk:
    """Rows of a training set, read when asked for."""

    data: EncodedData
    stems: Sequence[str]
    device: torch.device

    def __len__(self) -> int:
        return len(self.stems)

    def row(self, index: int) -> Row:
        stem = [self.stems[index]]
        tensors = self.data.videos(stem), self.data.first(stem), self.data.prompt_of(stem)
        x0, first, prompt = (tensor[0].to(self.device) for tensor in tensors)
        return x0, first, prompt


@dataclass(frozen=True)
class Encoded:
    """Puzzles of a data set made by `vrlvr data` and encoded by `vrlvr encode`; RL draws from those of its training split that
    are not kept for validation, in another order each time they have all been drawn.
    """

    config: Config
    codec: Codec
    device: torch.device
    data: EncodedData

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        return self.data.latent_shape

    def prompts(self, batch: Sequence[Puzzle]) -> Prompts:
        stems = self.data.stems_of(batch)
        return Prompts(list(batch), self.data.first(stems).to(self.device), self.data.prompt_of(stems).to(self.device))

    def training_set(self, batch: Sequence[Puzzle]) -> OnDisk:
        return OnDisk(self.data, self.data.stems_of(batch), self.device)

    def rl_puzzle(self, number: int) -> Puzzle:
        task, drawn = task_of(self.config, number)
        stems = self.data.stems("train", task)
        stems = stems[: len(stems) - self.config.data.num_val]
        turn, place = divmod(drawn, len(stems))
        rng = np.random.default_rng(np.random.SeedSequence([self.config.seed, _RL_ORDER_STREAM, turn]))
        assert self.config.data.dir is not None
        return self.data.puzzle(stems[rng.permutation(len(stems))[place]], Path(self.config.data.dir))
