"""Denoising from noise to latents: the rollout of GRPO and the ODE of evaluation are one loop."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vrlvr.sde import Step
from vrlvr_kernels.philox import normal
from vrlvr_kernels.sde_step import sde_step

INITIAL_STREAM = 0
Velocity = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Trajectory:
    """A rollout of B samples of P puzzles, puzzle-major.

    states[i]: latents_BCFHW before step i (states[0] has P rows instead, if the group shares its initial noise); the last
    one is clean. log_probs_B: per SDE step.
    """

    steps: list[Step]
    states: list[Tensor]
    log_probs_B: list[Tensor]

    @property
    def latents_BCFHW(self) -> Tensor:
        return self.states[-1]


def joined(parts: list[Trajectory]) -> Trajectory:
    """Rollouts of successive puzzles in the same steps as one. Takes the parts' tensors away, so that none is held twice."""
    if len(parts) == 1:
        return parts[0]
    states, log_probs_B = [], []
    while parts[0].states:
        states.append(torch.cat([part.states.pop(0) for part in parts]))
    while parts[0].log_probs_B:
        log_probs_B.append(torch.cat([part.log_probs_B.pop(0) for part in parts]))
    return Trajectory(parts[0].steps, states, log_probs_B)


@torch.no_grad()
def sample(
    velocity: Velocity,
    steps: list[Step],
    shape: tuple[int, int, int, int],
    first_PC1HW: Tensor,
    prompt_P: Tensor,
    samples_B: Tensor,
    seed: int,
    shared_noise: bool = False,
    group_size: int | None = None,
) -> Trajectory:
    """Denoises B videos of P puzzles, puzzle-major.

    samples_B: int64 global sample numbers, which together with the seed fix all noise. Samples n * G to n * G + G - 1 are a
    puzzle's, G = group_size (None: B / P); of the first and the last puzzle some may be missing, which another rank makes.
    With shared_noise the samples of a puzzle start from the noise of its first one, n * G, so that step 0 is one forward a
    puzzle instead of G.
    """
    group = group_size or len(samples_B) // len(prompt_P)
    number_P, puzzle_B = (samples_B // group).unique_consecutive(return_inverse=True)
    noise_of = number_P * group if shared_noise else samples_B
    x = normal(seed, INITIAL_STREAM, noise_of, 0, first_PC1HW.new_empty(shape, device="meta").numel())
    x = x.view(-1, *shape)
    first_BC1HW, prompt_B = first_PC1HW[puzzle_B], prompt_P[puzzle_B]
    states, log_probs_B = [x], []
    for i, step in enumerate(steps):
        shared = shared_noise and i == 0
        sigma = torch.full((len(x),), step.sigma, device=x.device)
        v = velocity(x, sigma, first_PC1HW if shared else first_BC1HW, prompt_P if shared else prompt_B)
        if shared:
            x, v = x[puzzle_B], v[puzzle_B]
        x, log_prob_B = sde_step(x, v, step.a, step.b, step.std, seed, samples_B, i)
        states.append(x)
        if step.std > 0:
            log_probs_B.append(log_prob_B)
    return Trajectory(steps, states, log_probs_B)
