"""What the compile gate compiles: every kernel as Wan2.2-TI2V-5B launches it, on tensors without memory."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vrlvr_kernels import layernorm_modulate

# Videos, tokens of 480x832 with 81 frames, modulation segments (the clean first frame and the rest), D.
B, N, S, D = 2, 8190, 2, 3072


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


NORM_NARROW = {"segment": "one int32 a token", "stats": "mean and 1 / std, two float32 a token"}
CASES = [Case("layernorm_modulate", _layernorm_modulate, NORM_NARROW)]
