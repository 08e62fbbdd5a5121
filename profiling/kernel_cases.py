"""What the compile gate compiles: every kernel as Wan2.2-TI2V-5B launches it, on tensors without memory."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from vrlvr_kernels import (
    gated_residual_layernorm_modulate,
    gelu_tanh,
    grpo_loss,
    layernorm_modulate,
    philox,
    qk_norm_rope,
    sde_step,
)

# Videos, tokens of 480x832 with 81 frames, text tokens, modulation segments (the clean first frame and the rest), the model's
# width, heads and inner width.
B, N, L, S, D, H, F = 2, 8190, 512, 2, 3072, 24, 14336
LATENTS = 48 * 21 * 30 * 52  # elements of a video's latents


@dataclass(frozen=True)
class Case:
    """launch: calls the raw launching functions of one op. narrow: what may be accessed in less than 16 bytes, by the name with
    which its address starts in the kernel's source, and why."""

    name: str
    launch: Callable[[], None]
    narrow: Mapping[str, str] = field(default_factory=dict)


def _meta(dtype: torch.dtype) -> Callable[..., Tensor]:
    return partial(torch.empty, dtype=dtype, device="meta")


bf16, f32, f64 = _meta(torch.bfloat16), _meta(torch.float32), _meta(torch.float64)
boolean, int32, int64 = _meta(torch.bool), _meta(torch.int32), _meta(torch.int64)


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


def _self_attention() -> None:
    packed, weights, rope, part = bf16(B, N, 3 * D), [bf16(D), bf16(D)], f32(N, D // H), bf16(B, N, H, D // H)
    qk_norm_rope._forward(packed, weights, rope, H, 1e-6)
    qk_norm_rope._backward(packed, weights, rope, H, 1e-6, [part, part, part])


def _cross_attention() -> None:
    """Queries of the tokens; keys and values of the text, and so few rows."""
    for x, parts in ((bf16(B, N, D), [bf16(B, N, H, D // H)]), (bf16(B, L, 2 * D), [bf16(B, L, H, D // H)] * 2)):
        qk_norm_rope._forward(x, [bf16(D)], None, H, 1e-6)
        qk_norm_rope._backward(x, [bf16(D)], None, H, 1e-6, parts)


def _sde_step(x: Tensor, mask: Tensor | None) -> None:
    for std in (0.0, 0.5):
        sde_step._sde_step(x, x, 1.0, -0.1, std, 0, int64(B), 3, mask)


def _grpo_loss(x: Tensor, optional: bool) -> None:
    """optional: with all that may be left out: old log-probs, KL, inactive samples, a mask."""
    v_ref, mask = (x, boolean(LATENTS)) if optional else (None, None)
    old, active = (f32(B), boolean(B)) if optional else (None, None)
    grpo_loss._forward(x, x, x, f32(B), f64(B, 3), 0.2, old, v_ref, 0.1, active, mask)
    grpo_loss._backward(x, x, x, v_ref, mask, f64(B, 3), f32(2, B), f32(B))


NORM_NARROW = {"segment": "one int32 a token", "stats": "mean and 1 / std, two float32 a token"}
LATENT_NARROW = {
    "mask": "one byte an element: 8 of a thread",
    **dict.fromkeys(("samples", "advantage", "active", "old_log_prob", "grad_loss"), "one value a sample"),
    **dict.fromkeys(("loss", "logged", "factors", "log_prob", "count"), "a few values a sample"),
    "at": "a, b and std of a sample",
    "philox_4x32": "the low half of the sample number",
    **dict.fromkeys(("partial", "partial_kl"), "one sum a program, 0.05 % of the bytes"),
}
CASES = [
    Case("layernorm_modulate", _layernorm_modulate, NORM_NARROW),
    Case("boundary, gate", _boundary_with_gate, NORM_NARROW),
    Case("boundary, no gate", _boundary_without_gate, NORM_NARROW),
    Case("qk_norm_rope, self", _self_attention),
    Case("qk_norm_rope, cross", _cross_attention),
    Case("gelu_tanh", _gelu_tanh),
    Case("normal", lambda: philox._normal(0, 1, int64(B), 3, LATENTS), {"samples": "one value a sample"}),
    Case("sde_step, mask", lambda: _sde_step(bf16(B, LATENTS), boolean(LATENTS)), LATENT_NARROW),
    Case("sde_step, float32", lambda: _sde_step(f32(B, LATENTS), None), LATENT_NARROW),
    Case("grpo_loss, all", lambda: _grpo_loss(bf16(B, LATENTS), True), LATENT_NARROW),
    Case("grpo_loss, float32", lambda: _grpo_loss(f32(B, LATENTS), False), LATENT_NARROW),
]
