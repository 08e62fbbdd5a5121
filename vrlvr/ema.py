"""Exponential moving average of a model's parameters."""

import copy
from typing import Generic, TypeVar

import torch
from torch import nn

Model = TypeVar("Model", bound=nn.Module)


def frozen_copy(model: Model) -> Model:
    """A copy without gradients; parameters that are not trained (the weights under LoRA) are shared, not copied."""
    shared = {id(p): p for p in model.parameters() if not p.requires_grad}
    return copy.deepcopy(model, shared).requires_grad_(False)


class Ema(Generic[Model]):
    """`model` holds the average; `update` moves it towards the trained one by 1 - decay. With decay 0 it is the trained one."""

    def __init__(self, model: Model, decay: float):
        self.decay = decay
        self.model: Model = frozen_copy(model) if decay > 0 else model

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """step counts from 1; early on the average is shorter, min(decay, (1 + step) / (10 + step)), to forget the start."""
        if self.model is model:
            return
        decay = min(self.decay, (1 + step) / (10 + step))
        pairs = zip(self.model.parameters(), model.parameters(), strict=True)
        moving = [(average.data, value.data) for average, value in pairs if average is not value]
        torch._foreach_lerp_([average for average, _ in moving], [value for _, value in moving], 1 - decay)
