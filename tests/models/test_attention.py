"""Attention backends: the same values and gradients, and the choice among them."""

import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor

from vrlvr.errors import UserError
from vrlvr.models import attention
from vrlvr.models.attention import attend, available, choose

CPU = torch.device("cpu")
GPU = torch.device("cuda")


def heads(num_queries: int, num_keys: int, dtype: torch.dtype, device: torch.device, dim: int = 16) -> list[Tensor]:
    """Queries, keys and values of 2 videos and 3 heads, as slices of a fused projection: strided, as in the model."""
    torch.manual_seed(0)
    q = torch.randn(2, num_queries, 3, dim, device=device).to(dtype)
    k, v = torch.randn(2, num_keys, 2, 3, dim, device=device).to(dtype).unbind(2)
    return [x.requires_grad_() for x in (q, k.detach(), v.detach())]


def exact(q_BNHE: Tensor, k_BLHE: Tensor, v_BLHE: Tensor) -> Tensor:
    """The definition, in float64."""
    scores_BHNL = torch.einsum("bnhe,blhe->bhnl", q_BNHE.double(), k_BLHE.double()) * q_BNHE.shape[-1] ** -0.5
    return torch.einsum("bhnl,blhe->bnhe", scores_BHNL.softmax(-1), v_BLHE.double())


def forward_and_gradients(function, inputs: list[Tensor]) -> list[Tensor]:
    copies = [x.detach().clone().requires_grad_() for x in inputs]
    output = function(*copies)
    torch.manual_seed(1)
    output.backward(torch.randn(output.shape, device=output.device).to(output.dtype))
    return [output.detach(), *(x.grad for x in copies)]


@pytest.mark.parametrize("backend", available(CPU))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("num_queries", "num_keys", "dim"), [(19, 19, 16), (19, 7, 16), (1, 33, 6), (40, 1, 10)])
def test_agrees_with_the_definition(
    backend: str, dtype: torch.dtype, num_queries: int, num_keys: int, dim: int
) -> None:
    inputs = heads(num_queries, num_keys, dtype, CPU, dim)
    results = forward_and_gradients(lambda q, k, v: attend(q, k, v, backend), inputs)
    assert results[0].shape == (2, num_queries, 3, dim)
    for ours, expected in zip(results, forward_and_gradients(exact, inputs), strict=True):
        assert ours.dtype == dtype
        atol, rtol = (2e-6, 1e-6) if dtype == torch.float32 else (1e-13, 1e-13)
        torch.testing.assert_close(ours, expected.to(dtype), atol=atol, rtol=rtol)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("num_keys", [512, 300])
def test_all_backends_of_the_gpu_agree(num_keys: int) -> None:
    inputs = heads(512, num_keys, torch.bfloat16, GPU, dim=128)
    expected = forward_and_gradients(exact, inputs)
    for backend in available(GPU):
        results = forward_and_gradients(lambda q, k, v, backend=backend: attend(q, k, v, backend), inputs)
        for ours, right in zip(results, expected, strict=True):
            assert ours.isfinite().all(), backend
            assert (ours.double() - right.double()).norm() < 0.02 * right.double().norm(), backend


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_rollout_gives_what_its_replay_gives() -> None:
    inputs = heads(512, 512, torch.bfloat16, GPU, dim=128)
    for backend in available(GPU):
        with torch.no_grad():
            rollout = attend(*inputs, backend)
        assert torch.equal(rollout, attend(*inputs, backend).detach()), backend


@pytest.mark.parametrize("backend", available(CPU))
def test_compiles_as_one_graph(backend: str) -> None:
    inputs = heads(9, 5, torch.float32, CPU)
    compiled = torch.compile(lambda q, k, v: attend(q, k, v, backend) * 2, backend="aot_eager", fullgraph=True)
    eager = forward_and_gradients(lambda q, k, v: attend(q, k, v, backend) * 2, inputs)
    for ours, expected in zip(forward_and_gradients(compiled, inputs), eager, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("backend", attention.NAMES)
def test_the_meta_device_gives_shapes(backend: str) -> None:
    q, k, v = heads(19, 7, torch.bfloat16, torch.device("meta"))
    output = attend(q, k, v, backend)
    output.backward(torch.empty_like(output))
    assert (output.shape, output.dtype) == (q.shape, q.dtype)
    assert [x.grad.shape for x in (q, k, v)] == [q.shape, k.shape, v.shape]
    assert choose(backend, q.device) == backend


@pytest.mark.parametrize(
    ("dtype", "head_dim", "expected"), [(torch.bfloat16, 128, "flash"), (torch.float64, 128, "math")]
)
def test_the_meta_device_stands_for_any_gpu(dtype: torch.dtype, head_dim: int, expected: str) -> None:
    assert choose("auto", torch.device("meta"), dtype, head_dim) == expected


def plant(monkeypatch: pytest.MonkeyPatch, packages: dict[str, object]) -> None:
    """Installs exactly these packages, by backend; each value is the package's function."""
    monkeypatch.setattr(attention, "_functions", {})
    for backend, (name, function_name) in attention._PACKAGES.items():
        if backend not in packages:
            monkeypatch.setitem(sys.modules, name, None)  # its import raises ModuleNotFoundError
            continue
        parents = name.split(".")[:-1]
        for depth in range(len(parents)):
            parent = ".".join(parents[: depth + 1])
            if sys.modules.get(parent) is None:
                monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
        module = ModuleType(name)
        setattr(module, function_name, packages[backend])
        monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch):
    """Lets `available` and `choose` see a GPU of a given major compute capability."""

    def see(major: int) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (major, 0))
        monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)

    return see


def exact_with_log_sum_exp(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    return exact(q, k, v).to(q.dtype), torch.zeros(())


def exact_alone(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return exact(q, k, v).to(q.dtype)


@pytest.mark.parametrize("backend", ["flash3", "flash4", "flash2", "xformers"])
@pytest.mark.parametrize("function", [exact_alone, exact_with_log_sum_exp])
def test_packages_keep_the_layout_whatever_they_return(backend: str, function, monkeypatch, gpu) -> None:
    plant(monkeypatch, {backend: function})
    gpu(9)
    assert choose(backend, GPU) == backend
    inputs = heads(19, 7, torch.bfloat16, CPU)
    results = forward_and_gradients(lambda q, k, v: attend(q, k, v, backend), inputs)
    for ours, expected in zip(results, forward_and_gradients(exact_alone, inputs), strict=True):
        assert torch.equal(ours, expected)


ALL_PACKAGES = dict.fromkeys(attention._PACKAGES, exact_alone)


@pytest.mark.parametrize(
    ("major", "packages", "expected"),
    [
        (9, ALL_PACKAGES, "flash3"),
        (9, {"flash4": exact_alone, "flash2": exact_alone}, "cudnn"),
        (9, {}, "cudnn"),
        (8, ALL_PACKAGES, "flash2"),
        (8, {}, "flash"),
        (10, ALL_PACKAGES, "flash4"),
        (10, {"flash3": exact_alone}, "cudnn"),
        (12, ALL_PACKAGES, "flash"),
        (7, ALL_PACKAGES, "efficient"),
    ],
)
def test_auto_by_architecture(major: int, packages: dict, expected: str, monkeypatch, gpu) -> None:
    plant(monkeypatch, packages)
    gpu(major)
    assert choose("auto", GPU) == expected


@pytest.mark.parametrize(
    ("dtype", "head_dim", "expected"),
    [
        (torch.float32, 128, "efficient"),
        (torch.float64, 128, "math"),
        (torch.bfloat16, 10, "math"),
        (torch.bfloat16, 256, "flash"),
        (torch.float16, 64, "cudnn"),
    ],
)
def test_auto_by_type_and_dimension(dtype: torch.dtype, head_dim: int, expected: str, monkeypatch, gpu) -> None:
    plant(monkeypatch, {})
    gpu(9)
    assert choose("auto", GPU, dtype, head_dim) == expected


def test_what_is_available_by_architecture(monkeypatch, gpu) -> None:
    plant(monkeypatch, ALL_PACKAGES)
    gpu(9)
    assert available(GPU) == list(attention.NAMES)
    gpu(8)
    assert available(GPU) == ["cudnn", "flash2", "xformers", "flash", "efficient", "math"]
    gpu(7)
    assert available(GPU) == ["xformers", "efficient", "math"]


@pytest.mark.parametrize(
    "failure", [OSError("undefined symbol"), RuntimeError("Tried to register an operator multiple times")]
)
def test_packages_are_looked_for_once(failure: Exception, monkeypatch, gpu) -> None:
    """With what packages raise that were built for another PyTorch, or that two others bring along."""
    plant(monkeypatch, {})
    gpu(9)
    names: list[str] = []

    def import_module(name: str) -> ModuleType:
        names.append(name)
        raise failure

    monkeypatch.setattr(attention.importlib, "import_module", import_module)
    assert available(GPU) == available(GPU) == ["cudnn", "flash", "efficient", "math"]
    assert sorted(names) == sorted(module for module, _ in attention._PACKAGES.values())


def test_a_package_without_the_function_is_not_available(monkeypatch, gpu) -> None:
    """FlashAttention-4 alone makes `flash_attn` importable, empty of FlashAttention-2."""
    plant(monkeypatch, {})
    monkeypatch.setitem(sys.modules, "flash_attn", ModuleType("flash_attn"))
    gpu(9)
    assert "flash2" not in available(GPU)


def test_cpu() -> None:
    assert available(CPU) == ["flash", "math"]
    assert choose("auto", CPU) == "flash"
    assert choose("math", CPU) == "math"


def test_names_that_cannot_be_used(monkeypatch, gpu) -> None:
    with pytest.raises(UserError, match=r"attention='sage' is no backend; use auto or one of flash3, cudnn, .*math$"):
        choose("sage", CPU)
    with pytest.raises(UserError, match=r"attention='cudnn' is not available on cpu .* one of flash, math$"):
        choose("cudnn", CPU)
    plant(monkeypatch, {})
    gpu(8)
    with pytest.raises(UserError, match=r"'flash3' is not available on cuda .* one of cudnn, flash, efficient, math$"):
        choose("flash3", GPU)
    with pytest.raises(UserError, match=r"torch.float32 heads of dimension 128; use auto or one of efficient, math$"):
        choose("flash", GPU, torch.float32)


def test_heads_that_a_backend_cannot_take() -> None:
    with pytest.raises(UserError, match=r"attention='flash3' cannot take torch.float32 heads of dimension 16; use"):
        attend(*heads(5, 5, torch.float32, CPU), "flash3")
    with pytest.raises(UserError, match=r"attention='cudnn' cannot take torch.bfloat16 heads of dimension 10; use"):
        attend(*heads(5, 5, torch.bfloat16, CPU, dim=10), "cudnn")
