"""The clipped GRPO objective of one denoising step, from the velocity to the loss, without storing the latents' graph.

    loss = -min(ratio A, clip(ratio) A) + kl_weight KL,    ratio = exp(log_prob - old_log_prob),
    KL = b^2 mean (v - v_ref)^2 / (2 std^2)    (in mean space)

The gradient is analytic: d log p / d v = b (next - a x - b v) / (std^2 D). So the forward pass keeps its inputs and two
factors a sample, and the backward pass is one elementwise kernel.

Bytes an element in bfloat16: forward 6 (v, x, next), backward 8; 2 more each for v_ref, 1 for the mask. A sample whose step is
not trained or whose advantage is zero is not read at all.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vrlvr_kernels.launch import next_power_of_2, runs_triton
from vrlvr_kernels.optional_triton import tl, triton
from vrlvr_kernels.philox import BLOCK, WARPS
from vrlvr_kernels.sde_step import (
    check_shapes,
    flat_mask,
    load_mean_square,
    log_density,
    log_prob_reference,
    mean_square,
    store_sum_of_squares,
    wide,
)


@dataclass(frozen=True)
class GrpoTerms:
    """loss: float32 (B,), to be summed or averaged by the caller; the rest is detached, float32 (B,)."""

    loss_B: Tensor
    log_prob_B: Tensor
    ratio_B: Tensor
    clipped_B: Tensor
    kl_B: Tensor


def grpo_loss_reference(
    v: Tensor,
    x: Tensor,
    next_x: Tensor,
    advantage_B: Tensor,
    coefficients_B3: Tensor,
    clip_range: float,
    old_log_prob_B: Tensor | None = None,
    v_ref: Tensor | None = None,
    kl_weight: float = 0.0,
    active_B: Tensor | None = None,
    mask: Tensor | None = None,
) -> GrpoTerms:
    """See `grpo_loss`."""
    read_B = torch.ones_like(advantage_B, dtype=torch.bool) if v_ref is not None else advantage_B != 0
    if active_B is not None:
        read_B &= active_B
    if not read_B.all():
        return _of_some_samples(
            read_B, v, x, next_x, advantage_B, coefficients_B3, clip_range, old_log_prob_B, v_ref, kl_weight, mask
        )
    log_prob_B = log_prob_reference(x, v, next_x, coefficients_B3, mask)
    old_B = log_prob_B.detach() if old_log_prob_B is None else old_log_prob_B
    ratio_B = (log_prob_B - old_B).exp()
    clipped_ratio_B = ratio_B.clamp(1 - clip_range, 1 + clip_range)
    surrogate_B = torch.minimum(ratio_B * advantage_B, clipped_ratio_B * advantage_B)
    kl_B = torch.zeros_like(log_prob_B)
    if v_ref is not None:
        _, b_B, std_B = coefficients_B3.unbind(1)
        kl_scale_B = (b_B / std_B).square() / 2
        kl_B = mean_square(wide(v) - wide(v_ref), mask) * kl_scale_B.to(log_prob_B.dtype)
    return GrpoTerms(
        loss_B=kl_weight * kl_B - surrogate_B,
        log_prob_B=log_prob_B.detach(),
        ratio_B=ratio_B.detach(),
        clipped_B=(ratio_B != clipped_ratio_B).to(log_prob_B.dtype).detach(),
        kl_B=kl_B.detach(),
    )


def _of_some_samples(
    read_B: Tensor,
    v: Tensor,
    x: Tensor,
    next_x: Tensor,
    advantage_B: Tensor,
    coefficients_B3: Tensor,
    clip_range: float,
    old_log_prob_B: Tensor | None,
    v_ref: Tensor | None,
    kl_weight: float,
    mask: Tensor | None,
) -> GrpoTerms:
    """The loss of the samples of read_B; of the others nothing is touched."""
    rows = read_B.nonzero().flatten()
    old_log_prob_B, v_ref = (None if t is None else t[rows] for t in (old_log_prob_B, v_ref))
    some = grpo_loss_reference(
        v[rows], x[rows], next_x[rows], advantage_B[rows], coefficients_B3[rows], clip_range, old_log_prob_B, v_ref,
        kl_weight, mask=mask,
    )  # fmt: skip
    idle = torch.zeros_like(advantage_B, dtype=some.loss_B.dtype)
    return GrpoTerms(
        loss_B=idle.index_copy(0, rows, some.loss_B),
        log_prob_B=idle.index_copy(0, rows, some.log_prob_B),
        ratio_B=(idle + 1).index_copy(0, rows, some.ratio_B),
        clipped_B=idle.index_copy(0, rows, some.clipped_B),
        kl_B=idle.index_copy(0, rows, some.kl_B),
    )


@triton.jit
def _is_read(advantage, active, row, kl):
    """Whether anything of a sample is wanted: its step is trained, and it has an advantage or (kl is not None) a KL."""
    read = True
    if active is not None:
        read = tl.load(active + row) != 0
    if kl is None:
        read = read & (tl.load(advantage + row) != 0)
    return read


@triton.jit
def _coefficients(coefficients, row):
    """a, b, std of a sample, rounded to float32 as the launcher of `sde_step` rounds them."""
    at = coefficients + 3 * row
    return tl.load(at).to(tl.float32), tl.load(at + 1).to(tl.float32), tl.load(at + 2).to(tl.float32)


@triton.jit
def _grpo_loss_sums(
    v, x, next_x, v_ref, mask, advantage, active, coefficients, partial, partial_kl, numel, num_blocks,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One program BLOCK elements of a sample."""
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    if _is_read(advantage, active, row, v_ref):
        a, b, _ = _coefficients(coefficients, row)
        element = block * BLOCK + tl.arange(0, BLOCK)
        inside = element < numel
        at = row * numel + element
        velocity = tl.load(v + at, mask=inside, other=0.0).to(tl.float32)
        mean = a * tl.load(x + at, mask=inside, other=0.0).to(tl.float32) + b * velocity
        residual = tl.load(next_x + at, mask=inside, other=0.0).to(tl.float32) - mean
        counted = inside
        if mask is not None:
            counted &= tl.load(mask + element, mask=inside, other=0) != 0
        store_sum_of_squares(partial, row, block, residual, counted, num_blocks)
        if v_ref is not None:
            difference = velocity - tl.load(v_ref + at, mask=inside, other=0.0).to(tl.float32)
            store_sum_of_squares(partial_kl, row, block, difference, counted, num_blocks)


@triton.jit(do_not_specialize=["numel"])
def _grpo_loss_terms(
    partial, partial_kl, count, advantage, active, coefficients, old_log_prob, loss, logged, factors,
    numel, num_blocks, low, high, kl_weight, BLOCKS: tl.constexpr,
):  # fmt: skip
    """One program a sample. logged: (4, B); factors: (2, B), of residual and v - v_ref in dloss/dv."""
    row, B = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    loss_value, log_prob, ratio, clipped, kl, slope, kl_slope = 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0
    if _is_read(advantage, active, row, partial_kl):
        _, b, std = _coefficients(coefficients, row)
        elements = numel if count is None else tl.load(count)
        log_prob = log_density(load_mean_square(partial, row, num_blocks, elements, BLOCKS), std)
        if old_log_prob is not None:
            ratio = tl.exp(log_prob - tl.load(old_log_prob + row))
        # Not minimum and maximum: a NaN must come through.
        clipped_ratio = tl.where(ratio < low, low, tl.where(ratio > high, high, ratio))
        clipped = tl.where(ratio == clipped_ratio, 0.0, 1.0)
        weight = tl.load(advantage + row)
        moves = ratio * weight <= clipped_ratio * weight
        loss_value = -tl.where(moves, ratio, clipped_ratio) * weight
        per_element = tl.div_rn(b, std * std * elements.to(tl.float32))
        slope = tl.where(moves, -ratio * weight, 0.0) * per_element
        if partial_kl is not None:
            kl = load_mean_square(partial_kl, row, num_blocks, elements, BLOCKS) * tl.div_rn(b * b, 2 * std * std)
            loss_value += kl_weight * kl
            kl_slope = kl_weight * b * per_element
    tl.store(loss + row, loss_value)
    tl.store(logged + row, log_prob)
    tl.store(logged + B + row, ratio)
    tl.store(logged + 2 * B + row, clipped)
    tl.store(logged + 3 * B + row, kl)
    tl.store(factors + row, slope)
    tl.store(factors + B + row, kl_slope)


@triton.jit
def _grpo_loss_backward(
    v, x, next_x, v_ref, mask, coefficients, factors, grad_loss, dv, numel, BLOCK: tl.constexpr
):  # fmt: skip
    """One program BLOCK elements of a sample; of one without a gradient it reads nothing and stores zeros."""
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    upstream = tl.load(grad_loss + row)
    slope = upstream * tl.load(factors + row)
    kl_slope = upstream * tl.load(factors + tl.num_programs(0) + row)
    element = block * BLOCK + tl.arange(0, BLOCK)
    inside = element < numel
    at = row * numel + element
    grad = tl.zeros((BLOCK,), tl.float32)
    if (slope != 0) | (kl_slope != 0):
        a, b, _ = _coefficients(coefficients, row)
        velocity = tl.load(v + at, mask=inside, other=0.0).to(tl.float32)
        mean = a * tl.load(x + at, mask=inside, other=0.0).to(tl.float32) + b * velocity
        grad = slope * (tl.load(next_x + at, mask=inside, other=0.0).to(tl.float32) - mean)
        if v_ref is not None:
            grad += kl_slope * (velocity - tl.load(v_ref + at, mask=inside, other=0.0).to(tl.float32))
        if mask is not None:
            grad = tl.where(tl.load(mask + element, mask=inside, other=0) != 0, grad, 0.0)
    tl.store(dv + at, grad.to(dv.dtype.element_ty), mask=inside)


def _contiguous(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    return tuple(None if tensor is None else tensor.contiguous() for tensor in tensors)


def _forward(
    v: Tensor,
    x: Tensor,
    next_x: Tensor,
    advantage_B: Tensor,
    coefficients_B3: Tensor,
    clip_range: float,
    old_log_prob_B: Tensor | None,
    v_ref: Tensor | None,
    kl_weight: float,
    active_B: Tensor | None,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """loss (B,); log_prob, ratio, clipped and KL (4, B); what the backward pass needs (2, B)."""
    B, numel = len(v), v.shape[1:].numel()
    loss, logged, factors = (v.new_empty(shape, dtype=torch.float32) for shape in ((B,), (4, B), (2, B)))
    num_blocks = triton.cdiv(numel, BLOCK)
    if not B:
        return loss, logged, factors
    partial = v.new_empty((B, num_blocks), dtype=torch.float32)
    partial_kl = None if v_ref is None else torch.empty_like(partial)
    flat, count = flat_mask(mask)
    per_sample = _contiguous(advantage_B, active_B, coefficients_B3)
    _grpo_loss_sums[(B, num_blocks)](
        *_contiguous(v, x, next_x, v_ref), flat, *per_sample, partial, partial_kl, numel, num_blocks, BLOCK,
        num_warps=WARPS, enable_fp_fusion=False,
    )  # fmt: skip
    _grpo_loss_terms[(B,)](
        partial, partial_kl, count, *per_sample, *_contiguous(old_log_prob_B), loss, logged, factors,
        numel, num_blocks, 1 - clip_range, 1 + clip_range, kl_weight, next_power_of_2(num_blocks),
        enable_fp_fusion=False,
    )  # fmt: skip
    return loss, logged, factors


def _backward(
    v: Tensor,
    x: Tensor,
    next_x: Tensor,
    v_ref: Tensor | None,
    mask: Tensor | None,
    coefficients_B3: Tensor,
    factors: Tensor,
    grad_loss_B: Tensor,
) -> Tensor:
    dv = torch.empty_like(v, memory_format=torch.contiguous_format)
    if dv.numel():
        numel = v.shape[1:].numel()
        inputs = _contiguous(v, x, next_x, v_ref, flat_mask(mask)[0], coefficients_B3, factors, grad_loss_B)
        _grpo_loss_backward[(len(v), triton.cdiv(numel, BLOCK))](*inputs, dv, numel, BLOCK, num_warps=WARPS)
    return dv


forward_op = torch.library.custom_op("vrlvr::grpo_loss", mutates_args=())(_forward)
backward_op = torch.library.custom_op("vrlvr::grpo_loss_backward", mutates_args=())(_backward)


@forward_op.register_fake
def _(v, *others):
    return tuple(v.new_empty(shape, dtype=torch.float32) for shape in ((len(v),), (4, len(v)), (2, len(v))))


@backward_op.register_fake
def _(v, *others):
    return torch.empty_like(v, memory_format=torch.contiguous_format)


def _save(ctx, inputs, output):
    v, x, next_x, _, coefficients_B3, _, _, v_ref, _, _, mask = inputs
    ctx.save_for_backward(v, x, next_x, v_ref, mask, coefficients_B3, output[2])


def _gradients(ctx, grad_loss_B, *logged):
    return backward_op(*ctx.saved_tensors, grad_loss_B), *[None] * 10


forward_op.register_autograd(_gradients, setup_context=_save)


def grpo_loss(
    v: Tensor,
    x: Tensor,
    next_x: Tensor,
    advantage_B: Tensor,
    coefficients_B3: Tensor,
    clip_range: float,
    old_log_prob_B: Tensor | None = None,
    v_ref: Tensor | None = None,
    kl_weight: float = 0.0,
    active_B: Tensor | None = None,
    mask: Tensor | None = None,
) -> GrpoTerms:
    """-min(ratio A, clip(ratio) A) + kl_weight * KL per sample, ratio = exp(log_prob - old_log_prob).

    v: velocity, (B, ...), the only input that gets a gradient. x, next_x: stored latents before and after the step. v_ref: of
    the reference policy. coefficients_B3: (a, b, std) of each sample's step, float64, std > 0.
    old_log_prob_B None means the first pass over fresh rollouts: the old log-prob is the current one, detached, so the ratio
    is exactly 1 and no second forward is needed.
    active_B: bool, whether the sample's step is trained. One that is not, or (without v_ref) whose advantage is 0, is not
    read: its loss, gradient, log_prob, clipped and KL are 0, its ratio is 1.
    mask: bool, of a sample's shape; where it is False (a pinned first frame, padding) the element takes part in nothing. It
    must select at least one element.
    Raises ValueError for shapes that do not fit.
    """
    check_shapes(x, mask, v=v, next_x=next_x, v_ref=v_ref)
    arguments = advantage_B, coefficients_B3, clip_range, old_log_prob_B, v_ref, kl_weight, active_B, mask
    if not runs_triton(v):
        return grpo_loss_reference(v, x, next_x, *arguments)
    loss_B, logged, _ = forward_op(v, x, next_x, *arguments)
    return GrpoTerms(loss_B, *logged.detach().unbind())
