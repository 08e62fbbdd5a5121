"""What the compile gate compiles: every kernel as Wan2.2-TI2V-5B launches it, on tensors without memory."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vrlvr_kernels import gated_residual_layernorm_modulate, gelu_tanh, layernorm_modulate

# Videos, tokens of 480x832 with 81 frames, modulation segments (the clean first frame and the rest), model and inner width.
B, N, S, D, F = 2, 8190, 2, 3072, 14336


@dataclass(frozen=True)
class Case:
    """launch: calls the raw launching functions of one op. narrow: names of pointers, as the kernel's source has them, that may
    be accessed in less than 16 bytes, each with the reason."""

    name: str
    launch: Callable[[], None]
    narrow: Mapping[str, str] = field(default_factory=dict)


def bf16(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.bfloat16, device="meta")


def f32(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device="meta")


def int32(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.int32, device="meta")


def _layernorm_modulate() -> None:
    layernorm_modulate._forward(bf16(B, N, D), f32(B, S, D), f32(B, S, D), int32(N), 1e-6)
    layernorm_modulate._backward(bf16(B, N, D), f32(B, S, D), int32(N), f32(B, N, 2), bf16(B, N, D))


def _boundary(gate: Tensor | None, shift: Tensor, scale: Tensor) -> None:
    x = bf16(B, N, D)
    gated_residual_layernorm_modulate._forward(x, x, gate, shift, scale, int32(N), 1e-6)
    update = None if gate is None else x
    gated_residual_layernorm_modulate._backward(x, update, gate, scale, int32(N), f32(B, N, 2), x, x)


def _boundary_with_gate() -> None:
    affine = f32(D).expand(B, S, D)
    _boundary(f32(B, S, D), affine, affine)


def _boundary_without_gate() -> None:
    _boundary(None, f32(B, S, D), f32(B, S, D))


def _gelu_tanh() -> None:
    x, bias = bf16(B, N, F), bf16(F)
    gelu_tanh._forward(x, bias)
    gelu_tanh._backward(x, bias, x)


NORM_NARROW = {"segment": "one int32 a token", "stats": "mean and 1 / std, two float32 a token"}
CASES = [
    Case("layernorm_modulate", _layernorm_modulate, NORM_NARROW),
    Case("boundary, gate", _boundary_with_gate, NORM_NARROW),
    Case("boundary, no gate", _boundary_without_gate, NORM_NARROW),
    Case("gelu_tanh", _gelu_tanh),
]
