"""The clipped GRPO loss against a slow loop in float64, written from the formulas."""

import math

import pytest
import torch
from torch import Tensor

from vrlvr_kernels.grpo_loss import GrpoTerms, grpo_loss

SHAPE = (6, 4, 3, 2)
CLIP = 0.1
COEFFICIENTS_B3 = torch.tensor([[0.9, -0.3, 0.5], [0.755, -0.0357, 0.7]] * 3, dtype=torch.float64)
ADVANTAGE_B = torch.tensor([1.5, 1.5, 1.5, -0.8, -0.8, -0.8])
# old - current log-prob: ratios far above, within and far below the clip range, for both signs of the advantage.
OFFSET_B = torch.tensor([-0.5, 0.05, 0.5, -0.5, 0.05, 0.5])
KL_WEIGHT = 0.3


def inputs() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(SHAPE, generator=generator) for _ in range(4)]


def slow_log_prob(v: Tensor, x: Tensor, next_x: Tensor) -> Tensor:
    values = []
    for i, (a, b, std) in enumerate(COEFFICIENTS_B3.tolist()):
        residual = next_x[i].double() - a * x[i].double() - b * v[i].double()
        density = -(residual**2) / (2 * std**2) - math.log(std) - math.log(2 * math.pi) / 2
        values.append(density.sum() / density.numel())
    return torch.stack(values)


def slow_loss(v: Tensor, v_ref: Tensor, log_prob_B: Tensor, old_B: Tensor) -> Tensor:
    losses = []
    for i, (_, b, std) in enumerate(COEFFICIENTS_B3.tolist()):
        ratio, advantage = torch.exp(log_prob_B[i] - old_B[i]), ADVANTAGE_B[i].double()
        plain = ratio * advantage
        clipped = min(max(ratio.item(), 1 - CLIP), 1 + CLIP) * advantage  # a constant where the clip is active
        surrogate = plain if plain <= clipped else clipped
        kl = b**2 * ((v[i] - v_ref[i].double()) ** 2).mean() / (2 * std**2)
        losses.append(KL_WEIGHT * kl - surrogate)
    return torch.stack(losses)


def compare(with_old: bool) -> GrpoTerms:
    v, x, next_x, v_ref = inputs()
    v.requires_grad_()
    v64 = v.detach().double().requires_grad_()
    log_prob_B = slow_log_prob(v64, x, next_x)
    old_B = log_prob_B.detach() + OFFSET_B if with_old else log_prob_B.detach()
    expected_B = slow_loss(v64, v_ref, log_prob_B, old_B)
    expected_B.sum().backward()
    given = old_B.float() if with_old else None
    terms = grpo_loss(v, x, next_x, ADVANTAGE_B, COEFFICIENTS_B3, CLIP, given, v_ref, KL_WEIGHT)
    terms.loss_B.sum().backward()
    torch.testing.assert_close(terms.loss_B.double(), expected_B, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(terms.log_prob_B.double(), log_prob_B.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(v.grad.double(), v64.grad, rtol=1e-4, atol=1e-8)
    return terms


def test_clipped_and_unclipped_of_both_signs() -> None:
    terms = compare(with_old=True)
    assert terms.clipped_B.tolist() == [1, 0, 1, 1, 0, 1]
    torch.testing.assert_close(terms.ratio_B, (-OFFSET_B).exp(), rtol=1e-5, atol=0)


def test_the_first_pass_has_a_ratio_of_exactly_one() -> None:
    terms = compare(with_old=False)
    assert terms.ratio_B.tolist() == [1.0] * 6
    assert terms.clipped_B.tolist() == [0.0] * 6


@pytest.mark.parametrize(("index", "moves"), [(0, False), (2, True), (3, True), (5, False)])
def test_the_clip_stops_only_what_goes_too_far_the_right_way(index: int, moves: bool) -> None:
    v, x, next_x, _ = inputs()
    v.requires_grad_()
    old_B = grpo_loss(v, x, next_x, ADVANTAGE_B, COEFFICIENTS_B3, CLIP).log_prob_B + OFFSET_B
    grpo_loss(v, x, next_x, ADVANTAGE_B, COEFFICIENTS_B3, CLIP, old_B).loss_B[index].backward()
    assert bool((v.grad[index] != 0).any()) == moves


def test_what_is_logged_carries_no_gradient() -> None:
    v, x, next_x, v_ref = inputs()
    terms = grpo_loss(v.requires_grad_(), x, next_x, ADVANTAGE_B, COEFFICIENTS_B3, CLIP, None, v_ref, KL_WEIGHT)
    assert terms.loss_B.requires_grad
    for logged in (terms.log_prob_B, terms.ratio_B, terms.clipped_B, terms.kl_B):
        assert not logged.requires_grad


def test_kl_of_the_reference_to_itself_is_zero() -> None:
    v, x, next_x, _ = inputs()
    terms = grpo_loss(v, x, next_x, ADVANTAGE_B, COEFFICIENTS_B3, CLIP, None, v, KL_WEIGHT)
    assert terms.kl_B.tolist() == [0.0] * 6
