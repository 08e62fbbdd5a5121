"""The boundary between two parts of a block: the residual takes a gated update, and the next part's norm follows at once.

The residual is read once and written once, instead of by an addition, a gate and a norm of their own. Without a gate and
with an affine norm's weight and bias as the table, it is the boundary before cross-attention. The kernels are those of
`layernorm_modulate`. Bytes a channel in bfloat16: forward 8, backward 12 (8 without a gate).
"""

import torch
from torch import Tensor

from vrlvr_kernels.launch import runs_triton
from vrlvr_kernels.layernorm_modulate import (
    check_shapes,
    layernorm_modulate_reference,
    norm_backward,
    norm_forward,
    table_rows,
)


def gated_residual_layernorm_modulate_reference(
    x_BND: Tensor,
    update_BND: Tensor,
    gate_BSD: Tensor | None,
    shift_BSD: Tensor,
    scale_BSD: Tensor,
    segment_N: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """See `gated_residual_layernorm_modulate`."""
    new_x = gated_residual_reference(x_BND, update_BND, gate_BSD, segment_N)
    return new_x, layernorm_modulate_reference(new_x, shift_BSD, scale_BSD, segment_N, eps)


def gated_residual_reference(x_BND: Tensor, update_BND: Tensor, gate_BSD: Tensor | None, segment_N: Tensor) -> Tensor:
    """x + gate * update, in x's dtype."""
    if gate_BSD is None:
        return x_BND + update_BND
    if x_BND.dtype == torch.float64:
        return torch.addcmul(x_BND, update_BND, table_rows(gate_BSD, segment_N))
    return torch.addcmul(x_BND.float(), update_BND.float(), table_rows(gate_BSD, segment_N)).to(x_BND.dtype)


def _forward(
    x: Tensor,
    update: Tensor,
    gate: Tensor | None,
    shift: Tensor,
    scale: Tensor,
    segment: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return norm_forward(x.contiguous(), update.contiguous(), gate, shift, scale, segment, eps)


def _backward(
    new_x: Tensor,
    update: Tensor | None,
    gate: Tensor | None,
    scale: Tensor,
    segment: Tensor,
    stats: Tensor,
    grad_x: Tensor,
    grad_out: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    dx, dupdate, dtables = norm_backward(
        new_x.contiguous(),
        None if update is None else update.contiguous(),
        gate,
        scale,
        segment,
        stats,
        grad_x.contiguous(),
        grad_out.contiguous(),
    )
    return dx, dx.new_empty(0) if dupdate is None else dupdate, dtables  # a custom operator can't return None


forward_op = torch.library.custom_op("vrlvr::gated_residual_layernorm_modulate", mutates_args=())(_forward)
backward_op = torch.library.custom_op("vrlvr::gated_residual_layernorm_modulate_backward", mutates_args=())(_backward)


@forward_op.register_fake
def _(x, update, gate, shift, scale, segment, eps):
    new_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    return new_x, torch.empty_like(new_x), x.new_empty(*x.shape[:2], 2, dtype=torch.float32)


@backward_op.register_fake
def _(new_x, update, gate, scale, segment, stats, grad_x, grad_out):
    dx = torch.empty_like(new_x, memory_format=torch.contiguous_format)
    dtables = scale.new_empty(2 if gate is None else 3, *scale.shape, dtype=torch.float32)
    return dx, dx.new_empty(0) if gate is None else torch.empty_like(dx), dtables


def _save(ctx, inputs, output):
    _, update, gate, shift, scale, segment, _ = inputs
    new_x, _, stats = output
    ctx.save_for_backward(new_x, None if gate is None else update, gate, scale, segment, stats)
    ctx.dtypes = shift.dtype, scale.dtype


def _gradients(ctx, grad_x, grad_out, _):
    saved = ctx.saved_tensors  # asked for once: under checkpointing a second time is an error
    gate = saved[2]
    dx, dupdate, dtables = backward_op(*saved, grad_x, grad_out)
    dshift, dscale = dtables[0].to(ctx.dtypes[0]), dtables[1].to(ctx.dtypes[1])
    if gate is None:
        return dx, dx, None, dshift, dscale, None, None
    return dx, dupdate, dtables[2].to(gate.dtype), dshift, dscale, None, None


forward_op.register_autograd(_gradients, setup_context=_save)


def gated_residual_layernorm_modulate(
    x_BND: Tensor,
    update_BND: Tensor,
    gate_BSD: Tensor | None,
    shift_BSD: Tensor,
    scale_BSD: Tensor,
    segment_N: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """new_x = x + gate * update, and LayerNorm(new_x) * scale + shift, both in x's dtype; arithmetic in float32.

    gate_BSD None: a plain residual. Tables and segments as in `layernorm_modulate`, all with the same number of segments;
    for a norm with weight and bias, expand these to (B, S, D) (stride 0). Raises ValueError for shapes that do not fit.
    """
    check_shapes(x_BND, segment_N, (gate_BSD, shift_BSD, scale_BSD))
    if update_BND.shape != x_BND.shape:
        raise ValueError(f"an update of shape {tuple(update_BND.shape)} must have x's shape {tuple(x_BND.shape)}")
    if not runs_triton(x_BND):
        return gated_residual_layernorm_modulate_reference(
            x_BND, update_BND, gate_BSD, shift_BSD, scale_BSD, segment_N, eps
        )
    return forward_op(x_BND, update_BND, gate_BSD, shift_BSD, scale_BSD, segment_N, eps)[:2]
