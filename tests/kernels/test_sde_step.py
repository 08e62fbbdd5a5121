"""The SDE step and its log-probability against torch.distributions and closed forms in float64."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from kernel_checks import DEVICE, DTYPES, assert_near, random
from torch import Tensor

from vrlvr_kernels.launch import implementation
from vrlvr_kernels.philox import BLOCK, normal
from vrlvr_kernels.sde_step import SDE_STREAM, log_prob_reference, sde_step, sde_step_op, sde_step_reference

A, B, STD = 0.755, -0.0357, 0.7
SHAPE = (3, 5, 2, 3, 3)
SHAPES = [SHAPE, (1, 1), (2, BLOCK - 1), (2, BLOCK), (2, 2 * BLOCK + 3)]
SEED = 7


def samples(shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.tensor([4, 8, 2**32 - 1], device=DEVICE)[: shape[0]]


def step(x: Tensor, v: Tensor, std: float = STD, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    return sde_step(x, v, A, B, std, SEED, samples(tuple(x.shape)), 2, mask)


def rows(a: float, b: float, std: float, num: int = SHAPE[0]) -> Tensor:
    return torch.tensor([a, b, std], dtype=torch.float64, device=DEVICE).expand(num, 3)


def normal_density(x: Tensor, v: Tensor, next_x: Tensor, std: float = STD, a: float = A) -> Tensor:
    """log N(next_x; a x + B v, std) of each element, in float64."""
    mean = a * x.double() + B * v.double()
    return torch.distributions.Normal(mean, torch.full_like(mean, std)).log_prob(next_x.double()).flatten(1)


def some_elements(shape: tuple[int, ...]) -> Tensor:
    """A mask; its first element is selected."""
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(5)) < 0.6
    mask.view(-1)[0] = True
    return mask.to(DEVICE)


# The interpreter only truncates when it rounds to bfloat16, but the density is of what it stored all the same.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_log_prob_is_the_normal_density_of_what_is_stored(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, v = random(shape, 0, dtype), random(shape, 1)
    next_x, log_prob_B = step(x, v)
    assert next_x.dtype == dtype
    assert log_prob_B.dtype == torch.float32
    assert (next_x != x).any()
    torch.testing.assert_close(log_prob_B.double(), normal_density(x, v, next_x).mean(1), rtol=0, atol=1e-6)
    reference = log_prob_reference(x, v, next_x, rows(A, B, STD, len(x)))
    torch.testing.assert_close(reference, log_prob_B, rtol=0, atol=1e-6)


def test_a_small_std_tells_stored_from_unrounded_latents() -> None:
    x, v = random(SHAPE, 0, torch.bfloat16), random(SHAPE, 1)
    std = 1e-4  # below bfloat16's spacing: the density of the unrounded latents would be a wholly different number
    next_x, log_prob_B = sde_step(x, v, 1.0, B, std, SEED, samples(), 2)
    density_B = normal_density(x, v, next_x, std, a=1.0).mean(1)
    torch.testing.assert_close(log_prob_B.double(), density_B, rtol=1e-4, atol=0)
    assert (density_B < 0).all()  # unrounded: about -log(std) - 1.4 > 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_next_is_the_mean_plus_std_times_the_samples_own_noise(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, v = random(shape, 0, dtype), random(shape, 1, dtype)
    next_x, _ = step(x, v)
    eps = normal(SEED, SDE_STREAM, samples(shape), 2, x[0].numel()).view(shape)
    assert_near(next_x, A * x.double() + B * v.double() + STD * eps.double(), dtype)
    last = slice(len(x) - 1, None)
    alone, log_prob_1 = sde_step(x[last], v[last], A, B, STD, SEED, samples(shape)[last], 2)
    assert torch.equal(alone, next_x[last])
    assert torch.equal(log_prob_1, step(x, v)[1][last])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("std", [STD, 0.0])
def test_next_has_the_bits_of_the_reference(std: float, dtype: torch.dtype) -> None:
    shape = (3, 41, 50)
    x, v, mask = random(shape, 0, dtype), random(shape, 1), some_elements(shape[1:])
    expected, _ = sde_step_reference(x.cpu(), v.cpu(), A, B, std, SEED, samples().cpu(), 2, mask.cpu())
    assert torch.equal(step(x, v, std, mask)[0].cpu(), expected)


def test_without_noise_it_is_the_euler_step() -> None:
    x, v = random(SHAPE, 0), random(SHAPE, 1)
    next_x, log_prob_B = sde_step(x, v, 1.0, -0.1, 0.0, SEED, samples(), 2)
    assert torch.equal(next_x, x - 0.1 * v)
    assert log_prob_B.tolist() == [0.0] * 3


@pytest.mark.parametrize("name", ["triton", "reference"])
@pytest.mark.parametrize("std", [STD, 0.0])
def test_masked_elements_stay_and_do_not_count(std: float, name: str) -> None:
    shape = (2, 3, 700)
    x, v, mask = random(shape, 0), random(shape, 1), some_elements(shape[1:])
    whole, _ = step(x, v, std)
    x, v = x.masked_fill(~mask, float("nan")), v.masked_fill(~mask, float("nan"))
    with implementation(name):
        next_x, log_prob_B = step(x, v, std, mask)
    assert torch.equal(next_x[:, mask], whole[:, mask])
    assert next_x[:, ~mask].isnan().all()  # x's own
    if std > 0:
        density_B = normal_density(x[:, mask], v[:, mask], next_x[:, mask]).mean(1)
        torch.testing.assert_close(log_prob_B.double(), density_B, rtol=0, atol=1e-6)


def test_a_mask_of_a_whole_frame_by_broadcast() -> None:
    """What a pinned first frame needs: (C, F, H, W), False in frame 0."""
    x, v = random(SHAPE, 0), random(SHAPE, 1)
    mask = (torch.arange(SHAPE[2], device=DEVICE) > 0)[None, :, None, None].expand(SHAPE[1:])
    next_x, log_prob_B = step(x, v, mask=mask)
    assert torch.equal(next_x[:, :, 0], x[:, :, 0])
    assert torch.equal(next_x[:, :, 1:], step(x, v)[0][:, :, 1:])
    density_B = normal_density(x[:, :, 1:], v[:, :, 1:], next_x[:, :, 1:]).mean(1)
    torch.testing.assert_close(log_prob_B.double(), density_B, rtol=0, atol=1e-6)


def test_gradient_is_the_analytic_one_and_autograds() -> None:
    x, next_x = random(SHAPE, 0), random(SHAPE, 2)
    v = random(SHAPE, 1).requires_grad_()
    log_prob_reference(x, v, next_x, rows(A, B, STD)).sum().backward()
    v64 = v.detach().double().requires_grad_()
    normal_density(x, v64, next_x).mean(1).sum().backward()
    analytic = B * (next_x.double() - A * x.double() - B * v64.detach()) / (STD**2 * x[0].numel())
    torch.testing.assert_close(v64.grad, analytic, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(v.grad.double(), analytic, rtol=1e-5, atol=1e-9)


def test_the_reference_keeps_float64() -> None:
    x, v, next_x = (random(SHAPE, i).double() for i in range(3))
    mask = some_elements(SHAPE[1:])
    found_B = log_prob_reference(x, v, next_x, rows(A, B, STD), mask)
    expected_B = normal_density(x, v, next_x)[:, mask.flatten()].mean(1)
    torch.testing.assert_close(found_B, expected_B, rtol=1e-13, atol=0)


def test_every_sample_may_be_at_a_step_of_its_own() -> None:
    x, v, next_x = random(SHAPE, 0), random(SHAPE, 1), random(SHAPE, 2)
    coefficients_B3 = torch.tensor([[0.755, -0.04, 0.7], [0.9, -0.1, 0.3], [1.0, -0.2, 0.01]], dtype=torch.float64)
    coefficients_B3 = coefficients_B3.to(DEVICE)
    together = log_prob_reference(x, v, next_x, coefficients_B3)
    for i in range(3):
        alone = log_prob_reference(x[i : i + 1], v[i : i + 1], next_x[i : i + 1], coefficients_B3[i : i + 1])
        torch.testing.assert_close(alone, together[i : i + 1], rtol=1e-6, atol=0)


def test_nothing_of_the_step_needs_a_gradient() -> None:
    next_x, log_prob_B = step(random(SHAPE, 0), random(SHAPE, 1).requires_grad_())
    assert not next_x.requires_grad
    assert not log_prob_B.requires_grad


def test_strided_input() -> None:
    shape = (2, 30, 70)
    x, v, mask = random(shape, 0, strided=True), random((2, 70, 30), 1).transpose(1, 2), some_elements((70, 30)).T
    found, expected = step(x, v, mask=mask), step(x.contiguous(), v.contiguous(), mask=mask.contiguous())
    assert found[0].is_contiguous()
    for actual, target in zip(found, expected, strict=True):
        assert torch.equal(actual, target)


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4)])
def test_empty(shape: tuple[int, ...]) -> None:
    next_x, log_prob_B = step(random(shape, 0), random(shape, 1))
    assert next_x.shape == shape
    assert log_prob_B.tolist() == [0.0] * shape[0]


def test_two_runs_are_bit_equal() -> None:
    shape = (2, 3 * BLOCK)
    for first, second in zip(*(step(random(shape, 0), random(shape, 1)) for _ in range(2)), strict=True):
        assert torch.equal(first, second)


def test_shapes_that_do_not_fit_are_refused() -> None:
    x = random(SHAPE, 0)
    with pytest.raises(ValueError, match=r"v of shape \(3, 5\) must have that of x"):
        step(x, x[..., 0, 0, 0])
    with pytest.raises(ValueError, match=r"mask of shape \(3, 5, 2, 3, 3\), torch.bool, must be \(5, 2, 3, 3\)"):
        step(x, x, mask=x > 0)
    with pytest.raises(ValueError, match=r"mask of shape .* torch.float32, must be .* torch.bool"):
        step(x, x, mask=x[0])


@pytest.mark.parametrize("std", [STD, 0.0])
def test_custom_op(std: float) -> None:
    x, v = random(SHAPE, 0), random(SHAPE, 1)
    for mask in (None, some_elements(SHAPE[1:])):
        torch.library.opcheck(sde_step_op, (x, v, A, B, std, SEED, samples(), 2, mask))


def test_survives_compile() -> None:
    x, v = random(SHAPE, 0), random(SHAPE, 1).requires_grad_()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for actual, expected in zip(compiled(x, v), step(x, v), strict=True):
        assert torch.equal(actual, expected)


# For two dtypes of the latents, with mask and KL and without: the layouts in which the kernels of rollout and replay sum.
LAYOUTS = """
import re, torch
from compile_gate import _launches_compile
from kernel_cases import Case
from vrlvr_kernels.grpo_loss import _forward
from vrlvr_kernels.sde_step import _sde_step

def empty(*shape, dtype): return torch.empty(shape, dtype=dtype, device="meta")
f32, bf16 = torch.float32, torch.bfloat16
shape = (2, 48, 21, 30, 52)
one_B, samples_B = empty(2, dtype=f32), empty(2, dtype=torch.int64)
active_B, rows = empty(2, dtype=torch.bool), empty(2, 3, dtype=torch.float64)
for x_dtype, everything in ((bf16, True), (f32, False)):
    x, v = empty(*shape, dtype=x_dtype), empty(*shape, dtype=bf16)
    mask = empty(*shape[1:], dtype=torch.bool) if everything else None
    launches = (
        lambda: _sde_step(x, v, 0.9, 0.1, 0.3, 5, samples_B, 2, mask),
        lambda: _forward(v, x, x, one_B, rows, 0.1, one_B, v if everything else None, 0.1, active_B, mask),
    )
    for i, launch in enumerate(launches):
        with _launches_compile(Case(str((i, x_dtype)), launch), 90) as compiled:
            launch()
        for kernel, _ in compiled:
            text = kernel.asm["ttgir"]
            aliases = dict(re.findall(r"^(#[a-z0-9]+) = (.*)$", text, re.M))
            sums = set(re.findall(r"\\(tensor<(\\d+xf32), (#\\w+)>\\) -> f32", text))
            assert sums, text
            print(i, *sorted(f"{size} {aliases[layout]}" for size, layout in sums))
"""


def test_rollout_and_replay_sum_in_the_same_order_on_a_gpu() -> None:
    """Their kernels differ, and a sum's order follows from the layout that the compiler chose; here it is looked at."""
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    paths = [str(Path(__file__).parents[2] / "profiling"), *filter(None, [os.environ.get("PYTHONPATH")])]
    result = subprocess.run(
        [sys.executable, "-c", LAYOUTS],
        capture_output=True,
        text=True,
        env=kept | {"PYTHONPATH": os.pathsep.join(paths)},
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 8  # two kernels each, of rollout and replay, for two dtypes
    rollout, replay = ([line[1:] for line in lines if line[0] == i] for i in "01")
    assert rollout == replay
