"""The reference update against ours: the same trajectory from the same noise, the same gradient; and its own formulas."""

import math

import numpy as np
import pytest
import torch
from reference_dit import ReferenceWanTransformer
from reference_grpo import ReferencePolicy, ReferenceRollout, accumulate_gradients, rollout, sde_step_with_logprob
from tiny_run import gradients, tiny_config
from torch import Tensor

from vrlvr.batches import Prompts
from vrlvr.distributed import World
from vrlvr.models.dit import WanConfig, WanTransformer
from vrlvr.models.text import TaskEmbedding
from vrlvr.policy import Policy
from vrlvr.sampling import INITIAL_STREAM, Trajectory, sample
from vrlvr.sde import coefficients, plan_steps, sigma_schedule
from vrlvr.update import accumulate_gradients as our_gradients
from vrlvr.update import build_replay
from vrlvr_kernels.philox import normal_reference
from vrlvr_kernels.sde_step import SDE_STREAM

CONFIG = WanConfig(
    num_attention_heads=2,
    attention_head_dim=8,
    in_channels=3,
    out_channels=3,
    text_dim=12,
    freq_dim=16,
    ffn_dim=40,
    num_layers=2,
)
PUZZLES, GROUP, SEED, NOISE_LEVEL = 2, 3, 5, 0.7
SHAPE = (3, 2, 4, 6)
NUM_STEPS = 5
ADVANTAGE_PG = torch.tensor([[1.0, -0.25, -0.75], [0.5, -1.0, 0.5]], dtype=torch.float64)


def policies() -> tuple[Policy, ReferencePolicy]:
    """Ours and the reference with equal weights."""
    torch.manual_seed(0)
    ours = Policy(WanTransformer(CONFIG), TaskEmbedding(PUZZLES, CONFIG.text_dim, num_tokens=4), "pin")
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    ours.text.requires_grad_(False)
    reference = ReferencePolicy(ReferenceWanTransformer(CONFIG, checkpointing=True))
    reference.dit.load_state_dict(ours.dit.state_dict(), strict=True)
    return ours, reference


def first_frames() -> Tensor:
    return torch.randn(PUZZLES, 3, 1, 4, 6, generator=torch.Generator().manual_seed(2))


def our_trajectory(ours: Policy, num_sde_steps: int) -> Trajectory:
    steps = plan_steps(sigma_schedule(NUM_STEPS, 3.0), "flow_sde", NOISE_LEVEL, num_sde_steps)
    return sample(ours, steps, SHAPE, first_frames(), torch.arange(PUZZLES), torch.arange(PUZZLES * GROUP), SEED)


def reference_trajectory(ours: Policy, reference: ReferencePolicy, num_sde_steps: int) -> ReferenceRollout:
    samples, numel = torch.arange(PUZZLES * GROUP), math.prod(SHAPE)
    return rollout(
        reference,
        sigma_schedule(NUM_STEPS, 3.0),
        normal_reference(SEED, INITIAL_STREAM, samples, 0, numel).view(-1, *SHAPE),
        first_frames().repeat_interleave(GROUP, 0),
        ours.text(torch.arange(PUZZLES)).repeat_interleave(GROUP, 0),
        lambda i: normal_reference(SEED, SDE_STREAM, samples, i, numel).view(-1, *SHAPE),
        NOISE_LEVEL,
        num_sde_steps,
    )


@pytest.mark.parametrize("num_sde_steps", [2, NUM_STEPS - 1])
def test_the_rollouts_agree(num_sde_steps: int) -> None:
    ours, reference = policies()
    trajectory, rolled = our_trajectory(ours, num_sde_steps), reference_trajectory(ours, reference, num_sde_steps)
    assert len(trajectory.states) == len(rolled.states) == NUM_STEPS + 1
    for mine, theirs in zip(trajectory.states, rolled.states, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=2e-5)
    assert len(rolled.log_probs_B) == num_sde_steps
    for mine, theirs in zip(trajectory.log_probs_B, rolled.log_probs_B, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("micro_batch", [1, 4, 6])
def test_the_gradients_agree(micro_batch: int) -> None:
    """Of a full-step update: all steps but the last are trained."""
    ours, reference = policies()
    window = NUM_STEPS - 1
    config = tiny_config("--grpo.anchor_weight", "0", "--grpo.keep_fraction", "1", "--grpo.shared_noise", "false")
    prompts = Prompts([], first_frames(), torch.arange(PUZZLES))
    replay = build_replay(
        config, World(), our_trajectory(ours, window), prompts, ADVANTAGE_PG, np.random.default_rng(0)
    )
    our_gradients(config, ours, ours, replay, first_pass=True)

    rolled = reference_trajectory(ours, reference, window)
    first, text = (x.repeat_interleave(GROUP, 0) for x in (first_frames(), ours.text(torch.arange(PUZZLES)).detach()))
    advantage = ADVANTAGE_PG.flatten().float()
    deviation = accumulate_gradients(
        reference, rolled, first, text, advantage, range(window), NOISE_LEVEL, config.grpo.clip_range, micro_batch
    )
    assert deviation < 1e-5
    expected, actual = gradients(ours.dit), gradients(reference.dit)
    assert expected.norm() > 1e-3
    assert (actual - expected).norm() < 1e-4 * expected.norm()


def test_a_fraction_of_the_steps_is_a_mean_over_fewer_terms() -> None:
    ours, reference = policies()
    rolled = reference_trajectory(ours, reference, NUM_STEPS - 1)
    first, text = (
        first_frames().repeat_interleave(GROUP, 0),
        ours.text(torch.arange(PUZZLES)).repeat_interleave(GROUP, 0),
    )
    parts = []
    for steps in ([0], [2], [0, 2]):
        reference.zero_grad()
        accumulate_gradients(
            reference, rolled, first, text.detach(), ADVANTAGE_PG.flatten().float(), steps, NOISE_LEVEL, 1e-3, 6
        )
        parts.append(gradients(reference.dit))
    assert (parts[0] - parts[1]).norm() > 0.1 * parts[0].norm()
    torch.testing.assert_close(parts[2], (parts[0] + parts[1]) / 2, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("i", range(NUM_STEPS - 1))
def test_a_step_is_the_published_one(i: int) -> None:
    """Against the coefficients of `vrlvr.sde`, which are tested against the SDE itself; at sigma = 1 as well."""
    sigmas = sigma_schedule(NUM_STEPS, 3.0)
    x, v, eps = torch.randn(3, 2, *SHAPE, generator=torch.Generator().manual_seed(i)).unbind(0)
    step = coefficients("flow_sde", sigmas[i], sigmas[i + 1], NOISE_LEVEL)
    sigma, sigma_next = (torch.full((2, 1, 1, 1, 1), s) for s in (sigmas[i], sigmas[i + 1]))
    next_x, log_prob_B = sde_step_with_logprob(v, x, sigma, sigma_next, torch.tensor(sigmas[1]), NOISE_LEVEL, noise=eps)
    expected = step.a * x + step.b * v + step.std * eps
    torch.testing.assert_close(next_x, expected, rtol=1e-5, atol=1e-5)
    density = torch.distributions.Normal(step.a * x + step.b * v, step.std).log_prob(next_x)
    torch.testing.assert_close(log_prob_B, density.flatten(1).mean(1), rtol=1e-4, atol=1e-5)
    again, same_B = sde_step_with_logprob(
        v, x, sigma, sigma_next, torch.tensor(sigmas[1]), NOISE_LEVEL, next_sample=next_x
    )
    assert torch.equal(again, next_x)
    assert torch.equal(same_B, log_prob_B)


def test_a_part_of_a_rollout_is_its_beginning() -> None:
    ours, reference = policies()
    whole = reference_trajectory(ours, reference, 3)
    samples, numel = torch.arange(PUZZLES * GROUP), math.prod(SHAPE)
    part = rollout(
        reference,
        whole.sigmas,
        whole.states[0],
        first_frames().repeat_interleave(GROUP, 0),
        ours.text(torch.arange(PUZZLES)).repeat_interleave(GROUP, 0),
        lambda i: normal_reference(SEED, SDE_STREAM, samples, i, numel).view(-1, *SHAPE),
        NOISE_LEVEL,
        3,
        num_steps=2,
    )
    assert len(part.states) == 3
    assert torch.equal(whole.states[2], part.states[2])
    assert len(part.log_probs_B) == 2
