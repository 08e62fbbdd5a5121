"""Queries, keys and values out of one fused linear layer: RMSNorm of q and k over all heads, 3D rotary embedding, own tensors.

Shapes: B videos, N tokens, W packed channels, D = H * E: H heads of E channels; P programs, R rows (tokens of all videos).

Values are copied, which costs 8 bytes a channel in bfloat16 (forward and backward): in return the backward pass writes dq,
dk and dv side by side as the linear layer's gradient. As a view v would cost nothing, but autograd's concatenation of the
three 12. Bytes a channel: forward 4 for each part; backward 6 for a normed part and 4 for the values.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from vrlvr_kernels.launch import next_power_of_2, num_programs, runs_triton
from vrlvr_kernels.optional_triton import tl, triton

# A row of D channels is read as tiles of whole heads with 1024 channels, 8 a thread, which is 16 bytes in bfloat16. Three of
# them make the 5B model's 3072, where one block would pad to 4096: a quarter of the registers for nothing.
TILE = 1024
CHANNELS_PER_THREAD = 8
# Programs that sum weight gradients over many rows: at 128 registers a thread four share a multiprocessor. Each has a row of
# x and of the gradient in flight, and while one reduces the others load; a prefetch of the next row would take the registers
# of one of them. For the same reason the weights are read again for every row: that is from cache.
PROGRAMS_PER_MULTIPROCESSOR = 4


def qk_norm_rope_reference(
    packed_BNW: Tensor, weights: Sequence[Tensor], rope_NE: Tensor | None, num_heads: int, eps: float
) -> tuple[Tensor, ...]:
    """See `qk_norm_rope`; but values stay a view."""
    D = len(weights[0])
    wide = torch.float64 if packed_BNW.dtype == torch.float64 else torch.float32
    parts = list(packed_BNW.split(D, dim=-1))
    for i, weight in enumerate(weights):
        normed = torch.nn.functional.rms_norm(parts[i].to(wide), (D,), weight.to(wide), eps)
        if rope_NE is not None:
            turn_N1P = torch.view_as_complex(rope_NE.unflatten(-1, (-1, 2))).unsqueeze(1)
            pairs = torch.view_as_complex(normed.unflatten(-1, (num_heads, -1, 2)))
            normed = torch.view_as_real(pairs * turn_N1P).flatten(2)
        parts[i] = normed.to(packed_BNW.dtype)
    return tuple(part.unflatten(-1, (num_heads, -1)) for part in parts)


@triton.jit
def _place(i, H: tl.constexpr, E: tl.constexpr, HEADS: tl.constexpr, BLOCK_E: tl.constexpr):
    """Offsets in a row of D channels of tile i, (HEADS, BLOCK_E), and which of them are inside."""
    head = i * HEADS + tl.arange(0, HEADS)[:, None]
    channel = tl.arange(0, BLOCK_E)[None, :]
    return head * E + channel, (head < H) & (channel < E)


@triton.jit
def _load_tile(row, i, H: tl.constexpr, E: tl.constexpr, HEADS: tl.constexpr, BLOCK_E: tl.constexpr):
    at, inside = _place(i, H, E, HEADS, BLOCK_E)
    return tl.load(row + at, mask=inside, other=0.0)


@triton.jit
def _load(row, H: tl.constexpr, E: tl.constexpr, HEADS: tl.constexpr, BLOCK_E: tl.constexpr):
    """All tiles of a row of D channels, as they are stored."""
    tiles = ()
    for i in tl.static_range((H + HEADS - 1) // HEADS):
        tiles += (_load_tile(row, i, H, E, HEADS, BLOCK_E),)  # type: ignore[assignment]
    return tiles


@triton.jit
def _store(row, tile, i, H: tl.constexpr, E: tl.constexpr, HEADS: tl.constexpr, BLOCK_E: tl.constexpr):
    at, inside = _place(i, H, E, HEADS, BLOCK_E)
    tl.store(row + at, tile.to(row.dtype.element_ty), mask=inside)


@triton.jit
def _load_rope(row, E: tl.constexpr, HEADS: tl.constexpr, BLOCK_E: tl.constexpr):
    """Cosines and sines of a token, (HEADS, BLOCK_E / 2) each, the same for every head: laid out as a tile's pairs are."""
    channel = tl.zeros((HEADS, 1), tl.int32) + tl.arange(0, BLOCK_E)[None, :]
    return tl.split(tl.reshape(tl.load(row + channel, mask=channel < E, other=0.0), (HEADS, BLOCK_E // 2, 2)))


@triton.jit
def _rotate(tile, cos, sin, HEADS: tl.constexpr, BLOCK_E: tl.constexpr):
    """Neighbours (2i, 2i+1) as complex numbers, times cos + i sin: in registers, since one thread holds both."""
    real, imaginary = tl.split(tl.reshape(tile, (HEADS, BLOCK_E // 2, 2)))
    pairs = tl.join(real * cos - imaginary * sin, real * sin + imaginary * cos)
    return tl.reshape(pairs, (HEADS, BLOCK_E))


@triton.jit
def _copy(row, out, H: tl.constexpr, E: tl.constexpr, HEADS: tl.constexpr, BLOCK_E: tl.constexpr):
    tiles = _load(row, H, E, HEADS, BLOCK_E)
    for i in tl.static_range(len(tiles)):
        _store(out, tiles[i], i, H, E, HEADS, BLOCK_E)


@triton.jit
def _norm_rope(
    row, weight, rope, out, eps, H: tl.constexpr, E: tl.constexpr, HEADS: tl.constexpr, BLOCK_E: tl.constexpr
):
    tiles = _load(row, H, E, HEADS, BLOCK_E)
    weights = _load(weight, H, E, HEADS, BLOCK_E)
    if rope is not None:
        cos, sin = _load_rope(rope, E, HEADS, BLOCK_E)
    squares = tl.zeros((HEADS, BLOCK_E), tl.float32)
    for i in tl.static_range(len(tiles)):
        squares += tiles[i].to(tl.float32) * tiles[i].to(tl.float32)
    rstd = tl.rsqrt(tl.sum(squares) / (H * E) + eps)
    for i in tl.static_range(len(tiles)):
        result = tiles[i].to(tl.float32) * rstd * weights[i].to(tl.float32)
        if rope is not None:
            result = _rotate(result, cos, sin, HEADS, BLOCK_E)
        _store(out, result, i, H, E, HEADS, BLOCK_E)


@triton.jit
def _qk_norm_rope_forward(
    packed, weight_0, weight_1, rope, out_0, out_1, copied, stride_b, stride_n, eps,
    H: tl.constexpr, E: tl.constexpr, HEADS: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """One program a part of a token. weight_1, out_1 and copied: None where there is no such part."""
    token, part, b = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2).to(tl.int64)
    row = packed + b * stride_b + token * stride_n + part * (H * E)
    to = (b * tl.num_programs(0) + token) * (H * E)
    if rope is not None:
        rope += token * E
    if part == 0:
        _norm_rope(row, weight_0, rope, out_0 + to, eps, H, E, HEADS, BLOCK_E)
    if weight_1 is not None and part == 1:
        _norm_rope(row, weight_1, rope, out_1 + to, eps, H, E, HEADS, BLOCK_E)
    if copied is not None and part == tl.num_programs(1) - 1:
        _copy(row, copied + to, H, E, HEADS, BLOCK_E)


@triton.jit
def _norm_rope_backward(
    part, first, packed, grad, weight, rope, dpacked, partial,
    num_programs, num_rows, num_tokens, stride_b, stride_n, eps,
    PARTS: tl.constexpr, H: tl.constexpr, E: tl.constexpr, HEADS: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Rows first, first + num_programs, ... of one part; the sums of their weight gradients become row `first` of partial.

    With n = x rstd w and its gradient dn (rotated back): dx = rstd (w dn - x rstd^2 mean(x w dn)), dw = sum of dn x rstd.
    """
    D: tl.constexpr = H * E
    sums = ()
    for _ in tl.static_range((H + HEADS - 1) // HEADS):
        sums += (tl.zeros((HEADS, BLOCK_E), tl.float32),)  # type: ignore[assignment]
    row = first
    while row < num_rows:
        b, token = (row // num_tokens).to(tl.int64), (row % num_tokens).to(tl.int64)
        tiles = _load(packed + b * stride_b + token * stride_n + part * D, H, E, HEADS, BLOCK_E)
        grads = _load(grad + row.to(tl.int64) * D, H, E, HEADS, BLOCK_E)
        if rope is not None:
            cos, sin = _load_rope(rope + token * E, E, HEADS, BLOCK_E)
        squares = tl.zeros((HEADS, BLOCK_E), tl.float32)
        products = tl.zeros((HEADS, BLOCK_E), tl.float32)
        dnormed = ()
        for i in tl.static_range(len(tiles)):
            value, turned = tiles[i].to(tl.float32), grads[i].to(tl.float32)
            factor = _load_tile(weight, i, H, E, HEADS, BLOCK_E).to(tl.float32)
            if rope is not None:
                turned = _rotate(turned, cos, -sin, HEADS, BLOCK_E)
            dnormed += (turned,)  # type: ignore[assignment]
            squares += value * value
            products += value * (turned * factor)
        # Both sums in one reduction: half the barriers of two.
        both = tl.sum(tl.reshape(tl.join(squares, products), (HEADS * BLOCK_E, 2)), axis=0)
        square, product = tl.split(both)
        rstd = tl.rsqrt(square / D + eps)
        along = product / D * rstd * rstd
        new_sums = ()
        for i in tl.static_range(len(tiles)):
            value = tiles[i].to(tl.float32)
            factor = _load_tile(weight, i, H, E, HEADS, BLOCK_E).to(tl.float32)
            new_sums += (sums[i] + dnormed[i] * (value * rstd),)  # type: ignore[assignment]
            dvalue = rstd * (dnormed[i] * factor - value * along)
            _store(dpacked + (row.to(tl.int64) * PARTS + part) * D, dvalue, i, H, E, HEADS, BLOCK_E)
        sums = new_sums
        row += num_programs
    for i in tl.static_range(len(sums)):
        _store(partial + first * D, sums[i], i, H, E, HEADS, BLOCK_E)


@triton.jit
def _qk_norm_rope_backward(
    packed, grad_0, grad_1, grad_copied, weight_0, weight_1, rope, dpacked, partial_0, partial_1,
    num_programs, num_rows, num_tokens, stride_b, stride_n, eps,
    PARTS: tl.constexpr, H: tl.constexpr, E: tl.constexpr, HEADS: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """num_programs programs for each normed part, then one for each row of values: these fill the gaps that those leave."""
    NORMED: tl.constexpr = 1 if weight_1 is None else 2
    part = tl.program_id(0) // num_programs
    first = tl.program_id(0) % num_programs
    if part == 0:
        _norm_rope_backward(
            0, first, packed, grad_0, weight_0, rope, dpacked, partial_0,
            num_programs, num_rows, num_tokens, stride_b, stride_n, eps, PARTS, H, E, HEADS, BLOCK_E,
        )  # fmt: skip
    if weight_1 is not None and part == 1:
        _norm_rope_backward(
            1, first, packed, grad_1, weight_1, rope, dpacked, partial_1,
            num_programs, num_rows, num_tokens, stride_b, stride_n, eps, PARTS, H, E, HEADS, BLOCK_E,
        )  # fmt: skip
    if grad_copied is not None and part >= NORMED:
        row = (tl.program_id(0) - NORMED * num_programs).to(tl.int64)
        _copy(grad_copied + row * (H * E), dpacked + (row * PARTS + NORMED) * (H * E), H, E, HEADS, BLOCK_E)


def _tile(D: int, num_heads: int) -> tuple[int, int, int, int, int]:
    """H, E, heads of a tile, its channels a head (a power of two), and warps."""
    E = D // num_heads
    BLOCK_E = next_power_of_2(E)
    HEADS = min(next_power_of_2(num_heads), max(1, TILE // BLOCK_E))
    return num_heads, E, HEADS, BLOCK_E, max(1, HEADS * BLOCK_E // (32 * CHANNELS_PER_THREAD))


def _in_place(packed: Tensor) -> Tensor:
    return packed if packed.stride(-1) == 1 else packed.contiguous()


def _slots(normed: Sequence[Tensor], parts: Sequence[Tensor]) -> list[Tensor | None]:
    """The first, the second normed part and the values, with None for what there is not."""
    second = parts[1] if len(normed) == 2 else None
    return [parts[0], second, parts[-1] if len(parts) > len(normed) else None]


def _forward(
    packed: Tensor, weights: Sequence[Tensor], rope: Tensor | None, num_heads: int, eps: float
) -> list[Tensor]:
    B, N, W = packed.shape
    D = len(weights[0])
    outs = [packed.new_empty(B, N, num_heads, D // num_heads) for _ in range(W // D)]
    if packed.numel():
        packed, weights = _in_place(packed), [weight.contiguous() for weight in weights]
        *sizes, warps = _tile(D, num_heads)
        _qk_norm_rope_forward[(N, W // D, B)](
            packed, weights[0], weights[1] if len(weights) == 2 else None,
            None if rope is None else rope.contiguous(), *_slots(weights, outs),
            packed.stride(0), packed.stride(1), eps, *sizes, num_warps=warps,
        )  # fmt: skip
    return outs


def _backward(
    packed: Tensor, weights: Sequence[Tensor], rope: Tensor | None, num_heads: int, eps: float, grads: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """dpacked (B, N, W), and the weights' gradients in float32, (len(weights), D)."""
    B, N, W = packed.shape
    D = len(weights[0])
    dpacked = torch.empty_like(packed, memory_format=torch.contiguous_format)
    if not packed.numel():
        return dpacked, torch.zeros(len(weights), D, dtype=torch.float32, device=packed.device)
    programs = min(B * N, PROGRAMS_PER_MULTIPROCESSOR * num_programs(packed.device) // len(weights))
    partial = torch.empty(len(weights), programs, D, dtype=torch.float32, device=packed.device)
    packed, weights = _in_place(packed), [weight.contiguous() for weight in weights]
    # Attention gives gradients in the memory order of its inputs, so that these are no copies.
    grads = [grad.contiguous() for grad in grads]
    copies = B * N if len(grads) > len(weights) else 0
    *sizes, warps = _tile(D, num_heads)
    _qk_norm_rope_backward[(len(weights) * programs + copies,)](
        packed, *_slots(weights, grads), weights[0], weights[1] if len(weights) == 2 else None,
        None if rope is None else rope.contiguous(), dpacked, partial[0], partial[-1],
        programs, B * N, N, packed.stride(0), packed.stride(1), eps,
        W // D, *sizes, num_warps=warps,
    )  # fmt: skip
    return dpacked, partial.sum(1)


forward_op = torch.library.custom_op("vrlvr::qk_norm_rope", mutates_args=())(_forward)
backward_op = torch.library.custom_op("vrlvr::qk_norm_rope_backward", mutates_args=())(_backward)


@forward_op.register_fake
def _(packed, weights, rope, num_heads, eps):
    B, N, W = packed.shape
    D = len(weights[0])
    return [packed.new_empty(B, N, num_heads, D // num_heads) for _ in range(W // D)]


@backward_op.register_fake
def _(packed, weights, rope, num_heads, eps, grads):
    dweights = packed.new_empty(len(weights), len(weights[0]), dtype=torch.float32)
    return torch.empty_like(packed, memory_format=torch.contiguous_format), dweights


def _save(ctx, inputs, output):
    packed, weights, rope, ctx.num_heads, ctx.eps = inputs
    ctx.save_for_backward(packed, rope, *weights)


def _gradients(ctx, grads):
    packed, rope, *weights = ctx.saved_tensors
    dpacked, dweights = backward_op(packed, weights, rope, ctx.num_heads, ctx.eps, grads)
    return dpacked, [dweights[i].to(weight.dtype) for i, weight in enumerate(weights)], None, None, None


forward_op.register_autograd(_gradients, setup_context=_save)


def _check(packed_BNW: Tensor, weights: Sequence[Tensor], rope_NE: Tensor | None, num_heads: int) -> None:
    """Raises ValueError for sizes that do not fit together."""
    (_, N, W), D = packed_BNW.shape, len(weights[0])
    if len(weights) not in (1, 2) or any(weight.shape != (D,) for weight in weights):
        raise ValueError(
            f"weights of shapes {[tuple(weight.shape) for weight in weights]} must be one or two of ({D},)"
        )
    if D % num_heads:
        raise ValueError(f"num_heads={num_heads} must divide the {D} channels of a part")
    if W % D or W // D - len(weights) not in (0, 1):
        raise ValueError(f"{W} packed channels must be {len(weights)} or {len(weights) + 1} parts of {D}")
    E = D // num_heads
    if rope_NE is not None and (rope_NE.shape != (N, E) or rope_NE.dtype != torch.float32 or E % 2):
        raise ValueError(f"rope is {rope_NE.dtype} {tuple(rope_NE.shape)}; it must be float32 ({N}, {E}) with even {E}")


def qk_norm_rope(
    packed_BNW: Tensor, weights: tuple[Tensor, ...], rope_NE: Tensor | None, num_heads: int, eps: float
) -> tuple[Tensor, ...]:
    """The parts of packed as (B, N, H, E) tensors of their own, in packed's dtype: q, k normed and rotated; v as it is.

    packed_BNW: the output of one linear layer, W = parts * D channels with D = len(weights[0]); its tokens may lie apart in
    memory. The first len(weights) parts, one or two, are RMS-normed over all D channels (all heads together) and multiplied
    by their weight (D,); one more part, if there, is copied. The module's docstring says why.
    rope_NE: float32; the cosine of pair i at 2i, its sine at 2i + 1; all heads and videos share it. The channels 2i and
    2i + 1 of a head are a complex number, multiplied by cos + i sin. It gets no gradient. None: no rotation.

    All in float32 with one rounding at the end (in the reference float64 for float64). Keeps only its inputs for the
    backward pass. Raises ValueError for sizes that do not fit together.
    """
    _check(packed_BNW, weights, rope_NE, num_heads)
    if not runs_triton(packed_BNW):
        return qk_norm_rope_reference(packed_BNW, weights, rope_NE, num_heads, eps)
    return tuple(forward_op(packed_BNW, weights, rope_NE, num_heads, eps))
