"""What ours is compared with: one GRPO update the published way (Flow-GRPO, arXiv 2505.05470), written from its description.

The rollout takes every step with `sde_step_with_logprob` and keeps latents and log-probs. Training goes over the trained
steps one by one: a forward with gradient, the log-prob of the stored next latents in eager float32, the ratio against the
rollout's log-prob, the clipped loss, a backward. The text is embedded anew at every forward, and every sample has its own
initial noise. The noise is the caller's, so that results can be compared.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from reference_dit import ReferenceWanTransformer
from torch import Tensor, nn

from vrlvr.phases import phase


class ReferencePolicy(nn.Module):
    """The reference transformer as a velocity field of the generated latent frames; the clean first frame is pinned (TI2V)."""

    def __init__(self, dit: ReferenceWanTransformer) -> None:
        super().__init__()
        self.dit = dit

    def forward(self, latents_BCFHW: Tensor, sigma_B: Tensor, first_BC1HW: Tensor, text_BLM: Tensor) -> Tensor:
        pinned_BCFHW = torch.cat([first_BC1HW, latents_BCFHW], dim=2)
        return self.dit(pinned_BCFHW, sigma_B * 1000.0, text_BLM, num_clean_frames=1)[:, :, 1:].float()


def sde_step_with_logprob(
    model_output: Tensor,
    sample: Tensor,
    sigma: Tensor,
    sigma_next: Tensor,
    sigma_max: Tensor,
    noise_level: float,
    noise: Tensor | None = None,
    next_sample: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One step of Flow-GRPO's SDE: the next latents, and the log-prob (B,), its mean over the elements of a sample.

    next_sample: given in training, where its log-prob is asked for; else noise is. sigma, sigma_next: of the step, (B, 1, ...).
    sigma_max: the second sigma of the schedule, which stands in for 1 in 1 - sigma.
    """
    model_output, sample = model_output.float(), sample.float()
    dt = sigma_next - sigma
    std = torch.sqrt(sigma / (1 - torch.where(sigma == 1, sigma_max, sigma))) * noise_level
    mean = sample * (1 + std**2 / (2 * sigma) * dt) + model_output * (1 + std**2 * (1 - sigma) / (2 * sigma)) * dt
    if next_sample is None:
        assert noise is not None
        next_sample = mean + std * torch.sqrt(-1 * dt) * noise
    log_prob = (
        -((next_sample.float().detach() - mean) ** 2) / (2 * ((std * torch.sqrt(-1 * dt)) ** 2))
        - torch.log(std * torch.sqrt(-1 * dt))
        - torch.log(torch.sqrt(2 * torch.as_tensor(math.pi)))
    )
    return next_sample, log_prob.mean(dim=tuple(range(1, log_prob.ndim)))


@dataclass(frozen=True)
class ReferenceRollout:
    """states[i]: latents_BCFHW before step i. log_probs_B: of the SDE steps, which come first."""

    sigmas: list[float]
    states: list[Tensor]
    log_probs_B: list[Tensor]


@torch.no_grad()
def rollout(
    policy: ReferencePolicy,
    sigmas: Sequence[float],
    initial_BCFHW: Tensor,
    first_BC1HW: Tensor,
    text_BLM: Tensor,
    noise_of: Callable[[int], Tensor],
    noise_level: float,
    num_sde_steps: int,
    num_steps: int | None = None,
) -> ReferenceRollout:
    """Denoises B samples: num_sde_steps with noise, the rest by Euler's. noise_of(i): standard normal, of the latents' shape.

    num_steps: stop after so many steps (a timing may take a part and multiply).
    """
    x, states, log_probs_B = initial_BCFHW, [initial_BCFHW], []
    with phase("rollout"):
        for i in range(len(sigmas) - 1 if num_steps is None else num_steps):
            sigma_B = torch.full((len(x),), sigmas[i], device=x.device)
            velocity = policy(x, sigma_B, first_BC1HW, text_BLM)
            if i < num_sde_steps:
                x, log_prob_B = _step(velocity, x, sigmas, i, noise_level, noise=noise_of(i))
                log_probs_B.append(log_prob_B)
            else:
                x = x.float() + (sigmas[i + 1] - sigmas[i]) * velocity
            x = x.to(initial_BCFHW.dtype)
            states.append(x)
    return ReferenceRollout(list(sigmas), states, log_probs_B)


def accumulate_gradients(
    policy: ReferencePolicy,
    rolled: ReferenceRollout,
    first_BC1HW: Tensor,
    text_BLM: Tensor,
    advantage_B: Tensor,
    trained_steps: Sequence[int],
    noise_level: float,
    clip_range: float,
    micro_batch: int,
) -> Tensor:
    """Adds the gradient of the mean loss over samples and trained steps to the policy; returns the largest |ratio - 1|."""
    num_samples, deviation = len(advantage_B), torch.zeros((), device=advantage_B.device)
    for i in trained_steps:
        for part in torch.arange(num_samples, device=advantage_B.device).split(micro_batch):
            with phase("replay"):
                x, next_x = rolled.states[i][part], rolled.states[i + 1][part]
                sigma_B = torch.full((len(part),), rolled.sigmas[i], device=x.device)
                velocity = policy(x, sigma_B, first_BC1HW[part], text_BLM[part])
                _, log_prob_B = _step(velocity, x, rolled.sigmas, i, noise_level, next_sample=next_x)
                ratio_B = torch.exp(log_prob_B - rolled.log_probs_B[i][part])
                unclipped_B = -advantage_B[part] * ratio_B
                clipped_B = -advantage_B[part] * torch.clamp(ratio_B, 1 - clip_range, 1 + clip_range)
                loss = torch.maximum(unclipped_B, clipped_B).sum() / (num_samples * len(trained_steps))
            with phase("backward"):
                loss.backward()
            deviation = torch.maximum(deviation, (ratio_B.detach() - 1).abs().max())
    return deviation


def _step(
    velocity: Tensor,
    x: Tensor,
    sigmas: Sequence[float],
    i: int,
    noise_level: float,
    noise: Tensor | None = None,
    next_sample: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`sde_step_with_logprob` at step i of a schedule, its sigmas as float32 tensors on the device."""
    view = (len(x), *([1] * (x.ndim - 1)))
    sigma, sigma_next = (torch.full(view, s, device=x.device) for s in (sigmas[i], sigmas[i + 1]))
    sigma_max = torch.tensor(sigmas[1], device=x.device)
    return sde_step_with_logprob(velocity, x, sigma, sigma_next, sigma_max, noise_level, noise, next_sample)
