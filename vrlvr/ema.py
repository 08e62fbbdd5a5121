"""Exponential moving average of a model's parameters."""

import copy

import torch
from torch import nn


class Ema:
    """`model` holds the average; `update` moves it towards the trained one by 1 - decay."""

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.model = copy.deepcopy(model).requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """step counts from 1; early on the average is shorter, min(decay, (1 + step) / (10 + step)), to forget the start."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averages, values = list(self.model.parameters()), [p.detach() for p in model.parameters()]
        torch._foreach_lerp_(averages, values, 1 - decay)
