"""LayerNorm without weights, scaled and shifted by the row of a table that each token's segment names.

A video whose first frame is clean has two modulations, not one per token: the kernels read a table (B, S, D) and a segment
per token. The kernels also serve `gated_residual_layernorm_modulate`, which adds a gated update to the residual first.

Bytes a channel in bfloat16: forward 4 (read x, write the result), with a residual 8; backward 6, with a gated residual 12.
"""

from typing import Any

import torch
from torch import Tensor

from vrlvr_kernels.launch import next_power_of_2, num_programs, runs_triton
from vrlvr_kernels.optional_triton import tl, triton


def table_rows(table_BSD: Tensor, segment_N: Tensor) -> Tensor:
    """The row of every token: (B, N, D), or (B, 1, D) where one row serves them all."""
    return table_BSD if table_BSD.shape[1] == 1 else table_BSD.index_select(1, segment_N)


def layernorm_modulate_reference(
    x_BND: Tensor, shift_BSD: Tensor, scale_BSD: Tensor, segment_N: Tensor, eps: float
) -> Tensor:
    """See `layernorm_modulate`."""
    wide = x_BND if x_BND.dtype == torch.float64 else x_BND.float()
    normed = torch.nn.functional.layer_norm(wide, wide.shape[-1:], eps=eps)
    rows = table_rows(shift_BSD, segment_N), table_rows(scale_BSD, segment_N)
    return torch.addcmul(rows[0], normed, rows[1]).to(x_BND.dtype)


@triton.jit
def _layernorm_modulate_forward(
    x, update, gate, shift, scale, segment, new_x, out, stats,
    num_tokens, gate_b, gate_s, shift_b, shift_s, scale_b, scale_s, eps,
    D: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program a token: row of x (+ gate * update) -> new_x, its mean and 1 / std, and the modulated norm."""
    token, b = tl.program_id(0), tl.program_id(1)
    row = b.to(tl.int64) * num_tokens + token
    at = tl.load(segment + token).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < D
    value = tl.load(x + row * D + column, mask=inside, other=0.0).to(tl.float32)
    if update is not None:
        added = tl.load(update + row * D + column, mask=inside, other=0.0).to(tl.float32)
        if gate is not None:
            added *= tl.load(gate + b * gate_b + at * gate_s + column, mask=inside, other=0.0).to(tl.float32)
        stored = (value + added).to(new_x.dtype.element_ty)  # statistics are those of what is stored
        tl.store(new_x + row * D + column, stored, mask=inside)
        value = stored.to(tl.float32)
    factor = tl.load(scale + b * scale_b + at * scale_s + column, mask=inside, other=0.0).to(tl.float32)
    offset = tl.load(shift + b * shift_b + at * shift_s + column, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(value) / D
    centred = tl.where(inside, value - mean, 0.0)
    rstd = 1 / tl.sqrt_rn(tl.sum(centred * centred) / D + eps)
    tl.store(out + row * D + column, (centred * rstd * factor + offset).to(out.dtype.element_ty), mask=inside)
    tl.store(stats + row * 2, mean)
    tl.store(stats + row * 2 + 1, rstd)


@triton.jit
def _layernorm_modulate_backward(
    x, update, gate, scale, segment, stats, grad_x, grad_out,
    dx, dupdate, partial_shift, partial_scale, partial_gate,
    num_tokens, tokens_each, num_segments, gate_b, gate_s, scale_b, scale_s,
    D: tl.constexpr, BLOCK: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """One program a run of tokens of a video; the sums of its gradients over each segment make one row of partial sums.

    x: the rows that were normalised. Rows of another segment are masked, not branched over, so that loads of the next row
    can be in flight while this one is reduced.
    """
    part, b = tl.program_id(0), tl.program_id(1)
    begin = part * tokens_each
    end = tl.minimum(begin + tokens_each, num_tokens)
    tokens = begin + tl.arange(0, TOKENS)
    segments = tl.load(segment + tokens, mask=tokens < end, other=-1)
    column = tl.arange(0, BLOCK)
    inside = column < D
    for s in range(num_segments):
        factor = tl.load(scale + b * scale_b + s * scale_s + column, mask=inside, other=0.0).to(tl.float32)
        sum_shift = tl.zeros((BLOCK,), tl.float32)
        sum_scale = tl.zeros((BLOCK,), tl.float32)
        if gate is not None:
            sum_gate = tl.zeros((BLOCK,), tl.float32)
        present = tl.sum((segments == s).to(tl.int32)) > 0
        for token in tl.range(begin, tl.where(present, end, begin), num_stages=3):
            mine = inside & (tl.load(segment + token) == s)
            row = b.to(tl.int64) * num_tokens + token
            value = tl.load(x + row * D + column, mask=mine, other=0.0).to(tl.float32)
            dout = tl.load(grad_out + row * D + column, mask=mine, other=0.0).to(tl.float32)
            mean, rstd = tl.load(stats + row * 2), tl.load(stats + row * 2 + 1)
            normed = tl.where(mine, (value - mean) * rstd, 0.0)
            dnormed = dout * factor
            along_x = tl.sum(dnormed * normed) / D
            along_1 = tl.sum(dnormed) / D
            total = (dnormed - normed * along_x - along_1) * rstd
            sum_shift += dout
            sum_scale += dout * normed
            if grad_x is not None:
                total += tl.load(grad_x + row * D + column, mask=mine, other=0.0).to(tl.float32)
            if gate is not None:
                added = tl.load(update + row * D + column, mask=mine, other=0.0).to(tl.float32)
                sum_gate += tl.where(mine, total * added, 0.0)
                # Read here, from the nearest cache, rather than held: registers are what this kernel is short of.
                opening = tl.load(gate + b * gate_b + s * gate_s + column, mask=inside, other=0.0).to(tl.float32)
                tl.store(dupdate + row * D + column, (total * opening).to(dupdate.dtype.element_ty), mask=mine)
            tl.store(dx + row * D + column, total.to(dx.dtype.element_ty), mask=mine)
        place = ((b.to(tl.int64) * tl.num_programs(0) + part) * num_segments + s) * D + column
        tl.store(partial_shift + place, sum_shift, mask=inside)
        tl.store(partial_scale + place, sum_scale, mask=inside)
        if gate is not None:
            tl.store(partial_gate + place, sum_gate, mask=inside)


def rows_in_place(table_BSD: Any) -> tuple[Any, tuple[int, int]]:
    """A table (or None) whose channels lie side by side, with its strides of videos and segments (0 where expanded)."""
    if table_BSD is None:
        return None, (0, 0)
    table_BSD = table_BSD if table_BSD.stride(-1) == 1 else table_BSD.contiguous()
    return table_BSD, (table_BSD.stride(0), table_BSD.stride(1))


def check_shapes(x_BND: Tensor, segment_N: Tensor, tables: tuple[Tensor | None, ...]) -> None:
    """Raises ValueError for a table or a segment that does not fit x."""
    B, N, D = x_BND.shape
    if segment_N.shape != (N,) or segment_N.dtype != torch.int32:
        raise ValueError(f"segment is {segment_N.dtype} {tuple(segment_N.shape)}; it must be int32 ({N},), one a token")
    shapes = [tuple(table.shape) for table in tables if table is not None]
    S = shapes[-1][1] if len(shapes[-1]) == 3 else 0
    for shape in shapes:
        if shape != (B, S, D):
            raise ValueError(f"a table of shape {shape} must be ({B}, segments, {D}), like the others; expand it")


def norm_forward(
    x: Tensor, update: Tensor | None, gate: Tensor | None, shift: Tensor, scale: Tensor, segment: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """new_x (x itself without an update), the modulated norm, and (mean, 1 / std) float32 (B, N, 2)."""
    B, N, D = x.shape
    new_x = x if update is None else torch.empty_like(x)
    out, stats = torch.empty_like(x), torch.empty(B, N, 2, dtype=torch.float32, device=x.device)
    (gate, gate_strides), (shift, shift_strides), (scale, scale_strides) = map(rows_in_place, (gate, shift, scale))
    if x.numel():
        BLOCK = next_power_of_2(D)
        _layernorm_modulate_forward[(N, B)](
            x, update, gate, shift, scale, segment, new_x, out, stats,
            N, *gate_strides, *shift_strides, *scale_strides, eps, D, BLOCK, num_warps=_warps(BLOCK, 16),
        )  # fmt: skip
    return new_x, out, stats


def norm_backward(
    x: Tensor,
    update: Tensor | None,
    gate: Tensor | None,
    scale: Tensor,
    segment: Tensor,
    stats: Tensor,
    grad_x: Tensor | None,
    grad_out: Tensor,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """dx, dupdate (None without a gate: it is then dx), and float32 (2 or 3, B, S, D): dshift, dscale, with a gate dgate.

    x: as it was normalised.
    """
    B, N, D = x.shape
    S = scale.shape[1]
    dx, dupdate = torch.empty_like(x), None if gate is None else torch.empty_like(x)
    parts = max(1, min(N, -(-num_programs(x.device) // max(B, 1))))
    partials = torch.empty(2 if gate is None else 3, B, parts, S, D, dtype=torch.float32, device=x.device)
    (gate, gate_strides), (scale, scale_strides) = map(rows_in_place, (gate, scale))
    if not x.numel():
        partials.zero_()
    else:
        BLOCK, tokens_each = next_power_of_2(D), -(-N // parts)
        _layernorm_modulate_backward[(parts, B)](
            x, update, gate, scale, segment, stats, grad_x, grad_out,
            dx, dupdate, partials[0], partials[1], None if gate is None else partials[2],
            N, tokens_each, S, *gate_strides, *scale_strides,
            D, BLOCK, next_power_of_2(tokens_each), num_warps=_warps(BLOCK, 8),
        )  # fmt: skip
    return dx, dupdate, partials.sum(2)


def _warps(block: int, channels: int) -> int:
    """Warps for that many channels a thread: in bfloat16, 8 channels are one access of 16 bytes."""
    return max(1, min(16, block // (32 * channels)))


def _forward(x: Tensor, shift: Tensor, scale: Tensor, segment: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return norm_forward(x.contiguous(), None, None, shift, scale, segment, eps)[1:]


def _backward(x: Tensor, scale: Tensor, segment: Tensor, stats: Tensor, grad_out: Tensor) -> tuple[Tensor, Tensor]:
    dx, _, dtables = norm_backward(x.contiguous(), None, None, scale, segment, stats, None, grad_out.contiguous())
    return dx, dtables


forward_op = torch.library.custom_op("vrlvr::layernorm_modulate", mutates_args=())(_forward)
backward_op = torch.library.custom_op("vrlvr::layernorm_modulate_backward", mutates_args=())(_backward)


@forward_op.register_fake
def _(x, shift, scale, segment, eps):
    return torch.empty_like(x, memory_format=torch.contiguous_format), x.new_empty(*x.shape[:2], 2, dtype=torch.float32)


@backward_op.register_fake
def _(x, scale, segment, stats, grad_out):
    dtables = scale.new_empty(2, *scale.shape, dtype=torch.float32)
    return torch.empty_like(x, memory_format=torch.contiguous_format), dtables


def _save(ctx, inputs, output):
    x, _, scale, segment, _ = inputs
    ctx.save_for_backward(x, scale, segment, output[1])
    ctx.dtypes = inputs[1].dtype, scale.dtype


def _gradients(ctx, grad_out, _):
    dx, (dshift, dscale) = backward_op(*ctx.saved_tensors, grad_out)
    return dx, dshift.to(ctx.dtypes[0]), dscale.to(ctx.dtypes[1]), None, None


forward_op.register_autograd(_gradients, setup_context=_save)


def layernorm_modulate(x_BND: Tensor, shift_BSD: Tensor, scale_BSD: Tensor, segment_N: Tensor, eps: float) -> Tensor:
    """LayerNorm(x) * scale + shift, in x's dtype; statistics and modulation in float32.

    shift_BSD, scale_BSD: a row per segment; for modulation "1 + scale", add the 1 to the table. Expanded
    tables (stride 0) are read in place. segment_N: int32 in [0, S), the same for every video. Raises ValueError for shapes
    that do not fit; a segment out of range is not checked (it would cost a synchronisation) and reads other memory.
    """
    check_shapes(x_BND, segment_N, (shift_BSD, scale_BSD))
    if not runs_triton(x_BND):
        return layernorm_modulate_reference(x_BND, shift_BSD, scale_BSD, segment_N, eps)
    return forward_op(x_BND, shift_BSD, scale_BSD, segment_N, eps)[0]
