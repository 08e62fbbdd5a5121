"""The clipped GRPO objective of one denoising step, from the velocity to the loss, without storing the latents' graph."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vrlvr_kernels.sde_step import log_prob_reference


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
) -> GrpoTerms:
    """-min(ratio A, clip(ratio) A) + kl_weight * KL per sample, ratio = exp(log_prob - old_log_prob).

    v: velocity with gradient, (B, ...). x, next_x: stored latents before and after the step.
    coefficients_B3: (a, b, std) of each sample's step, float64, std > 0.
    old_log_prob_B None means the first pass over fresh rollouts: the old log-prob is the current one, detached, so the ratio
    is exactly 1 and no second forward is needed. KL in mean space: b^2 mean (v - v_ref)^2 / (2 std^2).
    """
    log_prob_B = log_prob_reference(x, v, next_x, coefficients_B3)
    old_B = log_prob_B.detach() if old_log_prob_B is None else old_log_prob_B
    ratio_B = (log_prob_B - old_B).exp()
    clipped_ratio_B = ratio_B.clamp(1 - clip_range, 1 + clip_range)
    surrogate_B = torch.minimum(ratio_B * advantage_B, clipped_ratio_B * advantage_B)
    kl_B = torch.zeros_like(log_prob_B)
    if v_ref is not None:
        _, b_B, std_B = coefficients_B3.unbind(1)
        kl_scale_B = (b_B / std_B).square() / 2
        kl_B = (v.float() - v_ref.float()).flatten(1).square().mean(1) * kl_scale_B.float()
    return GrpoTerms(
        loss_B=kl_weight * kl_B - surrogate_B,
        log_prob_B=log_prob_B.detach(),
        ratio_B=ratio_B.detach(),
        clipped_B=(ratio_B != clipped_ratio_B).float().detach(),
        kl_B=kl_B.detach(),
    )


# The public name; a fused form will take its place where it can run.
grpo_loss = grpo_loss_reference
