"""The modulated LayerNorm, alone and behind a gated residual, against float64: outputs and every gradient."""

import pytest
import torch
from kernel_checks import DEVICE, DTYPES, assert_near, random
from torch import Tensor

from vrlvr_kernels import gated_residual_layernorm_modulate as boundary
from vrlvr_kernels import layernorm_modulate as norm
from vrlvr_kernels.gated_residual_layernorm_modulate import gated_residual_layernorm_modulate
from vrlvr_kernels.launch import implementation
from vrlvr_kernels.layernorm_modulate import layernorm_modulate

EPS = 1e-6
SHAPES = [(2, 7, 48, 2), (1, 1, 64, 1), (3, 6, 37, 3), (1, 9, 5, 2)]  # B, N, D, S
KINDS = ["norm", "gated", "plain residual"]
Tensors = dict[str, Tensor]


def segments(N: int, S: int) -> Tensor:
    """Not in one run each; with three or more, some have no token."""
    return (torch.arange(N, device=DEVICE) // 2 % min(S, 2)).int()


def inputs(kind: str, B: int, N: int, D: int, S: int, dtype: torch.dtype, strided: bool = False) -> Tensors:
    tensors = {"x": random((B, N, D), 1, dtype, strided)}
    if kind != "norm":
        tensors["update"] = random((B, N, D), 2, dtype, strided)
    if kind == "gated":
        tensors["gate"] = random((B, S, D), 3, strided=strided)
    tensors |= {"shift": random((B, S, D), 4, strided=strided), "scale": random((B, S, D), 5, strided=strided)}
    return {name: tensor.requires_grad_() for name, tensor in tensors.items()}


def run(kind: str, tensors: Tensors, segment: Tensor) -> tuple[Tensor, ...]:
    x, shift, scale = tensors["x"], tensors["shift"], tensors["scale"]
    if kind == "norm":
        return (layernorm_modulate(x, shift, scale, segment, EPS),)
    return gated_residual_layernorm_modulate(x, tensors["update"], tensors.get("gate"), shift, scale, segment, EPS)


def defined(kind: str, tensors: Tensors, segment: Tensor) -> tuple[Tensor, ...]:
    """The same from the definition of LayerNorm."""
    at = segment.long()
    x, shift, scale = tensors["x"], tensors["shift"], tensors["scale"]
    if kind != "norm":
        x = x + tensors["update"] * (tensors["gate"][:, at] if kind == "gated" else 1)
    centred = x - x.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + EPS).sqrt()
    result = normed * scale[:, at] + shift[:, at]
    return (result,) if kind == "norm" else (x, result)


def gradients(outputs: tuple[Tensor, ...], tensors: Tensors, dtype: torch.dtype) -> tuple[Tensor, ...]:
    upstream = [random(tuple(out.shape), 10 + i, dtype).to(out.dtype) for i, out in enumerate(outputs)]
    return torch.autograd.grad(outputs, list(tensors.values()), upstream)


def compare(kind: str, tensors: Tensors, segment: Tensor, dtype: torch.dtype) -> None:
    wide = {name: tensor.detach().double().requires_grad_() for name, tensor in tensors.items()}
    outputs, expected = run(kind, tensors, segment), defined(kind, wide, segment)
    for actual, target in zip(outputs, expected, strict=True):
        assert actual.dtype == dtype
        assert_near(actual, target, dtype)
    found, wanted = gradients(outputs, tensors, dtype), gradients(expected, wide, dtype)
    for tensor, actual, target in zip(tensors.values(), found, wanted, strict=True):
        assert actual.dtype == tensor.dtype
        assert_near(actual, target, dtype, factor=8)  # differences of sums over a row, divided by its spread


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("B", "N", "D", "S"), SHAPES)
def test_outputs_and_gradients(kind: str, B: int, N: int, D: int, S: int, dtype: torch.dtype) -> None:
    compare(kind, inputs(kind, B, N, D, S, dtype), segments(N, S), dtype)


@pytest.mark.parametrize("kind", KINDS)
def test_strided_input(kind: str) -> None:
    compare(kind, inputs(kind, 2, 5, 40, 2, torch.float32, strided=True), segments(5, 2), torch.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_too(kind: str) -> None:
    with implementation("reference"):
        compare(kind, inputs(kind, 2, 7, 48, 2, torch.float32), segments(7, 2), torch.float32)


def test_a_mean_far_from_zero_costs_no_accuracy() -> None:
    tensors = inputs("norm", 1, 3, 64, 1, torch.float32)
    tensors["x"] = (tensors["x"].detach() + 1000).requires_grad_()
    (actual,), (expected,) = (f("norm", tensors, segments(3, 1)) for f in (run, defined))
    wide = defined("norm", {name: tensor.double() for name, tensor in tensors.items()}, segments(3, 1))[0]
    # float32 has a spacing of 6e-5 at 1000: variance as E[x^2] - mean^2 would have lost every digit.
    assert (actual - wide).abs().max() < 1e-3
    assert (expected - wide).abs().max() < 1e-3


def test_weight_and_bias_expanded_to_tables_get_their_summed_gradients() -> None:
    B, N, D = 3, 5, 33
    x, weight, bias = random((B, N, D), 1), random((D,), 2), random((D,), 3)
    upstream = random((B, N, D), 4)
    grads = []
    for dtype in (torch.float32, torch.float64):
        leaves = [tensor.to(dtype).requires_grad_() for tensor in (x, weight, bias)]
        if dtype == torch.float32:
            rows = [leaf.expand(B, 1, D) for leaf in leaves[1:]]
            out = layernorm_modulate(leaves[0], rows[1], rows[0], segments(N, 1), EPS)
        else:
            out = torch.nn.functional.layer_norm(leaves[0], (D,), leaves[1], leaves[2], EPS)
        grads.append(torch.autograd.grad(out, leaves, upstream.to(dtype)))
    for actual, target in zip(*grads, strict=True):
        assert_near(actual, target, torch.float32, factor=8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("B", "N"), [(0, 4), (2, 0)])
def test_empty(kind: str, B: int, N: int) -> None:
    tensors = inputs(kind, B, N, 16, 2, torch.float32)
    outputs = run(kind, tensors, segments(N, 2))
    assert all(out.shape == (B, N, 16) for out in outputs)
    for tensor, grad in zip(tensors.values(), gradients(outputs, tensors, torch.float32), strict=True):
        assert grad.shape == tensor.shape
        assert not grad.any()


@pytest.mark.parametrize("kind", KINDS)
def test_two_runs_are_bit_equal(kind: str) -> None:
    runs = []
    for _ in range(2):
        tensors = inputs(kind, 2, 9, 48, 2, torch.float32)
        outputs = run(kind, tensors, segments(9, 2))
        runs.append([*outputs, *gradients(outputs, tensors, torch.float32)])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_as_one_graph(kind: str) -> None:
    tensors, segment = inputs(kind, 2, 5, 32, 2, torch.float32), segments(5, 2)
    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    outputs = run(kind, tensors, segment), compiled(kind, tensors, segment)
    grads = [gradients(out, tensors, torch.float32) for out in outputs]
    for eager, traced in zip((*outputs[0], *grads[0]), (*outputs[1], *grads[1]), strict=True):
        torch.testing.assert_close(traced, eager, rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_registration(kind: str) -> None:
    tensors, segment = inputs(kind, 1, 3, 32, 2, torch.float32), segments(3, 2)
    x, *rest = tensors.values()
    if kind == "plain residual":
        rest.insert(1, None)
    op = norm.forward_op if kind == "norm" else boundary.forward_op
    torch.library.opcheck(op, (x, *rest, segment, EPS))


def test_what_does_not_fit_is_refused() -> None:
    x, row, segment = random((2, 3, 8), 0), random((2, 1, 8), 1), segments(3, 1)
    with pytest.raises(ValueError, match="must be int32"):
        layernorm_modulate(x, row, row, segment.long(), EPS)
    with pytest.raises(ValueError, match="expand it"):
        layernorm_modulate(x, row, row[:1], segment, EPS)
    with pytest.raises(ValueError, match="must have x's shape"):
        gated_residual_layernorm_modulate(x, x[:1], row, row, row, segment, EPS)
