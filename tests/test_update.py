"""The gradient of an update against the plain way of computing it, one sample and step at a time."""

import copy
from dataclasses import dataclass

import pytest
import torch
from tiny_run import gradients, random_policy, rng, tiny_codec, tiny_config, tiny_prompts
from torch import Tensor

from vrlvr.batches import Prompts
from vrlvr.config import Config, num_sde_steps
from vrlvr.distributed import World
from vrlvr.grpo import rollout_sigmas
from vrlvr.policy import Policy
from vrlvr.sampling import Trajectory, sample
from vrlvr.sde import plan_steps
from vrlvr.update import accumulate_gradients, build_replay, kept_samples
from vrlvr_kernels.grpo_loss import grpo_loss

PUZZLES, GROUP = 3, 4
# A puzzle without spread; zeros within a group; a group of which keep_fraction drops most.
ADVANTAGE_PG = torch.tensor([[0.0, 0.0, 0.0, 0.0], [1.5, -0.5, -1.0, 0.0], [0.1, -0.1, 0.2, -0.2]], dtype=torch.float64)


@dataclass
class Setting:
    config: Config
    policy: Policy
    reference: Policy
    prompts: Prompts
    trajectory: Trajectory


def setting(*arguments: str) -> Setting:
    config = tiny_config("--grpo.anchor_weight", "0", "--grpo.keep_fraction", "1", *arguments)
    grpo, codec = config.grpo, tiny_codec(config)
    policy, prompts = random_policy(config, codec), tiny_prompts(config, codec, PUZZLES)
    steps = plan_steps(rollout_sigmas(config), grpo.sampler, grpo.noise_level, num_sde_steps(config))
    shape, samples_B = codec.latent_shape(5, 16, 16), torch.arange(PUZZLES * GROUP)
    trajectory = sample(
        policy, steps, shape, prompts.first_BC1HW, prompts.prompt_B, samples_B, 1, shared_noise=grpo.shared_noise
    )
    return Setting(config, policy, random_policy(config, codec, seed=1), prompts, trajectory)


def update(at: Setting, advantage_PG: Tensor = ADVANTAGE_PG) -> tuple[Tensor, dict[str, list[float]]]:
    replay = build_replay(at.config, World(), at.trajectory, at.prompts, advantage_PG, rng())
    at.policy.zero_grad()
    scalars = accumulate_gradients(at.config, at.policy, at.reference, replay, first_pass=True)
    return gradients(at.policy), scalars


def plain_gradient(at: Setting, kept: list[int]) -> Tensor:
    """One forward a sample and step, the shared noise expanded to every sample, all losses averaged."""
    grpo, steps = at.config.grpo, at.trajectory.steps
    losses = []
    for i in (i for i, step in enumerate(steps) if step.std > 0):
        x_B = at.trajectory.states[i]
        x_B = x_B.repeat_interleave(GROUP, 0) if len(x_B) == PUZZLES else x_B
        for b in kept:
            rows = (x_B[b : b + 1], torch.tensor([steps[i].sigma]), at.prompts.first_BC1HW[b // GROUP, None])
            prompt_B = at.prompts.prompt_B[b // GROUP, None]
            v, v_ref = at.policy(*rows, prompt_B), at.reference(*rows, prompt_B).detach()
            coefficients_B3 = torch.tensor([[steps[i].a, steps[i].b, steps[i].std]], dtype=torch.float64)
            terms = grpo_loss(
                v,
                rows[0],
                at.trajectory.states[i + 1][b : b + 1],
                ADVANTAGE_PG.flatten()[b : b + 1].float(),
                coefficients_B3,
                grpo.clip_range,
                None,
                v_ref if grpo.kl_weight > 0 else None,
                grpo.kl_weight,
            )
            losses.append(terms.loss_B)
    at.policy.zero_grad()
    torch.cat(losses).mean().backward()
    return gradients(at.policy)


def assert_equal_gradients(actual: Tensor, expected: Tensor) -> None:
    assert expected.norm() > 1e-5
    assert (actual - expected).norm() < 1e-6 * max(1.0, float(expected.norm()))
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-6 * float(expected.abs().max()))


@pytest.mark.parametrize("shared_noise", ["true", "false"])
@pytest.mark.parametrize("kl_weight", ["0", "0.1"])
def test_the_gradient_is_that_of_the_plain_way(shared_noise: str, kl_weight: str) -> None:
    at = setting("--grpo.shared_noise", shared_noise, "--grpo.kl_weight", kl_weight)
    kept = ADVANTAGE_PG.flatten().nonzero().flatten().tolist()
    assert_equal_gradients(update(at)[0], plain_gradient(at, kept))


@pytest.mark.parametrize("micro_batch", [1, 2, 3, 5])
def test_micro_batches_change_nothing_but_memory(micro_batch: int) -> None:
    at = setting()
    whole, _ = update(at)
    at.config.grpo.micro_batch = micro_batch
    replay = build_replay(at.config, World(), at.trajectory, at.prompts, ADVANTAGE_PG, rng())
    assert max(len(batch.x) for batch in replay.batches) <= micro_batch
    assert sum(len(batch.row_of) for batch in replay.batches) == replay.num_terms == 7 * 3
    assert_equal_gradients(update(at)[0], whole)


def test_the_shared_first_step_is_one_row_a_puzzle() -> None:
    at = setting()
    replay = build_replay(at.config, World(), at.trajectory, at.prompts, ADVANTAGE_PG, rng())
    (batch,) = replay.batches
    assert batch.step.tolist() == [0] * 2 + [1] * 7 + [2] * 7
    assert batch.row_of.tolist() == [0] * 3 + [1] * 4 + list(range(2, 16))


def test_without_any_advantage_there_is_no_gradient() -> None:
    at = setting()
    gradient, scalars = update(at, torch.zeros(PUZZLES, GROUP, dtype=torch.float64))
    assert gradient.abs().max() == 0
    assert scalars == {}
    assert all(p.grad is None for p in at.policy.parameters())


@pytest.mark.parametrize(
    ("fraction", "kept"), [(1.0, [4, 5, 6, 8, 9, 10, 11]), (0.25, [4, 5, 6]), (1 / 12, [4]), (0.001, [4])]
)
def test_the_largest_advantages_are_kept_and_never_a_zero(fraction: float, kept: list[int]) -> None:
    assert kept_samples(ADVANTAGE_PG.flatten(), fraction).tolist() == kept


def test_the_first_pass_has_a_ratio_of_one_and_the_second_may_clip() -> None:
    at = setting("--grpo.clip_range", "1e-6")
    replay = build_replay(at.config, World(), at.trajectory, at.prompts, ADVANTAGE_PG, rng())
    scalars = accumulate_gradients(at.config, at.policy, at.reference, replay, first_pass=True)
    assert max(scalars["ratio_max_deviation"]) < 1e-4  # float32, over another batch than the rollout's
    assert sum(scalars["clip_fraction"]) == 0
    assert {"grad_norm_step_0", "grad_norm_step_1", "grad_norm_step_2"} <= scalars.keys()
    with torch.no_grad():
        for p in at.policy.parameters():
            p.mul_(1.1)
    scalars = accumulate_gradients(at.config, at.policy, at.reference, replay, first_pass=False)
    assert sum(scalars["clip_fraction"]) == len(scalars["clip_fraction"]) == 21


def test_the_anchors_gradient() -> None:
    at = setting("--grpo.anchor_fraction", "1")
    without, _ = update(at)
    at.config.grpo.anchor_weight = 0.5
    with_anchor, scalars = update(at)
    (late,) = (i for i, step in enumerate(at.trajectory.steps) if i > 2)  # the debug run has one step after its window
    kept = torch.nonzero(ADVANTAGE_PG.flatten()).flatten()
    rows = (
        at.trajectory.states[late][kept],
        torch.full((len(kept),), at.trajectory.steps[late].sigma),
        at.prompts.first_BC1HW[kept // GROUP],
        at.prompts.prompt_B[kept // GROUP],
    )
    at.policy.zero_grad()
    drift = (at.policy(*rows) - at.reference(*rows).detach()).square().mean()
    (0.5 * drift).backward()
    assert_equal_gradients(with_anchor - without, gradients(at.policy))
    assert sum(scalars["anchor_drift"]) / 7 == pytest.approx(drift.item(), rel=1e-4)


def test_the_reference_is_left_alone() -> None:
    at = setting("--grpo.anchor_weight", "1", "--grpo.kl_weight", "1")
    before = copy.deepcopy(at.reference.state_dict())
    update(at)
    assert all(p.grad is None for p in at.reference.parameters())
    for name, value in at.reference.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_what_is_replayed_is_what_was_dealt(monkeypatch: pytest.MonkeyPatch) -> None:
    """With several ranks, which `tests/test_rows.py` deals rows to and `tests/test_engine.py` trains with."""
    at = setting()
    monkeypatch.setattr("vrlvr.update.dealt_evenly", lambda rows, world: rows.part(2, 7))
    replay = build_replay(at.config, World(), at.trajectory, at.prompts, ADVANTAGE_PG, rng())
    assert sum(len(batch.x) for batch in replay.batches) == 5
