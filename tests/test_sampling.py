"""The denoising loop: which noise it uses, what it stores, and that replaying it gives the very same log-probs."""

import pytest
import torch
from tiny_run import CPU, random_policy, tiny_codec, tiny_config, tiny_prompts
from torch import Tensor

from vrlvr.config import Config
from vrlvr.grpo import rollout_sigmas
from vrlvr.sampling import Trajectory, joined, sample
from vrlvr.sde import ODE, plan_steps, sigma_schedule
from vrlvr_kernels.grpo_loss import grpo_loss
from vrlvr_kernels.sde_step import log_prob_reference

SHAPE = (3, 1, 2, 2)
SEED = 5


def drift(x: Tensor, sigma_B: Tensor, first: Tensor, task: Tensor) -> Tensor:
    """A velocity of each sample alone, computed alike in every batch."""
    return x * sigma_B.view(-1, 1, 1, 1, 1) + first + task.view(-1, 1, 1, 1, 1)


def rollout(group: int = 2, shared_noise: bool = False, puzzles: tuple[int, ...] = (0, 1, 2), **kwargs) -> Trajectory:
    steps = plan_steps(sigma_schedule(5, 3.0), kwargs.pop("sampler", "flow_sde"), 0.7, kwargs.pop("sde_steps", 3))
    firsts = torch.linspace(-1, 1, 9).view(3, 3, 1, 1, 1)[list(puzzles)].expand(-1, 3, 1, 2, 2)
    samples_B = torch.tensor([p * group + g for p in puzzles for g in range(group)])
    return sample(drift, steps, SHAPE, firsts, torch.tensor(puzzles), samples_B, SEED, shared_noise)


def test_a_puzzles_samples_are_the_same_in_every_shard() -> None:
    whole, part = rollout(), rollout(puzzles=(1, 2))
    for a, b in zip(whole.states, part.states, strict=True):
        torch.testing.assert_close(a[2:], b, rtol=0, atol=0)


@pytest.mark.parametrize("shared_noise", [False, True])
def test_parts_of_a_rollout_join_to_the_whole(shared_noise: bool) -> None:
    whole = rollout(shared_noise=shared_noise)
    parts = [rollout(shared_noise=shared_noise, puzzles=puzzles) for puzzles in ((0,), (1, 2))]
    both = joined(parts)
    for name in ("states", "log_probs_B"):
        assert len(getattr(both, name)) == len(getattr(whole, name))
        for a, b in zip(getattr(both, name), getattr(whole, name), strict=True):
            assert torch.equal(a, b)
    assert not parts[1].states  # nothing is held twice


def test_samples_of_a_group_differ_and_share_only_their_first_noise() -> None:
    apart, shared = rollout(), rollout(shared_noise=True)
    assert [len(x) for x in apart.states] == [6] * 6
    assert [len(x) for x in shared.states] == [3, 6, 6, 6, 6, 6]
    torch.testing.assert_close(shared.states[0], apart.states[0][::2], rtol=0, atol=0)
    torch.testing.assert_close(shared.states[1][::2], apart.states[1][::2], rtol=0, atol=0)  # the noise's owner
    for trajectory in (apart, shared):
        assert (trajectory.states[1][::2] != trajectory.states[1][1::2]).all()


def test_log_probs_belong_to_the_noisy_steps_only() -> None:
    trajectory = rollout(sde_steps=3)
    assert len(trajectory.log_probs_B) == 3
    assert all(log_prob_B.shape == (6,) for log_prob_B in trajectory.log_probs_B)
    assert rollout(sampler=ODE).log_probs_B == []


def test_the_ode_is_eulers_method() -> None:
    steps = plan_steps(sigma_schedule(4, 3.0), ODE, 0.0, 0)
    first, task = torch.zeros(1, *SHAPE), torch.zeros(1)
    trajectory = sample(drift, steps, SHAPE, first, task, torch.tensor([9]), SEED)
    x = trajectory.states[0]
    for step in steps:
        x = x * (1 + (step.sigma_next - step.sigma) * step.sigma)
    torch.testing.assert_close(trajectory.latents_BCFHW, x, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module", params=["concat", "pin"])
def config(request: pytest.FixtureRequest) -> Config:
    return tiny_config("--model.conditioning", request.param)


def test_replay_with_the_same_weights_and_batch_is_bitwise_the_rollout(config: Config) -> None:
    codec = tiny_codec(config)
    policy, prompts = random_policy(config, codec), tiny_prompts(config, codec, 3)
    steps = plan_steps(rollout_sigmas(config), "flow_sde", 0.7, 3)
    shape = codec.latent_shape(5, 16, 16)
    samples_B = torch.arange(12)
    trajectory = sample(policy, steps, shape, prompts.first_BC1HW, prompts.prompt_B, samples_B, SEED, shared_noise=True)
    first, task = prompts.first_BC1HW.repeat_interleave(4, 0), prompts.prompt_B.repeat_interleave(4, 0)
    for i, rollout_log_prob_B in enumerate(trajectory.log_probs_B):
        x, next_x = trajectory.states[i], trajectory.states[i + 1]
        shared = len(x) < len(next_x)
        sigma_B = torch.full((len(x),), steps[i].sigma, device=CPU)
        v = policy(x, sigma_B, prompts.first_BC1HW if shared else first, prompts.prompt_B if shared else task)
        if shared:
            x, v = x.repeat_interleave(4, 0), v.repeat_interleave(4, 0)
        row = torch.tensor([steps[i].a, steps[i].b, steps[i].std], dtype=torch.float64)
        coefficients_B3 = row.expand(12, 3)
        replayed_B = log_prob_reference(x, v, next_x, coefficients_B3)
        torch.testing.assert_close(replayed_B.detach(), rollout_log_prob_B, rtol=0, atol=0)
        terms = grpo_loss(v, x, next_x, torch.ones(12), coefficients_B3, 1e-3, rollout_log_prob_B)
        assert terms.ratio_B.tolist() == [1.0] * 12
