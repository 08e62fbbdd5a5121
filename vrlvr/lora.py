"""LoRA (Hu et al. 2021): a layer's W x + b becomes W x + b + (alpha / rank) B A x, and only A and B are trained.

The library is peft; its layer is replaced for two reasons.
- Precision: adapters are float32 parameters, cast to the compute dtype where they are used. That needs 16 bytes a trained
  parameter (weight, gradient, two moments, 4 each), while adapters in bfloat16 with float32 masters need 18; and what
  updates or averages them needs no masters. peft casts x to float32 instead, which would make every product a float32 one.
- Traffic: the update is added by the matrix product that makes it (`addmm`), so the layer's output is read and written
  once more, not three times.

No reference policy needs a second copy of the model: RL's has the adapters that it starts from (`vrlvr.ema.frozen_copy` shares
the rest), and the pretrained model is this one without them (`adapter_off`).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from vrlvr.errors import UserError
from vrlvr.models.dit import Float32Linear, WanTransformer

try:
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners import lora
except ImportError as error:
    raise UserError(f"LoRA needs the package peft ({error}); install it with pip install vrlvr[wan]") from error

_ADAPTER = "default"


class _LowRankLinear(lora.Linear):
    """peft's layer around a linear one, computed in the linear layer's dtype."""

    base_layer: nn.Linear

    @property
    def a(self) -> Tensor:
        """A, float32 (rank, in)."""
        return cast(Tensor, self.lora_A[_ADAPTER].weight)

    @property
    def b(self) -> Tensor:
        """B, float32 (out, rank)."""
        return cast(Tensor, self.lora_B[_ADAPTER].weight)

    @property
    def scale(self) -> float:
        return self.scaling[_ADAPTER]

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y = self.base_layer(x)
        low = functional.linear(x, self.a.to(x.dtype)).flatten(0, -2)
        return torch.addmm(y.flatten(0, -2), low, self.b.to(x.dtype).T, alpha=self.scale).view_as(y)


def add_lora(dit: WanTransformer, rank: int, alpha: float, targets: Sequence[str], seed: int) -> None:
    """Freezes the model and gives the targeted linear layers of its blocks adapters, the only parameters trained from then on.

    targets: ends of module names, such as to_q, attn1.to_q or ffn.net.2. A is uniform within 1 / sqrt(in), as in peft, and a
    function of the seed alone, whatever the device; B is zero, so the model computes what it did before.
    Raises UserError for a target that no layer has, or a rank or alpha that is not positive.
    """
    assert not _layers(dit), "the model has adapters already"
    if rank < 1 or alpha <= 0:
        raise UserError(f"lora.rank={rank} and lora.alpha={alpha} must be positive; use rank 64 and alpha 64, or so")
    names = _targeted(dit, targets)
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=names)  # type: ignore[arg-type]  # alpha may be any real
    config._register_custom_module({nn.Linear: _LowRankLinear})
    dit.requires_grad_(False)
    inject_adapter_in_model(config, dit, _ADAPTER, low_cpu_mem_usage=True)  # without values: they are made here
    generator = torch.Generator().manual_seed(seed)
    for layer in _layers(dit).values():
        weight = layer.base_layer.weight
        out_dim, in_dim = weight.shape
        a = nn.init.kaiming_uniform_(torch.empty(rank, in_dim), a=math.sqrt(5), generator=generator)
        for adapters, value in ((layer.lora_A, a), (layer.lora_B, torch.zeros(out_dim, rank))):
            adapter = Float32Linear(value.shape[1], value.shape[0], bias=False, device="meta")
            adapter.weight = nn.Parameter(value.to(weight.device))
            adapters[_ADAPTER] = adapter


@contextmanager
def adapter_off(dit: WanTransformer) -> Iterator[None]:
    """The model as it was before `add_lora`, bit for bit, without gradients.

    The wrapped layers themselves stand in their places for the time, so fused projections work as if there never were adapters.
    A text context holds for the model that made it: with the adapters off, one that was made with them is another model's.
    """
    layers = _layers(dit)
    with torch.no_grad():
        _place(dit, {name: layer.base_layer for name, layer in layers.items()})
        try:
            yield
        finally:
            _place(dit, layers)


def lora_state(dit: WanTransformer) -> dict[str, Tensor]:
    """The adapters, {"blocks.0.attn1.to_q.lora_A.weight": (rank, in), ...lora_B.weight: (out, rank)}; no copies."""
    layers = _layers(dit).items()
    return {f"{name}.lora_{side}.weight": w.detach() for name, x in layers for side, w in (("A", x.a), ("B", x.b))}


def load_lora_state(dit: WanTransformer, state: Mapping[str, Tensor]) -> None:
    """Takes up what `lora_state` gave. Raises UserError if it is of other layers, or of another rank."""
    own = lora_state(dit)
    if wrong := sorted(own.keys() ^ state.keys()):
        raise UserError(
            f"adapters of {len(state)} tensors do not fit the model's {len(own)}, which differ in {wrong[0]}"
            f"{' and others' if len(wrong) > 1 else ''}; use the lora.targets that they were trained with"
        )
    for name, weight in own.items():
        if state[name].shape != weight.shape:
            raise UserError(
                f"{name} has shape {tuple(state[name].shape)}, the model's {tuple(weight.shape)}; use the model.lora.rank "
                "that it was trained with"
            )
    for name, weight in own.items():
        weight.copy_(state[name])


@torch.no_grad()
def merge_lora(dit: WanTransformer) -> None:
    """Adds every adapter to its layer's weight, in float32 before it is rounded to the weight's dtype, and removes it.

    In bfloat16 an update smaller than 1/512 of a weight is lost in it: merge in float32 where that counts.
    """
    layers = _layers(dit)
    for layer in layers.values():
        weight = layer.base_layer.weight
        weight.copy_(torch.addmm(weight.float(), layer.b, layer.a, alpha=layer.scale))
    _place(dit, {name: layer.base_layer for name, layer in layers.items()})


def _layers(dit: WanTransformer) -> dict[str, _LowRankLinear]:
    return {name: module for name, module in dit.named_modules() if isinstance(module, _LowRankLinear)}


def _place(dit: WanTransformer, modules: Mapping[str, nn.Module]) -> None:
    for name, module in modules.items():
        dit.set_submodule(name, module)


def _targeted(dit: WanTransformer, targets: Sequence[str]) -> list[str]:
    """Names of the targeted layers."""
    linear = [f"blocks.{name}" for name, module in dit.blocks.named_modules() if type(module) is nn.Linear]
    known = dict.fromkeys(name.split(".", 2)[2] for name in linear)
    unknown = [target for target in targets if not any(f".{name}".endswith(f".{target}") for name in known)]
    if unknown or not targets:
        raise UserError(
            f"lora.targets={list(targets)} must name layers of the transformer's blocks, and {', '.join(unknown) or 'nothing'} "
            f"is none; those that exist are {', '.join(known)}, or ends of these"
        )
    return [name for name in linear if any(name.endswith(f".{target}") for target in targets)]
