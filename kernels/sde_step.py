"""One denoising step of any sampler, with the log-probability of what it stored.

    next = a x + b v + std eps,    log p = mean over elements of -(next - a x - b v)^2 / (2 std^2) - log std - log(2 pi) / 2

The coefficients come from `vrlvr.sde` (float64 on the host). The log-probability is taken on the *rounded* next latents,
since these are what the next step and the replay will see.
"""

import math

import torch
from torch import Tensor

from vrlvr_kernels.philox import normal_reference

SDE_STREAM = 1


def log_prob_reference(x: Tensor, v: Tensor, next_x: Tensor, coefficients_B3: Tensor) -> Tensor:
    """Gaussian log-density of next_x, averaged over the elements of each sample: (B, ...) -> float32 (B,).

    coefficients_B3: (a, b, std) of each sample's step, float64; std must be positive.
    Differentiable in v: d log p / d v = b (next - a x - b v) / (std^2 D).
    """
    a_B1, b_B1, _ = coefficients_B3.float().split(1, dim=1)
    residual = next_x.flatten(1).float() - a_B1 * x.flatten(1).float() - b_B1 * v.flatten(1).float()
    std_B = coefficients_B3[:, 2]
    return (
        residual.square().mean(1) * (-0.5 / std_B.square()).float()
        - (std_B.log() + 0.5 * math.log(2 * math.pi)).float()
    )


def sde_step_reference(
    x: Tensor, v: Tensor, a: float, b: float, std: float, seed: int, samples_B: Tensor, step: int
) -> tuple[Tensor, Tensor]:
    """x: latents (B, ...) in their storage dtype. v: predicted velocity, same shape.

    Returns next_x (B, ...) rounded to x's dtype and log_prob_B float32; where std = 0 the step is the ODE's and log_prob
    is 0. No gradient flows.
    """
    with torch.no_grad():
        mean = a * x.float() + b * v.float()
        if std == 0:
            return mean.to(x.dtype), torch.zeros(x.shape[0], device=x.device)
        eps = normal_reference(seed, SDE_STREAM, samples_B, step, x[0].numel()).view_as(x)
        next_x = (mean + std * eps).to(x.dtype)
        coefficients_B3 = torch.tensor([a, b, std], dtype=torch.float64, device=x.device).expand(x.shape[0], 3)
        return next_x, log_prob_reference(x, v, next_x, coefficients_B3)


# The public name; a fused form will take its place where it can run.
sde_step = sde_step_reference
