"""GELU of x + bias against its definition in float64: output and every gradient."""

import math

import pytest
import torch
from kernel_checks import DEVICE, DTYPES, assert_near, random
from torch import Tensor

from vrlvr_kernels.gelu_tanh import backward_op, forward_op, gelu_tanh, gelu_tanh_reference
from vrlvr_kernels.launch import implementation

SHAPES = [(2, 5, 64), (1, 1, 37), (3, 1500), (13, 256)]  # one row, odd sizes, two column tiles, a partial row tile


def defined(x: Tensor, bias: Tensor | None) -> Tensor:
    value = x if bias is None else x + bias
    return 0.5 * value * (1 + torch.tanh(math.sqrt(2 / math.pi) * (value + 0.044715 * value**3)))


def compare(x: Tensor, bias: Tensor | None) -> None:
    """`gelu_tanh` and its gradients, whatever it runs on, against `defined` in float64."""
    inputs = [tensor.detach().requires_grad_() for tensor in (x, bias) if tensor is not None]
    wide = [tensor.detach().double().requires_grad_() for tensor in inputs]
    out = gelu_tanh(inputs[0], inputs[1] if len(inputs) > 1 else None)
    expected = defined(wide[0], wide[1] if len(wide) > 1 else None)
    assert out.dtype == x.dtype
    assert out.is_contiguous()
    assert_near(out, expected, x.dtype)
    upstream = random(tuple(x.shape), 3, x.dtype)
    found, wanted = torch.autograd.grad(out, inputs, upstream), torch.autograd.grad(expected, wide, upstream.double())
    for tensor, actual, target in zip(inputs, found, wanted, strict=True):
        assert actual.dtype == tensor.dtype
        assert_near(actual, target, x.dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_output_and_gradients(shape: tuple[int, ...], has_bias: bool, dtype: torch.dtype) -> None:
    compare(2 * random(shape, 1, dtype), random(shape[-1:], 2, dtype) if has_bias else None)


@pytest.mark.parametrize("shape", [(3, 5, 40), (7, 40)])
def test_strided_input(shape: tuple[int, ...]) -> None:
    compare(random(shape, 1, strided=True), random((80,), 2)[::2])
    compare(random((*shape[:-1], 2, shape[-1]), 1).transpose(-1, -2)[..., 0], None)


def test_float32_bias_of_any_x() -> None:
    dtype = DTYPES[-1]
    compare(random((4, 48), 1, dtype), random((48,), 2, torch.float32))


def test_reference_keeps_float64_and_rounds_once() -> None:
    x, bias = random((6, 32), 1).double(), random((32,), 2).double()
    assert (gelu_tanh_reference(x, bias) - defined(x, bias)).abs().max() < 1e-14
    expected = defined(x.bfloat16().double(), bias.bfloat16().double())
    halves = gelu_tanh_reference(x.bfloat16(), bias.bfloat16())
    assert ((halves.double() - expected).abs() <= expected.abs() * 2**-8 + 1e-6).all()
    with implementation("reference"):
        compare(x.float(), bias.float())


def test_empty() -> None:
    x, bias = random((2, 0, 16), 1).requires_grad_(), random((16,), 2).requires_grad_()
    out = gelu_tanh(x, bias)
    out.sum().backward()
    assert out.shape == x.shape
    assert x.grad is not None
    assert x.grad.shape == x.shape
    assert bias.grad is not None
    assert not bias.grad.any()


def test_large_values_have_exact_limits() -> None:
    """Any finite float32: there is no overflow to a NaN, in either direction."""
    large = torch.tensor([20.0, 1e4, 1e13, 1e19, 3e38], device=DEVICE)
    x = torch.cat((large, -large, torch.zeros(1, device=DEVICE))).requires_grad_()
    out = gelu_tanh(x, torch.zeros(11, device=DEVICE))
    out.sum().backward()
    assert torch.equal(out, x.detach().clamp(min=0))
    assert x.grad is not None
    assert x.grad.tolist() == [1.0] * 5 + [0.0] * 5 + [pytest.approx(0.5)]


def test_rows_do_not_depend_on_their_place() -> None:
    """One row alone, and the same row among others, give the same bits: replay and rollout may batch differently."""
    x, bias = random((11, 300), 1), random((300,), 2)
    assert torch.equal(gelu_tanh(x, bias)[7:8], gelu_tanh(x[7:8], bias))


def test_two_runs_are_bit_equal() -> None:
    x, bias, upstream = random((33, 96), 1), random((96,), 2), random((33, 96), 3)
    runs = [(forward_op(x, bias), *backward_op(x, bias, upstream)) for _ in range(2)]
    for first, second in zip(*runs, strict=True):
        assert torch.equal(first, second)


def test_bias_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"bias of shape \(5,\) must be \(4,\)"):
        gelu_tanh(torch.zeros(3, 4), torch.zeros(5))


@pytest.mark.parametrize("has_bias", [True, False])
def test_custom_op(has_bias: bool) -> None:
    x, bias = random((2, 3, 16), 1).requires_grad_(), random((16,), 2).requires_grad_() if has_bias else None
    torch.library.opcheck(forward_op, (x, bias))
    torch.library.opcheck(backward_op, (x.detach(), None if bias is None else bias.detach(), random((2, 3, 16), 3)))


def test_survives_compile() -> None:
    x, bias = random((2, 3, 16), 1).requires_grad_(), random((16,), 2).requires_grad_()
    compiled = torch.compile(gelu_tanh, fullgraph=True, backend="aot_eager")
    eager = torch.autograd.grad(gelu_tanh(x, bias).square().sum(), (x, bias))
    for actual, expected in zip(torch.autograd.grad(compiled(x, bias).square().sum(), (x, bias)), eager, strict=True):
        assert torch.equal(actual, expected)
