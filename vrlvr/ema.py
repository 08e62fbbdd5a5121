"""Exponential moving average of a model's parameters."""

import copy
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)


def frozen_copy(model: Model) -> Model:
    """A copy without gradients; parameters that are not trained (the weights under LoRA) are shared, not copied."""
    shared = {id(p): p for p in model.parameters() if not p.requires_grad}
    return copy.deepcopy(model, shared).requires_grad_(False)


class Ema(Generic[Model]):
    """`model` holds the average; `update` moves it towards the trained one by 1 - decay. With decay 0 it is the trained one.

    Averages of half-precision parameters are kept in float32, else small steps would be lost in them; `model` has them rounded.
    """

    def __init__(self, model: Model, decay: float):
        self.decay = decay
        self.model: Model = frozen_copy(model) if decay > 0 else model
        pairs = zip(self.model.named_parameters(), model.parameters(), strict=True)
        self._float32 = {
            name: average.float() for (name, average), p in pairs if average is not p and average.dtype != torch.float32
        }

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """step counts from 1; early on the average is shorter, min(decay, (1 + step) / (10 + step)), to forget the start."""
        if self.model is model:
            return
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        whole: list[tuple[Tensor, Tensor]] = []
        for (name, average), value in zip(self.model.named_parameters(), model.parameters(), strict=True):
            if name in self._float32:  # one by one: float32 copies of all values would be a model more
                average.copy_(self._float32[name].lerp_(value.float(), weight))
            elif average is not value:
                whole.append((average.data, value.data))
        if whole:
            torch._foreach_lerp_([average for average, _ in whole], [value for _, value in whole], weight)

    def state_dict(self) -> dict[str, Any]:
        """That of `model`, less the rounding."""
        return self.model.state_dict() | self._float32

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes up what `state_dict` gave."""
        self.model.load_state_dict(state)
        for name, average in self._float32.items():
            average.copy_(state[name])
