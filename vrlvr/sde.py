"""Sigma schedules, and the samplers of flow matching in one form: next = a x + b v + std eps.

x_s = (1 - s) x0 + s noise and v = noise - x0; sigma s runs from 1 to 0. Everything here is float64 on the host: rounding a
timestep or testing it for equality near s = 1 is how public trainers got their early steps wrong.
"""

import itertools
import math
from dataclasses import dataclass

ODE = "ode"
SAMPLERS = ("flow_sde", "dance_sde", "cps")


@dataclass(frozen=True)
class Step:
    """One denoising step from sigma to sigma_next. std = 0 makes it the ODE's (Euler) step."""

    sigma: float
    sigma_next: float
    a: float
    b: float
    std: float


def shifted(s: float, shift: float) -> float:
    """Resolution shift of a sigma (Esser et al. 2024, as in Wan's scheduler): f s / (1 + (f - 1) s).

    The denominator is written so that 1 stays exactly 1 for every shift.
    """
    return shift * s / ((1 - s) + shift * s)


def sigma_schedule(
    num_steps: int, shift: float, tail_start: int | None = None, tail_steps: int | None = None
) -> list[float]:
    """num_steps + 1 sigmas from 1 to 0, evenly spaced before the shift.

    With tail_steps, the part after step tail_start is walked in that many (coarser) steps instead, on a subset of the grid.
    """
    grid = [shifted(1 - i / num_steps, shift) for i in range(num_steps + 1)]
    if tail_start is None or tail_steps is None:
        return grid
    span = num_steps - tail_start
    return grid[:tail_start] + [grid[tail_start + round(i * span / tail_steps)] for i in range(tail_steps + 1)]


def coefficients(sampler: str, sigma: float, sigma_next: float, noise_level: float) -> Step:
    """(a, b, std) of a step.

    flow_sde: Flow-GRPO (arXiv 2505.05470), g = eta sqrt(s / (1 - s)), with 1 - s' in the root at s = 1 (std = eta there).
    dance_sde: DanceGRPO (arXiv 2505.07818), constant g = eta.
    cps: coefficient-preserving sampling (arXiv 2509.05952): around any one video, signal (1 - s) and noise s are exactly the
    ODE's at any step size, while the two SDEs have more noise by O(d^2). The SDEs' marginals tend to the data's as steps
    shrink; those of cps stay narrower where the velocity is a mean over several videos.
    ode: Euler, whatever the noise level.
    """
    s, n, d = sigma, sigma_next, sigma_next - sigma
    if not 0 <= n < s <= 1:
        raise ValueError(f"sigma must fall within [0, 1], got {s} -> {n}")
    if sampler == ODE or noise_level == 0:
        return Step(s, n, 1.0, d, 0.0)
    if sampler == "cps":
        std = n * math.sin(noise_level * math.pi / 2)
        c = math.sqrt(n * n - std * std)
        return Step(s, n, (1 - n) + c, -(1 - n) * s + c * (1 - s), std)
    if sampler == "flow_sde":
        g2 = noise_level**2 * s / (1 - (s if s < 1 else n))
    elif sampler == "dance_sde":
        g2 = noise_level**2
    else:
        raise ValueError(f"sampler {sampler!r} is unknown; use one of {', '.join(SAMPLERS)} or {ODE}")
    return Step(s, n, 1 + g2 * d / (2 * s), d * (1 + g2 * (1 - s) / (2 * s)), math.sqrt(-d * g2))


def plan_steps(sigmas: list[float], sampler: str, noise_level: float, sde_steps: int) -> list[Step]:
    """Early-Step Focus: the first sde_steps steps inject noise (and are trained), the rest follow the ODE."""
    return [
        coefficients(sampler if i < sde_steps else ODE, s, n, noise_level)
        for i, (s, n) in enumerate(itertools.pairwise(sigmas))
    ]
