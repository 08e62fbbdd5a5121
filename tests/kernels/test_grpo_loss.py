"""The clipped GRPO loss against a slow loop in float64, written from the formulas."""

import math
from dataclasses import fields

import pytest
import torch
from kernel_checks import DEVICE, DTYPES, assert_near, random
from torch import Tensor

from vrlvr_kernels.grpo_loss import GrpoTerms, backward_op, forward_op, grpo_loss, grpo_loss_reference
from vrlvr_kernels.launch import implementation
from vrlvr_kernels.philox import BLOCK
from vrlvr_kernels.sde_step import sde_step

SHAPE = (6, 4, 3, 2)
CLIP = 0.1
COEFFICIENTS_B3 = torch.tensor([[0.9, -0.3, 0.5], [0.755, -0.0357, 0.7]] * 3, dtype=torch.float64, device=DEVICE)
ADVANTAGE_B = torch.tensor([1.5, 1.5, 1.5, -0.8, -0.8, -0.8], device=DEVICE)
# old - current log-prob: ratios far above, within and far below the clip range, for both signs of the advantage.
OFFSET_B = torch.tensor([-0.5, 0.05, 0.5, -0.5, 0.05, 0.5], device=DEVICE)
KL_WEIGHT = 0.3


def inputs(shape: tuple[int, ...] = SHAPE, dtype: torch.dtype = torch.float32, strided: bool = False) -> list[Tensor]:
    """v, x, next_x, v_ref."""
    return [random(shape, seed, dtype, strided) for seed in range(4)]


def some_elements(shape: tuple[int, ...]) -> Tensor:
    """A mask; its first element is selected."""
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(5)) < 0.6
    mask.view(-1)[0] = True
    return mask.to(DEVICE)


def slow_log_prob(v: Tensor, x: Tensor, next_x: Tensor, counted: Tensor) -> Tensor:
    values = []
    for i, (a, b, std) in enumerate(COEFFICIENTS_B3[: len(v)].tolist()):
        residual = (next_x[i].double() - a * x[i].double() - b * v[i].double())[counted]
        density = -(residual**2) / (2 * std**2) - math.log(std) - math.log(2 * math.pi) / 2
        values.append(density.sum() / density.numel())
    return torch.stack(values)


def slow_loss(v: Tensor, v_ref: Tensor, log_prob_B: Tensor, old_B: Tensor, counted: Tensor) -> Tensor:
    losses = []
    for i, (_, b, std) in enumerate(COEFFICIENTS_B3[: len(v)].tolist()):
        ratio, advantage = torch.exp(log_prob_B[i] - old_B[i]), ADVANTAGE_B[i].double()
        plain = ratio * advantage
        clipped = min(max(ratio.item(), 1 - CLIP), 1 + CLIP) * advantage  # a constant where the clip is active
        surrogate = plain if plain <= clipped else clipped
        kl = b**2 * ((v[i] - v_ref[i].double())[counted] ** 2).mean() / (2 * std**2)
        losses.append(KL_WEIGHT * kl - surrogate)
    return torch.stack(losses)


def compare(
    with_old: bool,
    shape: tuple[int, ...] = SHAPE,
    dtype: torch.dtype = torch.float32,
    mask: Tensor | None = None,
    strided: bool = False,
) -> GrpoTerms:
    """`grpo_loss` of at most 6 samples and its gradient, in whatever runs, against the loop."""
    v, x, next_x, v_ref = inputs(shape, dtype, strided)
    counted = torch.ones(shape[1:], dtype=torch.bool, device=DEVICE) if mask is None else mask
    v.requires_grad_()
    v64 = v.detach().double().requires_grad_()
    log_prob_B = slow_log_prob(v64, x, next_x, counted)
    old_B = log_prob_B.detach() + OFFSET_B[: len(v)] if with_old else log_prob_B.detach()
    expected_B = slow_loss(v64, v_ref, log_prob_B, old_B, counted)
    weights_B = torch.linspace(1, 2, len(v), device=DEVICE)
    (expected_B * weights_B).sum().backward()
    given, rows = old_B.float() if with_old else None, slice(len(v))
    terms = grpo_loss(v, x, next_x, ADVANTAGE_B[rows], COEFFICIENTS_B3[rows], CLIP, given, v_ref, KL_WEIGHT, mask=mask)
    (terms.loss_B * weights_B).sum().backward()
    torch.testing.assert_close(terms.loss_B.double(), expected_B.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(terms.log_prob_B.double(), log_prob_B.detach(), rtol=1e-5, atol=1e-6)
    assert v.grad is not None
    assert v64.grad is not None
    assert v.grad.dtype == dtype
    for grad, expected in zip(v.grad, v64.grad, strict=True):  # sample by sample: they differ in size
        assert_near(grad / expected.abs().max(), expected / expected.abs().max(), dtype, factor=5)  # of a ratio's error
    return terms


def test_clipped_and_unclipped_of_both_signs() -> None:
    terms = compare(with_old=True)
    assert terms.clipped_B.tolist() == [1, 0, 1, 1, 0, 1]
    torch.testing.assert_close(terms.ratio_B, (-OFFSET_B).exp(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", ["triton", "reference"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", [SHAPE, (1, 1), (2, BLOCK - 1), (3, 2, BLOCK), (1, 2 * BLOCK + 3)])
def test_odd_sizes(shape: tuple[int, ...], masked: bool, name: str) -> None:
    with implementation(name):
        compare(True, shape, mask=some_elements(shape[1:]) if masked else None)


@pytest.mark.parametrize("dtype", DTYPES)
def test_strided_input_of_every_dtype(dtype: torch.dtype) -> None:
    compare(True, (3, 30, 50), dtype, some_elements((50, 30)).T, strided=True)


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
    assert v.grad is not None
    assert bool((v.grad[index] != 0).any()) == moves


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", ["triton", "reference"])
def test_replay_has_the_bits_of_the_rollout(name: str, masked: bool, dtype: torch.dtype) -> None:
    """Samples of several steps in another order and batch size; what is stored and the velocity are the same."""
    shape = (4, 3, BLOCK + 40)
    # The reference on a CPU: a GPU's sums over rows go in an order that depends on how many rows there are.
    device = DEVICE if name == "triton" else torch.device("cpu")
    mask, samples_B = some_elements(shape[1:]).to(device) if masked else None, torch.arange(4, device=device)
    steps = [(0.755, -0.0357, 0.7), (0.9, -0.1, 0.3)]
    with implementation(name):
        x = [random(shape, 0, dtype).to(device)]
        v = [random(shape, 1, dtype).to(device), random(shape, 2, dtype).to(device)]
        old = []
        for i, coefficients in enumerate(steps):
            next_x, log_prob_B = sde_step(x[i], v[i], *coefficients, 7, samples_B, i, mask)
            x.append(next_x)
            old.append(log_prob_B)
        picked = [(1, 3), (0, 2), (1, 0)]  # step, sample
        rows = torch.tensor([steps[i] for i, _ in picked], dtype=torch.float64, device=device)
        v_B, x_B, next_B = (torch.stack([part[i][b] for i, b in picked]) for part in (v, x, x[1:]))
        old_B = torch.stack([old[i][b] for i, b in picked])
        terms = grpo_loss(v_B, x_B, next_B, ADVANTAGE_B[:3].to(device), rows, CLIP, old_B, mask=mask)
    assert torch.equal(terms.log_prob_B, old_B)
    assert terms.ratio_B.tolist() == [1.0] * 3
    assert terms.clipped_B.tolist() == [0.0] * 3


@pytest.mark.parametrize("name", ["triton", "reference"])
@pytest.mark.parametrize("with_kl", [False, True])
def test_idle_samples_are_not_read(with_kl: bool, name: str) -> None:
    """Not in the window, or of zero advantage (which still has a KL): NaN in their place reaches nothing."""
    v, x, next_x, v_ref = inputs()
    advantage_B = torch.tensor([1.5, 0.0, -0.8, 0.0, 2.0, 1.0], device=DEVICE)
    active_B = torch.tensor([True, True, False, False, True, False], device=DEVICE)
    read_B = active_B if with_kl else active_B & (advantage_B != 0)
    old_B = torch.full((6,), -1.2, device=DEVICE)
    for tensor in (v, x, next_x, v_ref, old_B):
        tensor[~read_B] = float("nan")
    v.requires_grad_()
    ref = v_ref if with_kl else None
    with implementation(name):
        terms = grpo_loss(v, x, next_x, advantage_B, COEFFICIENTS_B3, CLIP, old_B, ref, KL_WEIGHT, active_B)
        (terms.loss_B * 2).sum().backward()
        rows = read_B.nonzero().flatten()
        alone = v.detach()[rows].requires_grad_()
        some = grpo_loss(
            alone, x[rows], next_x[rows], advantage_B[rows], COEFFICIENTS_B3[rows], CLIP, old_B[rows],
            None if ref is None else ref[rows], KL_WEIGHT,
        )  # fmt: skip
        (some.loss_B * 2).sum().backward()
    for field in fields(GrpoTerms):
        found = getattr(terms, field.name)
        assert torch.equal(found[rows], getattr(some, field.name))
        assert (found[~read_B] == (1.0 if field.name == "ratio_B" else 0.0)).all()
    assert v.grad is not None
    assert alone.grad is not None
    assert torch.equal(v.grad[rows], alone.grad)
    assert (v.grad[~read_B] == 0).all()
    assert (alone.grad != 0).any()


@pytest.mark.parametrize("name", ["triton", "reference"])
def test_nobody_active(name: str) -> None:
    v, x, next_x, v_ref = inputs()
    v.requires_grad_()
    idle_B = torch.zeros(6, dtype=torch.bool, device=DEVICE)
    with implementation(name):
        terms = grpo_loss(v, x, next_x, ADVANTAGE_B, COEFFICIENTS_B3, CLIP, None, v_ref, KL_WEIGHT, idle_B)
    terms.loss_B.sum().backward()
    assert terms.loss_B.tolist() == [0.0] * 6
    assert v.grad is not None
    assert not v.grad.any()


@pytest.mark.parametrize("name", ["triton", "reference"])
def test_masked_elements_reach_nothing(name: str) -> None:
    v, x, next_x, v_ref = inputs()
    mask = some_elements(SHAPE[1:])
    results = []
    for filler in (7.0, float("nan")):
        filled = [tensor.masked_fill(~mask, filler) for tensor in (v, x, next_x, v_ref)]
        filled[0].requires_grad_()
        with implementation(name):
            terms = grpo_loss(*filled[:3], ADVANTAGE_B, COEFFICIENTS_B3, CLIP, None, filled[3], KL_WEIGHT, mask=mask)
        terms.loss_B.sum().backward()
        assert filled[0].grad is not None
        assert (filled[0].grad[:, ~mask] == 0).all()
        results.append((*(getattr(terms, field.name) for field in fields(GrpoTerms)), filled[0].grad))
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("name", ["triton", "reference"])
def test_a_nan_that_is_read_comes_through(name: str) -> None:
    v, x, next_x, _ = inputs()
    v[2, 0, 0, 0] = float("nan")
    v.requires_grad_()
    old_B = torch.full((6,), -1.2, device=DEVICE)
    with implementation(name):
        terms = grpo_loss(v, x, next_x, ADVANTAGE_B, COEFFICIENTS_B3, CLIP, old_B)
    terms.loss_B.sum().backward()
    assert terms.loss_B.isnan().tolist() == [False, False, True, False, False, False]


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


def test_triton_and_reference_log_the_same() -> None:
    v, x, next_x, v_ref = inputs((6, 3, BLOCK))
    arguments = (
        v,
        x,
        next_x,
        ADVANTAGE_B,
        COEFFICIENTS_B3,
        CLIP,
        torch.full((6,), -2.0, device=DEVICE),
        v_ref,
        KL_WEIGHT,
    )
    found, expected = grpo_loss(*arguments), grpo_loss_reference(*arguments)
    for field in fields(GrpoTerms):
        torch.testing.assert_close(getattr(found, field.name), getattr(expected, field.name), rtol=2e-5, atol=1e-6)


def test_the_reference_keeps_float64() -> None:
    v, x, next_x, v_ref = (tensor.double() for tensor in inputs())
    v.requires_grad_()
    everything = torch.ones(SHAPE[1:], dtype=torch.bool, device=DEVICE)
    log_prob_B = slow_log_prob(v, x, next_x, everything)
    old_B = log_prob_B.detach() + OFFSET_B
    expected_B = slow_loss(v, v_ref, log_prob_B, old_B, everything)
    found_B = grpo_loss_reference(
        v, x, next_x, ADVANTAGE_B.double(), COEFFICIENTS_B3, CLIP, old_B, v_ref, KL_WEIGHT
    ).loss_B
    torch.testing.assert_close(found_B, expected_B, rtol=1e-12, atol=0)
    (expected_grad,) = torch.autograd.grad(expected_B.sum(), v)
    (found_grad,) = torch.autograd.grad(found_B.sum(), v)
    torch.testing.assert_close(found_grad, expected_grad, rtol=1e-10, atol=1e-16)


@pytest.mark.parametrize("shape", [(0, 3, 4), (0,)])
def test_empty(shape: tuple[int, ...]) -> None:
    v, x, next_x, _ = inputs(shape)
    terms = grpo_loss(v.requires_grad_(), x, next_x, ADVANTAGE_B[:0], COEFFICIENTS_B3[:0], CLIP)
    terms.loss_B.sum().backward()
    assert terms.loss_B.shape == (0,)
    assert v.grad is not None
    assert v.grad.shape == shape


def test_two_runs_are_bit_equal() -> None:
    v, x, next_x, v_ref = inputs((6, 2, BLOCK))
    results = []
    for _ in range(2):
        loss_B, logged, factors = forward_op(
            v, x, next_x, ADVANTAGE_B, COEFFICIENTS_B3, CLIP, None, v_ref, KL_WEIGHT, None, None
        )
        dv = backward_op(v, x, next_x, v_ref, None, COEFFICIENTS_B3, factors, ADVANTAGE_B)
        results.append((loss_B, logged, factors, dv))
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)


def test_shapes_that_do_not_fit_are_refused() -> None:
    v, x, next_x, v_ref = inputs()
    for wrong in ((v[1:], x, next_x, v_ref), (v, x, next_x[1:], v_ref), (v, x, next_x, v_ref[1:])):
        with pytest.raises(ValueError, match=r"of shape \(5, 4, 3, 2\) must have that of x, \(6, 4, 3, 2\)"):
            grpo_loss(*wrong[:3], ADVANTAGE_B, COEFFICIENTS_B3, CLIP, None, wrong[3])


def test_custom_op() -> None:
    v, x, next_x, v_ref = inputs()
    mask, active_B = some_elements(SHAPE[1:]), ADVANTAGE_B > 0
    fixed = ADVANTAGE_B, COEFFICIENTS_B3, CLIP
    factors = forward_op(v, x, next_x, *fixed, None, v_ref, KL_WEIGHT, active_B, mask)[2]
    torch.library.opcheck(backward_op, (v, x, next_x, v_ref, mask, COEFFICIENTS_B3, factors, ADVANTAGE_B))
    torch.library.opcheck(backward_op, (v, x, next_x, None, None, COEFFICIENTS_B3, factors, ADVANTAGE_B))
    v.requires_grad_()
    torch.library.opcheck(forward_op, (v, x, next_x, *fixed, None, v_ref, KL_WEIGHT, active_B, mask))
    torch.library.opcheck(forward_op, (v, x, next_x, *fixed, OFFSET_B, None, 0.0, None, None))


def test_survives_compile() -> None:
    v, x, next_x, v_ref = inputs()

    def loss(v: Tensor) -> Tensor:
        terms = grpo_loss(v, x, next_x, ADVANTAGE_B, COEFFICIENTS_B3, CLIP, OFFSET_B - 1.5, v_ref, KL_WEIGHT)
        return (terms.loss_B + terms.ratio_B).sum()

    v.requires_grad_()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(v), loss(v))
    assert torch.equal(*(torch.autograd.grad(f(v), v)[0] for f in (compiled, loss)))
