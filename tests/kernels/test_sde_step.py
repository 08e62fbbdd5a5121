"""The SDE step and its log-probability against torch.distributions and closed forms in float64."""

import pytest
import torch
from torch import Tensor

from vrlvr_kernels.philox import normal_reference
from vrlvr_kernels.sde_step import SDE_STREAM, log_prob_reference, sde_step

A, B, STD = 0.755, -0.0357, 0.7
SHAPE = (3, 5, 2, 3, 3)
SAMPLES_B = torch.tensor([4, 8, 11])


def latents(seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)).to(dtype)


def rows(a: float, b: float, std: float) -> Tensor:
    return torch.tensor([a, b, std], dtype=torch.float64).expand(SHAPE[0], 3)


def normal_log_prob(x: Tensor, v: Tensor, next_x: Tensor) -> Tensor:
    mean = A * x.double() + B * v.double()
    return torch.distributions.Normal(mean, torch.full_like(mean, STD)).log_prob(next_x.double()).flatten(1).mean(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_log_prob_is_the_normal_density_of_what_is_stored(dtype: torch.dtype) -> None:
    x, v = latents(0, dtype), latents(1)
    next_x, log_prob_B = sde_step(x, v, A, B, STD, 7, SAMPLES_B, 2)
    assert next_x.dtype == dtype
    assert log_prob_B.dtype == torch.float32
    torch.testing.assert_close(log_prob_B.double(), normal_log_prob(x, v, next_x), rtol=0, atol=1e-6)
    torch.testing.assert_close(log_prob_reference(x, v, next_x, rows(A, B, STD)), log_prob_B, rtol=0, atol=0)


def test_a_small_std_tells_stored_from_unrounded_latents() -> None:
    x, v = latents(0, torch.bfloat16), latents(1)
    std = 1e-4  # below bfloat16's spacing: the density of the unrounded latents would be a wholly different number
    next_x, log_prob_B = sde_step(x, v, 1.0, B, std, 7, SAMPLES_B, 2)
    mean = x.double() + B * v.double()
    density = torch.distributions.Normal(mean, torch.full_like(mean, std)).log_prob(next_x.double()).flatten(1).mean(1)
    torch.testing.assert_close(log_prob_B.double(), density, rtol=1e-4, atol=0)
    assert (density < 0).all()  # unrounded: about -log(std) - 1.4 > 0


def test_next_is_the_mean_plus_std_times_the_samples_own_noise() -> None:
    x, v = latents(0), latents(1)
    next_x, _ = sde_step(x, v, A, B, STD, 7, SAMPLES_B, 2)
    eps = normal_reference(7, SDE_STREAM, SAMPLES_B, 2, x[0].numel()).view(SHAPE)
    torch.testing.assert_close(next_x, A * x + B * v + STD * eps, rtol=1e-6, atol=1e-6)
    alone, _ = sde_step(x[1:2], v[1:2], A, B, STD, 7, SAMPLES_B[1:2], 2)
    torch.testing.assert_close(alone, next_x[1:2], rtol=0, atol=0)


def test_without_noise_it_is_the_euler_step() -> None:
    x, v = latents(0), latents(1)
    next_x, log_prob_B = sde_step(x, v, 1.0, -0.1, 0.0, 7, SAMPLES_B, 2)
    torch.testing.assert_close(next_x, x - 0.1 * v, rtol=0, atol=0)
    assert log_prob_B.tolist() == [0.0] * 3


def test_gradient_is_the_analytic_one_and_autograds() -> None:
    x, next_x = latents(0), latents(2)
    v = latents(1).requires_grad_()
    log_prob_reference(x, v, next_x, rows(A, B, STD)).sum().backward()
    v64 = v.detach().double().requires_grad_()
    normal_log_prob(x, v64, next_x).sum().backward()
    analytic = B * (next_x.double() - A * x.double() - B * v64.detach()) / (STD**2 * x[0].numel())
    torch.testing.assert_close(v64.grad, analytic, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(v.grad.double(), analytic, rtol=1e-5, atol=1e-9)


def test_every_sample_may_be_at_a_step_of_its_own() -> None:
    x, v, next_x = latents(0), latents(1), latents(2)
    coefficients_B3 = torch.tensor([[0.755, -0.04, 0.7], [0.9, -0.1, 0.3], [1.0, -0.2, 0.01]], dtype=torch.float64)
    together = log_prob_reference(x, v, next_x, coefficients_B3)
    for i in range(3):
        alone = log_prob_reference(x[i : i + 1], v[i : i + 1], next_x[i : i + 1], coefficients_B3[i : i + 1])
        torch.testing.assert_close(alone, together[i : i + 1], rtol=1e-6, atol=0)


def test_nothing_of_the_step_needs_a_gradient() -> None:
    next_x, log_prob_B = sde_step(latents(0), latents(1).requires_grad_(), A, B, STD, 7, SAMPLES_B, 2)
    assert not next_x.requires_grad
    assert not log_prob_B.requires_grad
