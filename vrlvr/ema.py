"""Exponential moving average of a model's parameters."""

import copy
from typing import Generic, TypeVar

import torch
from torch import nn

Model = TypeVar("Model", bound=nn.Module)


class Ema(Generic[Model]):
    """`model` holds the average; `update` moves it towards the trained one by 1 - decay. With decay 0 it is the trained one."""

    def __init__(self, model: Model, decay: float):
        self.decay = decay
        self.model: Model = copy.deepcopy(model).requires_grad_(False) if decay > 0 else model

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """step counts from 1; early on the average is shorter, min(decay, (1 + step) / (10 + step)), to forget the start."""
        if self.model is model:
            return
        decay = min(self.decay, (1 + step) / (10 + step))
        averages = [p.data for p in self.model.parameters()]
        values = [p.data for p in model.parameters()]
        torch._foreach_lerp_(averages, values, 1 - decay)
