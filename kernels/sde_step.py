"""One denoising step of any sampler, with the log-probability of what it stored.

    next = a x + b v + std eps,    log p = mean over elements of -(next - a x - b v)^2 / (2 std^2) - log std - log(2 pi) / 2

The coefficients come from `vrlvr.sde` (float64 on the host). The log-probability is taken on the *rounded* next latents,
since these are what the next step and the replay will see. Its parts (the residual, the sum over a block, the sum of blocks)
are shared with `grpo_loss`, so that a replay gets the same bits; launch them with enable_fp_fusion=False.

Bytes an element with bfloat16 x and v: 6 (x, v, next), and 1 for the mask.
"""

import math

import torch
from torch import Tensor

from vrlvr_kernels.launch import next_power_of_2, runs_triton
from vrlvr_kernels.optional_triton import tl, triton
from vrlvr_kernels.philox import (
    BLOCK,
    WARPS,
    exponent_and_fraction,
    int64,
    key_words,
    minus_2_log,
    normal_block,
    normal_reference,
)

SDE_STREAM = 1
_HALF_LOG_2_PI = tl.constexpr(0.5 * math.log(2 * math.pi))


def wide(x: Tensor) -> Tensor:
    """What references compute in: float64 for float64, float32 for all others."""
    return x if x.dtype == torch.float64 else x.float()


def mean_square(difference: Tensor, mask: Tensor | None) -> Tensor:
    """(B, ...) -> (B,): over the elements that the mask of a sample's shape selects, or all."""
    if mask is None:
        return difference.flatten(1).square().mean(1)
    return torch.where(mask, difference, 0).flatten(1).square().sum(1) / mask.sum()


def log_prob_reference(
    x: Tensor, v: Tensor, next_x: Tensor, coefficients_B3: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Gaussian log-density of next_x, averaged over the elements of each sample: (B, ...) -> float32 (B,).

    coefficients_B3: (a, b, std) of each sample's step, float64; std must be positive. mask: as in `sde_step`.
    Differentiable in v: d log p / d v = b (next - a x - b v) / (std^2 D), D elements. float64 if v is.
    """
    v = wide(v)
    a_B, b_B, _ = coefficients_B3.to(v.dtype).view(-1, 3, *[1] * (v.dim() - 1)).unbind(1)
    residual = wide(next_x) - (a_B * wide(x) + b_B * v)
    std_B = coefficients_B3[:, 2]
    scale_B, offset_B = -0.5 / std_B.square(), std_B.log() + 0.5 * math.log(2 * math.pi)
    return mean_square(residual, mask) * scale_B.to(v.dtype) - offset_B.to(v.dtype)


def sde_step_reference(
    x: Tensor,
    v: Tensor,
    a: float,
    b: float,
    std: float,
    seed: int,
    samples_B: Tensor,
    step: int,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See `sde_step`."""
    with torch.no_grad():
        next_x = a * wide(x) + b * wide(v)
        if std > 0:
            next_x += std * normal_reference(seed, SDE_STREAM, samples_B, step, x.shape[1:].numel()).view_as(x)
        next_x = next_x.to(x.dtype)
        if mask is not None:
            next_x = torch.where(mask, next_x, x)
        if std == 0:
            return next_x, torch.zeros(x.shape[0], device=x.device)
        coefficients_B3 = torch.tensor([a, b, std], dtype=torch.float64, device=x.device).expand(x.shape[0], 3)
        return next_x, log_prob_reference(x, v, next_x, coefficients_B3, mask)


@triton.jit
def store_sum_of_squares(partial, row, block, difference, counted, num_blocks):
    """partial[row, block] = the sum of squares over a block where counted."""
    total = tl.sum(tl.where(counted, difference * difference, 0.0), axis=0)
    tl.store(partial + row * num_blocks + block, total)


@triton.jit
def load_mean_square(partial, row, num_blocks, count, BLOCKS: tl.constexpr):
    """The mean over `count` elements of which partial[row] has the blocks' sums of squares."""
    block = tl.arange(0, BLOCKS)
    sums = tl.load(partial + row * num_blocks + block, mask=block < num_blocks, other=0.0)
    return tl.div_rn(tl.sum(sums, axis=0), count.to(tl.float32))


@triton.jit
def log_density(mean_square, std):
    """Gaussian log-density averaged over elements, from the mean of the squared residuals. Scalars, float32."""
    std = tl.cast(std, tl.float32)  # the interpreter leaves a launch's floats in float64
    exponent, fraction = exponent_and_fraction(std)
    log_std = -0.5 * minus_2_log(exponent, fraction)
    return mean_square * tl.div_rn(-0.5, std * std) - (log_std + _HALF_LOG_2_PI)


@triton.jit(do_not_specialize=["step", "key0", "key1"])
def _sde_step_next(
    x, v, mask, samples, next_x, partial, numel, num_blocks, a, b, std, step, key0, key1,
    STREAM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program BLOCK elements of a sample. Without `partial` the step is the ODE's."""
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    element = block * BLOCK + tl.arange(0, BLOCK)
    inside = element < numel
    at = row * numel + element
    x_stored = tl.load(x + at, mask=inside, other=0.0)
    mean = a * x_stored.to(tl.float32) + b * tl.load(v + at, mask=inside, other=0.0).to(tl.float32)
    value = mean
    if partial is not None:
        value += std * normal_block(block, tl.load(samples + row), step, STREAM, key0, key1, BLOCK)
    stored = value.to(next_x.dtype.element_ty)
    counted = inside
    if mask is not None:
        counted &= tl.load(mask + element, mask=inside, other=0) != 0
        stored = tl.where(counted, stored, x_stored)
    tl.store(next_x + at, stored, mask=inside)
    if partial is not None:
        store_sum_of_squares(partial, row, block, stored.to(tl.float32) - mean, counted, num_blocks)


@triton.jit(do_not_specialize=["numel"])
def _sde_step_log_prob(partial, count, log_prob, numel, num_blocks, std, BLOCKS: tl.constexpr):
    """One program a sample. count: points to the number of elements that the mask selects."""
    row = tl.program_id(0).to(tl.int64)
    elements = numel if count is None else tl.load(count)
    tl.store(log_prob + row, log_density(load_mean_square(partial, row, num_blocks, elements, BLOCKS), std))


def flat_mask(mask: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """A mask as bytes in a row, and the number of elements it selects: a tensor, so that nothing waits for the device."""
    return (None, None) if mask is None else (mask.contiguous().view(torch.uint8).flatten(), mask.sum())


def _sde_step(
    x: Tensor,
    v: Tensor,
    a: float,
    b: float,
    std: float,
    seed: int,
    samples_B: Tensor,
    step: int,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    next_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    log_prob_B = torch.zeros(len(x), dtype=torch.float32, device=x.device)
    if not x.numel():
        return next_x, log_prob_B
    numel = x[0].numel()
    num_blocks = triton.cdiv(numel, BLOCK)
    partial = torch.empty(len(x), num_blocks, dtype=torch.float32, device=x.device) if std > 0 else None
    mask, count = flat_mask(mask)
    _sde_step_next[(len(x), num_blocks)](
        x.contiguous(), v.contiguous(), mask, samples_B.contiguous(), next_x, partial, numel, num_blocks,
        a, b, std, step, *key_words(seed), SDE_STREAM, BLOCK, num_warps=WARPS, enable_fp_fusion=False,
    )  # fmt: skip
    if partial is not None:
        _sde_step_log_prob[(len(x),)](
            partial, count, log_prob_B, numel, num_blocks, std, next_power_of_2(num_blocks), enable_fp_fusion=False
        )
    return next_x, log_prob_B


sde_step_op = torch.library.custom_op("vrlvr::sde_step", mutates_args=())(_sde_step)


@sde_step_op.register_fake
def _(x, v, a, b, std, seed, samples_B, step, mask):
    return torch.empty_like(x, memory_format=torch.contiguous_format), x.new_empty(len(x), dtype=torch.float32)


def sde_step(
    x: Tensor,
    v: Tensor,
    a: float,
    b: float,
    std: float,
    seed: int,
    samples_B: Tensor,
    step: int,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """x: latents (B, ...) in their storage dtype. v: predicted velocity, same shape. samples_B, seed, step: of the noise, see
    `philox.normal`. mask: bool, of a sample's shape; where it is False (a pinned first frame, padding) next_x is x, and the
    element is no part of log_prob. It must select at least one element.

    Returns next_x (B, ...) rounded to x's dtype and log_prob_B float32; where std = 0 the step is the ODE's and log_prob
    is 0. No gradient flows. Raises ValueError for shapes that do not fit.
    """
    check_shapes(x, mask, v=v)
    if not runs_triton(x):
        return sde_step_reference(x, v, a, b, std, seed, samples_B, step, mask)
    with torch.no_grad():
        return sde_step_op(x, v, a, b, std, int64(seed), samples_B, step, mask)


def check_shapes(x: Tensor, mask: Tensor | None, **others: Tensor | None) -> None:
    """Raises ValueError unless the others have x's shape and the mask, of booleans, has a sample's."""
    for name, other in others.items():
        if other is not None and other.shape != x.shape:
            raise ValueError(f"{name} of shape {tuple(other.shape)} must have that of x, {tuple(x.shape)}")
    if mask is not None and (mask.shape != x.shape[1:] or mask.dtype != torch.bool):
        raise ValueError(f"mask of shape {tuple(mask.shape)}, {mask.dtype}, must be {tuple(x.shape[1:])} of torch.bool")
