"""GELU, tanh approximation, of x + bias: the feed-forward's activation, with the first linear layer's bias in it.

With u = sqrt(2 / pi) (v + 0.044715 v^3) the definition v (1 + tanh u) / 2 equals v / (1 + exp(-2 u)). The kernels compute
that with exp2 and, for the quotient, the square of rsqrt: in the GPU's flush-to-zero forms these are one instruction each,
where exp and a division also guard against subnormals, 12 instructions an element instead of 20 in the forward pass.
A finite v never gives a NaN: where exp2 overflows, rsqrt(infinity) = 0 is the limit.

Bytes a channel in bfloat16: forward 4, backward 6; the backward pass recomputes the activation from x and bias, and the
bias gradient comes out of it.
"""

import math

import torch
from torch import Tensor

from vrlvr_kernels.launch import next_power_of_2, num_programs, runs_triton
from vrlvr_kernels.optional_triton import tl, triton

# exp(-2 u) = exp2(-v (LINEAR + CUBIC v^2))
LINEAR = math.sqrt(8 / math.pi) / math.log(2)
CUBIC = LINEAR * 0.044715
LOG_2 = math.log(2)

# 4 warps take 1024 columns, so that each thread loads 16 bytes of a row (bfloat16) and a sum over rows stays in it. Rows
# of a tile are loads in flight: forward 4 at 40 registers a thread, backward 2 of x and 2 of the gradient at 56 (4 would
# take 125). Both leave room for 8 programs a multiprocessor, which hide the latency of memory from each other.
COLUMNS = 1024
FORWARD_ROWS = 4
BACKWARD_ROWS = 2
PROGRAMS_PER_MULTIPROCESSOR = 8


def gelu_tanh_reference(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """See `gelu_tanh`."""
    value = x if x.dtype == torch.float64 else x.float()
    value = value if bias is None else value + bias
    return torch.nn.functional.gelu(value, approximate="tanh").to(x.dtype)


@triton.jit
def _gelu_tanh_forward(
    x, bias, out, num_rows, stride,
    F: tl.constexpr, LINEAR: tl.constexpr, CUBIC: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One program a tile; those of the same rows are neighbours. stride: elements between rows of x."""
    tiles: tl.constexpr = (F + COLUMNS - 1) // COLUMNS
    row = (tl.program_id(0) // tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(0) % tiles * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside = (row < num_rows) & (column < F)
    value = tl.load(x + row * stride + column, mask=inside, other=0.0).to(tl.float32)
    if bias is not None:
        value += tl.load(bias + column, mask=column < F, other=0.0).to(tl.float32)
    root = tl.rsqrt(1 + tl.exp2(-value * (LINEAR + CUBIC * (value * value))))
    tl.store(out + row * F + column, (value * root * root).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _gelu_tanh_backward(
    x, bias, grad_out, dx, partial, num_rows, stride,
    F: tl.constexpr, LINEAR: tl.constexpr, CUBIC: tl.constexpr, LOG_2: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One program the tiles of some columns, every num_programs(1)-th; their sums make one row of partial.

    d/dv v s(z) = s + v z' s (1 - s), with the sigmoid s and z = 2 u.
    """
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    if bias is not None:
        shift = tl.load(bias + column, mask=column < F, other=0.0).to(tl.float32)
        total = tl.zeros((1, COLUMNS), tl.float32)
    first = tl.program_id(1).to(tl.int64) * ROWS
    while first < num_rows:
        row = first + tl.arange(0, ROWS)[:, None]
        inside = (row < num_rows) & (column < F)
        value = tl.load(x + row * stride + column, mask=inside, other=0.0).to(tl.float32)
        grad = tl.load(grad_out + row * F + column, mask=inside, other=0.0).to(tl.float32)
        if bias is not None:
            value += shift
        # Beyond 16 s is exactly 0 or 1 and nothing changes any more, but infinity * (1 - s) would be a NaN.
        value = tl.minimum(tl.maximum(value, -16.0), 16.0)
        square = value * value
        root = tl.rsqrt(1 + tl.exp2(-value * (LINEAR + CUBIC * square)))
        sigmoid = root * root
        slope = value * (LINEAR * LOG_2 + 3 * CUBIC * LOG_2 * square)
        grad *= sigmoid + sigmoid * (slope * (1 - sigmoid))
        tl.store(dx + row * F + column, grad.to(dx.dtype.element_ty), mask=inside)
        if bias is not None:
            total += tl.sum(grad, axis=0, keep_dims=True)
        first += tl.num_programs(1) * ROWS
    if bias is not None:
        tl.store(partial + tl.program_id(1).to(tl.int64) * F + column, total, mask=column < F)


def _rows(x: Tensor) -> Tensor:
    """(..., F) -> (rows, F), in place where rows lie evenly apart and their channels side by side."""
    flat = x.reshape(-1, x.shape[-1])
    return flat if flat.stride(-1) == 1 else flat.contiguous()


def _columns_and_warps(F: int) -> tuple[int, int]:
    """Columns of a tile, and a warp for every 256 of them, so that a thread holds 8 side by side."""
    columns = min(COLUMNS, next_power_of_2(F))
    return columns, max(1, columns // 256)


def _forward(x: Tensor, bias: Tensor | None) -> Tensor:
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    if x.numel():
        rows, bias = _rows(x), None if bias is None else bias.contiguous()
        num_rows, F = rows.shape
        columns, warps = _columns_and_warps(F)
        _gelu_tanh_forward[(triton.cdiv(F, columns) * triton.cdiv(num_rows, FORWARD_ROWS),)](
            rows, bias, out, num_rows, rows.stride(0), F, LINEAR, CUBIC, FORWARD_ROWS, columns, num_warps=warps
        )
    return out


def _backward(x: Tensor, bias: Tensor | None, grad_out: Tensor) -> tuple[Tensor, Tensor]:
    """dx and, in float32, dbias; this is empty without a bias."""
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    F = x.shape[-1]
    if not x.numel():
        return dx, torch.zeros(0 if bias is None else F, dtype=torch.float32, device=x.device)
    rows, bias = _rows(x), None if bias is None else bias.contiguous()
    columns, warps = _columns_and_warps(F)
    tiles = triton.cdiv(F, columns), triton.cdiv(len(rows), BACKWARD_ROWS)
    programs = max(1, min(tiles[1], PROGRAMS_PER_MULTIPROCESSOR * num_programs(x.device) // tiles[0]))
    partial = torch.empty(programs, 0 if bias is None else F, dtype=torch.float32, device=x.device)
    _gelu_tanh_backward[(tiles[0], programs)](
        rows, bias, grad_out.contiguous(), dx, partial, len(rows), rows.stride(0),
        F, LINEAR, CUBIC, LOG_2, BACKWARD_ROWS, columns, num_warps=warps,
    )  # fmt: skip
    return dx, partial.sum(0)


forward_op = torch.library.custom_op("vrlvr::gelu_tanh", mutates_args=())(_forward)
backward_op = torch.library.custom_op("vrlvr::gelu_tanh_backward", mutates_args=())(_backward)


@forward_op.register_fake
def _(x, bias):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@backward_op.register_fake
def _(x, bias, grad_out):
    dbias = x.new_empty(0 if bias is None else x.shape[-1], dtype=torch.float32)
    return torch.empty_like(x, memory_format=torch.contiguous_format), dbias


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _gradients(ctx, grad_out):
    x, bias = ctx.saved_tensors
    dx, dbias = backward_op(x, bias, grad_out)
    return dx, None if bias is None else dbias.to(bias.dtype)


forward_op.register_autograd(_gradients, setup_context=_save)


def gelu_tanh(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """gelu(x + bias) by its tanh approximation, in x's dtype; arithmetic in float32. x: (..., F). bias: (F,), of any dtype.

    Keeps only x and bias for the backward pass. Raises ValueError for a bias that does not fit.
    """
    if bias is not None and bias.shape != x.shape[-1:]:
        raise ValueError(f"bias of shape {tuple(bias.shape)} must be ({x.shape[-1]},), one a channel of x")
    if not runs_triton(x):
        return gelu_tanh_reference(x, bias)
    return forward_op(x, bias)
