"""The samplers against the published forms, and their moments in closed form; all float64, no sampling."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vrlvr.sde import ODE, SAMPLERS, Step, coefficients, plan_steps, shifted, sigma_schedule

sigma_pairs = st.tuples(st.floats(0.001, 1), st.floats(0, 0.999)).map(lambda p: (p[0], p[0] * p[1]))
levels = st.floats(0.01, 1)


def published_flow_grpo(x: float, v: float, s: float, n: float, eta: float, eps: float) -> float:
    """Flow-GRPO (arXiv 2505.05470), eq. 9 with its code's treatment of sigma = 1: dt = n - s, g = eta sqrt(s / (1 - s))."""
    dt, g = n - s, eta * math.sqrt(s / (1 - (n if s == 1 else s)))
    return x + (v + g**2 / (2 * s) * (x + (1 - s) * v)) * dt + g * math.sqrt(-dt) * eps


def published_dance_grpo(x: float, v: float, s: float, n: float, eta: float, eps: float) -> float:
    """DanceGRPO (arXiv 2505.07818): the reverse SDE with the score -(x - (1 - s) x0) / s^2 and a constant eta."""
    dt, x0 = n - s, x - s * v
    score = -(x - (1 - s) * x0) / s**2
    return x + (v - eta**2 / 2 * score) * dt + eta * math.sqrt(-dt) * eps


def published_cps(x: float, v: float, s: float, n: float, eta: float, eps: float) -> float:
    """Coefficient-preserving sampling (arXiv 2509.05952): (1 - n) x0 + n cos(eta pi / 2) x1 + n sin(eta pi / 2) eps."""
    x0, x1 = x - s * v, x + (1 - s) * v
    return (1 - n) * x0 + n * math.cos(eta * math.pi / 2) * x1 + n * math.sin(eta * math.pi / 2) * eps


PUBLISHED = {"flow_sde": published_flow_grpo, "dance_sde": published_dance_grpo, "cps": published_cps}


@pytest.mark.parametrize("sampler", SAMPLERS)
@given(sigmas=sigma_pairs, eta=levels, x=st.floats(-4, 4), v=st.floats(-4, 4), eps=st.floats(-4, 4))
def test_every_step_is_the_published_one(
    sampler: str, sigmas: tuple[float, float], eta: float, x: float, v: float, eps: float
) -> None:
    step = coefficients(sampler, *sigmas, eta)
    expected = PUBLISHED[sampler](x, v, *sigmas, eta, eps)
    terms = (step.a * x, step.b * v, step.std * eps)
    assert sum(terms) == pytest.approx(expected, rel=1e-8, abs=1e-9 * max(1, *map(abs, terms)))


@given(sigmas=sigma_pairs, sampler=st.sampled_from([ODE, *SAMPLERS]))
def test_without_noise_every_sampler_is_eulers(sigmas: tuple[float, float], sampler: str) -> None:
    s, n = sigmas
    assert coefficients(sampler, s, n, 0.0) == Step(s, n, 1.0, n - s, 0.0) == coefficients(ODE, s, n, 0.7)


def test_sigma_one_is_exact() -> None:
    first = coefficients("flow_sde", *sigma_schedule(10, 3.0)[:2], 0.7)
    assert first.sigma == 1.0
    assert first.a == pytest.approx(1 - 0.7**2 / 2, abs=1e-12)  # 0.755, not the -1.45 of an equality test that misses
    assert first.std == pytest.approx(0.7, abs=1e-12)


@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0])
@pytest.mark.parametrize("num_steps", [10, 20, 50])
def test_flow_sdes_std_meets_no_jump_after_sigma_one(num_steps: int, shift: float) -> None:
    first, *others = [step.std for step in plan_steps(sigma_schedule(num_steps, shift), "flow_sde", 0.7, num_steps - 1)]
    assert first == pytest.approx(0.7, abs=1e-12)
    assert 0.9 < others[0] / first < 1.1
    assert max(others[:-1]) < 1.1 * first


@pytest.mark.parametrize(("s", "n"), [(0.5, 0.5), (0.5, 0.6), (1.1, 0.5), (0.5, -0.1)])
def test_sigmas_out_of_order_are_refused(s: float, n: float) -> None:
    with pytest.raises(ValueError, match="sigma must fall within"):
        coefficients("cps", s, n, 0.7)


def test_an_unknown_sampler_is_refused() -> None:
    with pytest.raises(ValueError, match="use one of flow_sde, dance_sde, cps"):
        coefficients("ddpm", 1.0, 0.9, 0.7)


# Around one given video x0, x = (1 - s) x0 + s noise with v = noise - x0: the signal and the noise left after a step.
def signal_and_noise(step: Step) -> tuple[float, float]:
    signal = step.a * (1 - step.sigma) - step.b
    return signal, math.hypot(step.a * step.sigma + step.b, step.std)


@given(sigmas=sigma_pairs, eta=levels)
def test_cps_keeps_the_odes_coefficients_at_any_step_size(sigmas: tuple[float, float], eta: float) -> None:
    signal, noise = signal_and_noise(coefficients("cps", *sigmas, eta))
    assert signal == pytest.approx(1 - sigmas[1], abs=1e-12)
    assert noise == pytest.approx(sigmas[1], abs=1e-12)


@pytest.mark.parametrize("sampler", ["flow_sde", "dance_sde"])
def test_the_sdes_keep_the_odes_coefficients_as_steps_shrink(sampler: str) -> None:
    for s in (0.9, 0.5, 0.2):
        errors = []
        for d in (0.02, 0.01, 0.005):
            signal, noise = signal_and_noise(coefficients(sampler, s, s - d, 0.7))
            assert signal == pytest.approx(1 - s + d, abs=1e-12)
            errors.append(noise - (s - d))
        assert all(0 < after < 0.3 * before for before, after in pairwise(errors))  # an error of second order a step


# Data N(0, spread^2): x_s has the variance V(s), and the velocity E[noise - x0 | x_s = x] is k(s) x.
def variance_error(sampler: str, num_steps: int, spread: float, start: float) -> float:
    """Final variance less spread^2, starting at sigma `start` from the exact marginal."""

    def marginal(s: float) -> float:
        return (1 - s) ** 2 * spread**2 + s**2

    sigmas = [start * s for s in sigma_schedule(num_steps, 3.0)]
    variance = marginal(start)
    for step in plan_steps(sigmas, sampler, 0.7, num_steps - 1):
        k = (step.sigma - (1 - step.sigma) * spread**2) / marginal(step.sigma)
        variance = (step.a + step.b * k) ** 2 * variance + step.std**2
    return variance - spread**2


@pytest.mark.parametrize("spread", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("sampler", [ODE, "flow_sde", "dance_sde"])
def test_the_sdes_sample_the_data_as_steps_shrink(sampler: str, spread: float) -> None:
    errors = [abs(variance_error(sampler, n, spread, start=0.9)) for n in (160, 320, 640, 1280)]
    assert all(0.45 < after / before < 0.52 for before, after in pairwise(errors)), errors


@pytest.mark.parametrize("spread", [0.3, 1.0, 2.0])
def test_flow_sdes_singular_start_is_forgotten(spread: float) -> None:
    """From sigma 1 the first steps' noise does not shrink with the step, so the error falls, but slower than by halves."""
    coarse, fine = (abs(variance_error("flow_sde", n, spread, start=1.0)) for n in (20, 20_000))
    assert fine < 0.02 * coarse
    assert fine < 2e-3 * spread**2


@pytest.mark.parametrize("sampler", [ODE, *SAMPLERS])
def test_a_single_video_is_sampled_exactly_by_all(sampler: str) -> None:
    assert variance_error(sampler, 10, 0.0, start=1.0) == pytest.approx(0, abs=1e-15)


def test_cps_narrows_spread_data_at_any_step_size() -> None:
    """It keeps the coefficients around each x0, not the marginals of data that the velocity cannot tell apart."""
    errors = [variance_error("cps", n, 1.0, start=0.9) for n in (160, 1280)]
    assert -0.31 < errors[0] < errors[1] < -0.27


@given(num_steps=st.integers(1, 100), shift=st.floats(0.05, 20))
def test_schedules_fall_from_exactly_one_to_exactly_zero(num_steps: int, shift: float) -> None:
    sigmas = sigma_schedule(num_steps, shift)
    assert len(sigmas) == num_steps + 1
    assert (sigmas[0], sigmas[-1]) == (1.0, 0.0)
    assert all(s > n for s, n in pairwise(sigmas))
    for i, sigma in enumerate(sigmas):
        s = 1 - i / num_steps
        assert sigma == pytest.approx(shift * s / (1 + (shift - 1) * s), abs=1e-12)


@given(data=st.data(), num_steps=st.integers(2, 60))
def test_a_coarse_tail_walks_a_subset_of_the_grid(data: st.DataObject, num_steps: int) -> None:
    start = data.draw(st.integers(0, num_steps - 1))
    tail = data.draw(st.integers(1, num_steps - start))
    grid, sigmas = sigma_schedule(num_steps, 3.0), sigma_schedule(num_steps, 3.0, start, tail)
    assert len(sigmas) == start + tail + 1
    assert sigmas[: start + 1] == grid[: start + 1]
    assert set(sigmas) <= set(grid)
    assert sigmas[-1] == 0.0
    assert all(s > n for s, n in pairwise(sigmas))


def test_early_step_focus_puts_noise_in_the_first_steps_only() -> None:
    steps = plan_steps(sigma_schedule(10, 3.0), "cps", 0.7, 4)
    assert [step.std > 0 for step in steps] == [True] * 4 + [False] * 6
    assert all((step.a, step.b) == (1.0, step.sigma_next - step.sigma) for step in steps[4:])


@given(s=st.floats(0, 1))
def test_shifting_by_one_changes_nothing(s: float) -> None:
    assert shifted(s, 1.0) == pytest.approx(s, abs=1e-15)
