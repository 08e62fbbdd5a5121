"""Speed of the kernels: `pytest --benchmark-only tests/kernels` (skipped in a plain run).

Every op, forward and backward, against its plain PyTorch form (eager, and `torch.compile`d on a GPU) and what other packages
have. What is timed was first compared with float64. On a GPU: bfloat16, the tiny size and Wan2.2-TI2V-5B's at 8,190 and
27,280 tokens. On a CPU: the references alone, tiny, which shows that the benchmark runs and measures nothing of a kernel.
"""

import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from dataclasses import replace
from importlib import import_module
from statistics import median
from typing import Any
from unittest.mock import patch

import pytest
import torch
from kernel_bench import (
    ROWS,
    Clock,
    Inputs,
    Op,
    Pass,
    Replay,
    Row,
    Size,
    compared,
    compiled,
    exact_results,
    measure,
    normal,
    outputs_of,
    table,
    with_gradients,
)
from kernel_checks import DEVICE, assert_near
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor
from torch.nn import functional

from vrlvr_kernels.gated_residual_layernorm_modulate import (
    gated_residual_layernorm_modulate,
    gated_residual_layernorm_modulate_reference,
)
from vrlvr_kernels.gelu_tanh import gelu_tanh, gelu_tanh_reference
from vrlvr_kernels.grpo_loss import grpo_loss, grpo_loss_reference
from vrlvr_kernels.launch import implementation
from vrlvr_kernels.layernorm_modulate import layernorm_modulate, layernorm_modulate_reference
from vrlvr_kernels.optional_triton import HAS_TRITON
from vrlvr_kernels.philox import normal as normal_noise
from vrlvr_kernels.philox import normal_reference
from vrlvr_kernels.qk_norm_rope import qk_norm_rope, qk_norm_rope_reference
from vrlvr_kernels.sde_step import sde_step, sde_step_reference

ON_GPU = DEVICE.type == "cuda"
DTYPE = torch.bfloat16 if ON_GPU else torch.float32
TINY = Size("tiny", 2, (3, 4, 4), heads=2, head_dim=32, ffn=256)
SIZES = [
    Size("27280", 1, (31, 22, 40), heads=24, head_dim=128, ffn=14336),  # 704x1280, 121 frames
    Size("8190", 1, (21, 15, 26), heads=24, head_dim=128, ffn=14336),  # 480x832, 81 frames
    TINY,
]
LATENTS_A_TOKEN = 192  # 48 channels of 2 x 2 places
EPS = 1e-6
S = 2  # segments: the clean first frame, and the rest


def _tokens(size: Size, channels: int, seed: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    return normal((size.batch, size.tokens, channels), seed, device, dtype)


def _table(size: Size, seed: int, device: torch.device) -> Tensor:
    return normal((size.batch, S, size.dim), seed, device, torch.float32)


def _segment(size: Size, device: torch.device) -> Tensor:
    """The clean first frame is segment 0."""
    frame = size.tokens // size.grid[0]
    return (torch.arange(size.tokens, device=device) >= frame).int()


def norm_inputs(size: Size, device: torch.device, dtype: torch.dtype) -> Inputs:
    return {
        "x_BND": _tokens(size, size.dim, 1, device, dtype),
        "shift_BSD": _table(size, 2, device),
        "scale_BSD": _table(size, 3, device),
        "segment_N": _segment(size, device),
        "eps": EPS,
    }


def boundary_inputs(size: Size, device: torch.device, dtype: torch.dtype) -> Inputs:
    update, gate = _tokens(size, size.dim, 4, device, dtype), _table(size, 5, device)
    return norm_inputs(size, device, dtype) | {"update_BND": update, "gate_BSD": gate}


def ungated_inputs(size: Size, device: torch.device, dtype: torch.dtype) -> Inputs:
    return boundary_inputs(size, device, dtype) | {"gate_BSD": None}


def affine_inputs(size: Size, device: torch.device, dtype: torch.dtype) -> Inputs:
    return {
        "x": _tokens(size, size.dim, 1, device, dtype),
        "weight": normal((size.dim,), 2, device, dtype),
        "bias": normal((size.dim,), 3, device, dtype),
        "segment": torch.zeros(size.tokens, dtype=torch.int32, device=device),
    }


def residual_inputs(size: Size, device: torch.device, dtype: torch.dtype) -> Inputs:
    return affine_inputs(size, device, dtype) | {"update": _tokens(size, size.dim, 4, device, dtype)}


def gelu_inputs(size: Size, device: torch.device, dtype: torch.dtype) -> Inputs:
    return {"x": _tokens(size, size.ffn, 1, device, dtype), "bias": normal((size.ffn,), 2, device, dtype)}


def attention_inputs(size: Size, device: torch.device, dtype: torch.dtype) -> Inputs:
    angle_NP = normal((size.tokens, size.head_dim // 2), 4, device, torch.float32)
    return {
        "packed": _tokens(size, 3 * size.dim, 1, device, dtype),
        "weight_q": normal((size.dim,), 2, device, dtype),
        "weight_k": normal((size.dim,), 3, device, dtype),
        "rope": torch.stack((angle_NP.cos(), angle_NP.sin()), dim=-1).flatten(1),
        "num_heads": size.heads,
    }


def query_inputs(size: Size, device: torch.device, dtype: torch.dtype) -> Inputs:
    x, weight = _tokens(size, size.dim, 1, device, dtype), normal((size.dim,), 2, device, dtype)
    return {"x": x, "weight": weight, "num_heads": size.heads}


def noise_inputs(size: Size, device: torch.device, dtype: torch.dtype) -> Inputs:
    samples = torch.arange(size.batch, device=device)
    return {"seed": 1, "stream": 2, "samples_B": samples, "step": 3, "numel": size.tokens * LATENTS_A_TOKEN}


def step_inputs(size: Size, device: torch.device, dtype: torch.dtype) -> Inputs:
    latents = {name: _tokens(size, LATENTS_A_TOKEN, i, device, dtype) for i, name in enumerate("xv")}
    numbers = {"a": 0.95, "b": -0.1, "std": 0.5, "seed": 1, "step": 3}
    return latents | numbers | {"samples_B": torch.arange(size.batch, device=device)}


def loss_inputs(size: Size, device: torch.device, dtype: torch.dtype) -> Inputs:
    x, v, eps = (_tokens(size, LATENTS_A_TOKEN, i, device, dtype) for i in range(3))
    return {
        "v": v,
        "x": x,
        "next_x": 0.95 * x - 0.1 * v + 0.5 * eps,
        "advantage_B": torch.full((size.batch,), 0.7, device=device),
        "coefficients_B3": torch.tensor([[0.95, -0.1, 0.5]], dtype=torch.float64, device=device).repeat(size.batch, 1),
        "clip_range": 0.2,
    }


def _packed(norm: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor, ...]]:
    def call(packed: Tensor, weight_q: Tensor, weight_k: Tensor, rope: Tensor, num_heads: int) -> tuple[Tensor, ...]:
        return norm(packed, (weight_q, weight_k), rope, num_heads, EPS)

    return call


def _query(norm: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor, ...]]:
    def call(x: Tensor, weight: Tensor, num_heads: int) -> tuple[Tensor, ...]:
        return norm(x, (weight,), None, num_heads, EPS)

    return call


def _affine(norm: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """LayerNorm with weight and bias, by a modulated norm of one segment."""

    def call(x: Tensor, weight: Tensor, bias: Tensor, segment: Tensor) -> Tensor:
        return norm(x, bias.expand(len(x), 1, -1), weight.expand(len(x), 1, -1), segment, EPS)

    return call


def _residual(boundary: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
    def call(x: Tensor, update: Tensor, weight: Tensor, bias: Tensor, segment: Tensor) -> tuple[Tensor, Tensor]:
        return boundary(x, update, None, bias.expand(len(x), 1, -1), weight.expand(len(x), 1, -1), segment, EPS)

    return call


# Forms for torch.compile: with a table's rows selected by token, or with complex numbers, it would lose without need.


def _by_segment(reference: Callable[..., Any]) -> Callable[..., Any]:
    """The clean first frame and the rest apart, so that gradients of a table's rows are plain sums over tokens."""
    clean_tokens = {size.tokens: size.tokens // size.grid[0] for size in SIZES}

    def call(segment_N: Tensor, eps: float, **tensors: Tensor | None) -> Any:
        at = clean_tokens[len(segment_N)]
        tokens, rows = (slice(at), slice(at, None)), (slice(1), slice(1, None))
        parts = []
        for i in range(S):
            own = {k: t if t is None else t[:, (rows if k.endswith("BSD") else tokens)[i]] for k, t in tensors.items()}
            parts.append(outputs_of(reference(**own, segment_N=segment_N[tokens[i]], eps=eps)))
        return tuple(torch.cat(pair, dim=1) for pair in zip(*parts, strict=True))

    return call


def qk_norm_rope_of_reals(packed: Tensor, weight_q: Tensor, weight_k: Tensor, rope: Tensor, num_heads: int) -> Any:
    *parts, values = packed.chunk(3, dim=-1)
    cos_N1P, sin_N1P = rope.unflatten(-1, (-1, 2)).unsqueeze(1).unbind(-1)
    results = []
    for x, weight in zip(parts, (weight_q, weight_k), strict=True):
        normed = functional.rms_norm(x.float(), x.shape[-1:], weight.float(), EPS)
        real, imaginary = normed.unflatten(-1, (num_heads, -1, 2)).unbind(-1)
        turned = (real * cos_N1P - imaginary * sin_N1P, real * sin_N1P + imaginary * cos_N1P)
        results.append(torch.stack(turned, dim=-1).flatten(-2).to(x.dtype))
    return *results, _heads(values, num_heads)


# Other packages' forms of the same work; `segment` is what ours needs besides.


def torch_layer_norm(x: Tensor, weight: Tensor, bias: Tensor, segment: Tensor) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], weight, bias, EPS)


def liger_layer_norm(x: Tensor, weight: Tensor, bias: Tensor, segment: Tensor) -> Tensor:
    return import_module("liger_kernel.ops.layer_norm").LigerLayerNormFunction.apply(x, weight, bias, EPS)


def flash_attn_layer_norm(x: Tensor, weight: Tensor, bias: Tensor, segment: Tensor) -> Tensor:
    return import_module("flash_attn.ops.triton.layer_norm").layer_norm_fn(x, weight, bias, eps=EPS)


def flash_attn_residual_layer_norm(x: Tensor, update: Tensor, weight: Tensor, bias: Tensor, segment: Tensor) -> Any:
    layer_norm_fn = import_module("flash_attn.ops.triton.layer_norm").layer_norm_fn
    out, new_x = layer_norm_fn(update, weight, bias, residual=x, eps=EPS, prenorm=True)
    return new_x, out


def torch_gelu(x: Tensor, bias: Tensor) -> Tensor:
    return functional.gelu(x + bias, approximate="tanh")


def _heads(x: Tensor, num_heads: int) -> Tensor:
    return x.unflatten(-1, (num_heads, -1))


def torch_rms_norm(x: Tensor, weight: Tensor, num_heads: int) -> Tensor:
    return _heads(functional.rms_norm(x, x.shape[-1:], weight, EPS), num_heads)


def liger_rms_norm(x: Tensor, weight: Tensor, num_heads: int) -> Tensor:
    function = import_module("liger_kernel.ops.rms_norm").LigerRMSNormFunction
    return _heads(function.apply(x, weight, EPS, 0.0, "llama", False), num_heads)  # not in place: it is run again


@torch.no_grad()
def xformers_rms_norm(x: Tensor, weight: Tensor, num_heads: int) -> Tensor:
    """Has no backward pass."""
    return _heads(import_module("xformers.ops").rms_norm(x, weight, EPS), num_heads)


def flash_attn_rms_norm(x: Tensor, weight: Tensor, num_heads: int) -> Tensor:
    return _heads(import_module("flash_attn.ops.triton.layer_norm").rms_norm_fn(x, weight, None, eps=EPS), num_heads)


OPS = [
    Op(
        "layernorm_modulate",
        norm_inputs,
        layernorm_modulate,
        layernorm_modulate_reference,
        for_compile=_by_segment(layernorm_modulate_reference),
        bytes_forward=lambda size, e: 2 * e * size.batch * size.tokens * size.dim,  # x; out
        bytes_backward=lambda size, e: 3 * e * size.batch * size.tokens * size.dim,  # x, dout; dx
    ),
    Op(
        "boundary, gate",
        boundary_inputs,
        gated_residual_layernorm_modulate,
        gated_residual_layernorm_modulate_reference,
        for_compile=_by_segment(gated_residual_layernorm_modulate_reference),
        bytes_forward=lambda size, e: 4 * e * size.batch * size.tokens * size.dim,  # x, update; new_x, out
        # new_x, update, dnew_x, dout; dx, dupdate
        bytes_backward=lambda size, e: 6 * e * size.batch * size.tokens * size.dim,
    ),
    Op(
        "boundary, no gate",
        ungated_inputs,
        gated_residual_layernorm_modulate,
        gated_residual_layernorm_modulate_reference,
        for_compile=_by_segment(gated_residual_layernorm_modulate_reference),
        bytes_forward=lambda size, e: 4 * e * size.batch * size.tokens * size.dim,  # x, update; new_x, out
        bytes_backward=lambda size, e: 4 * e * size.batch * size.tokens * size.dim,  # new_x, dnew_x, dout; dx = dupdate
    ),
    Op(
        "layernorm (affine)",
        affine_inputs,
        _affine(layernorm_modulate),
        _affine(layernorm_modulate_reference),
        bytes_forward=lambda size, e: 2 * e * size.batch * size.tokens * size.dim,  # x; out
        bytes_backward=lambda size, e: 3 * e * size.batch * size.tokens * size.dim,  # x, dout; dx
        peers={"torch": torch_layer_norm, "liger": liger_layer_norm, "flash-attn": flash_attn_layer_norm},
    ),
    Op(
        "residual + layernorm (affine)",
        residual_inputs,
        _residual(gated_residual_layernorm_modulate),
        _residual(gated_residual_layernorm_modulate_reference),
        bytes_forward=lambda size, e: 4 * e * size.batch * size.tokens * size.dim,  # x, update; new_x, out
        bytes_backward=lambda size, e: 4 * e * size.batch * size.tokens * size.dim,  # new_x, dnew_x, dout; dx = dupdate
        peers={"flash-attn": flash_attn_residual_layer_norm},
    ),
    Op(
        "gelu_tanh",
        gelu_inputs,
        gelu_tanh,
        gelu_tanh_reference,
        bytes_forward=lambda size, e: 2 * e * size.batch * size.tokens * size.ffn,  # x; out
        bytes_backward=lambda size, e: 3 * e * size.batch * size.tokens * size.ffn,  # x, dout; dx
        peers={"torch": torch_gelu},
    ),
    Op(
        "qk_norm_rope",
        attention_inputs,
        _packed(qk_norm_rope),
        _packed(qk_norm_rope_reference),
        bytes_forward=lambda size, e: 6 * e * size.batch * size.tokens * size.dim,  # packed q, k, v; q, k, v
        bytes_backward=lambda size, e: (
            8 * e * size.batch * size.tokens * size.dim
        ),  # q, k, dq, dk, dv; packed gradients
        constant=("rope",),
        for_compile=qk_norm_rope_of_reals,
    ),
    Op(
        "q norm",
        query_inputs,
        _query(qk_norm_rope),
        _query(qk_norm_rope_reference),
        bytes_forward=lambda size, e: 2 * e * size.batch * size.tokens * size.dim,  # x; out
        bytes_backward=lambda size, e: 3 * e * size.batch * size.tokens * size.dim,  # x, dout; dx
        peers={
            "torch": torch_rms_norm,
            "liger": liger_rms_norm,
            "xformers": xformers_rms_norm,
            "flash-attn": flash_attn_rms_norm,
        },
    ),
    Op(
        "normal",
        noise_inputs,
        normal_noise,
        normal_reference,
        bytes_forward=lambda size, e: 4 * size.batch * size.tokens * LATENTS_A_TOKEN,  # float32 noise
    ),
    Op(
        "sde_step",
        step_inputs,
        sde_step,
        sde_step_reference,
        bytes_forward=lambda size, e: 3 * e * size.batch * size.tokens * LATENTS_A_TOKEN,  # x, v; next
    ),
    Op(
        "grpo_loss",
        loss_inputs,
        grpo_loss,
        grpo_loss_reference,
        bytes_forward=lambda size, e: 3 * e * size.batch * size.tokens * LATENTS_A_TOKEN,  # v, x, next
        bytes_backward=lambda size, e: 4 * e * size.batch * size.tokens * LATENTS_A_TOKEN,  # v, x, next; dv
        constant=("x", "next_x", "advantage_B", "coefficients_B3"),
    ),
]
CASES = [
    (op, size, direction)
    for size in (SIZES if ON_GPU else [TINY])
    for op in OPS
    for direction in ("forward", "backward")
    if direction == "forward" or op.bytes_backward is not None
]
# A session's limit on a GPU; torch.compile, which takes most of it, stops at two thirds. What is left out is told.
SECONDS = float(os.environ.get("KERNEL_BENCH_SECONDS", "80"))
began = time.monotonic()
replay = Replay()


@pytest.fixture(autouse=True)
def _triton_on_poisoned_memory() -> None:
    """In place of the kernel tests' fixture: fresh memory is not filled here, and each device runs what it runs in training."""


@pytest.fixture(scope="module")
def clock() -> Clock:
    return Clock(DEVICE)


@pytest.fixture(scope="module")
def copy_gbps(clock: Clock) -> float:
    return clock.copy_gbps()


@pytest.fixture(scope="module")
def _caches_are_full() -> None:
    """On a GPU all that is compiled is so in parallel before anything is timed: one by one it would take minutes."""
    if ON_GPU:
        fill_caches([(op.name, size.name) for size in SIZES for op in OPS], "inductor", min(8, os.cpu_count() or 1))


def fill_caches(pairs: Sequence[tuple[str, str]], backend: str, workers: int) -> int:
    """Runs pairs of (op, size) in other processes, by our kernels and by the compiled reference, whose code the caches of
    Triton and Inductor then keep. Returns how many succeeded; what fails is told where it is measured.
    """
    with (
        patch.dict(os.environ, TORCHINDUCTOR_COMPILE_THREADS="1"),
        ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool,
    ):
        done, unfinished = wait([pool.submit(_compile, *pair, backend) for pair in pairs], timeout=SECONDS / 3)
        for future in unfinished:
            future.cancel()
    return sum(future.exception() is None for future in done)


def _compile(op_name: str, size_name: str, backend: str) -> None:
    op, size = next(op for op in OPS if op.name == op_name), next(size for size in SIZES if size.name == size_name)
    inputs = op.inputs(size, DEVICE, DTYPE)
    for function in (op.call, compiled(op, backend)):
        Pass(function, op, inputs).results("forward" if op.bytes_backward is None else "backward")


@pytest.mark.usefixtures("_caches_are_full")
@pytest.mark.benchmark(timer=replay)
@pytest.mark.parametrize(("op", "size", "direction"), CASES, ids=[f"{o.name}-{s.name}-{d}" for o, s, d in CASES])
def test_speed_of_kernel(
    benchmark: BenchmarkFixture,
    clock: Clock,
    copy_gbps: float,
    op: Op,
    size: Size,
    direction: str,
) -> None:
    elapsed = time.monotonic() - began
    if ON_GPU and elapsed > SECONDS:
        pytest.skip(f"{elapsed:.0f} s of this session are over, more than KERNEL_BENCH_SECONDS={SECONDS:.0f}")
    baselines = {"eager": op.reference} if ON_GPU else {}
    if ON_GPU and elapsed < SECONDS * 2 / 3:
        baselines["compile"] = compiled(op, "inductor")
    seconds, missing = measure(op, size, direction, DTYPE, clock, baselines)
    if ON_GPU and "compile" not in baselines:
        missing.append(f"compile, from {op.name} at {size.name}: it may take {SECONDS * 2 / 3:.0f} s of a session")
    count = op.bytes_forward if direction == "forward" else op.bytes_backward
    assert count is not None
    row = Row(
        op=op.name,
        direction=direction,
        size=size.name,
        ms={name: 1000 * median(times) for name, times in seconds.items()},
        bytes=count(size, DTYPE.itemsize),
        missing=missing,
        copy_gbps=copy_gbps if ON_GPU else None,  # a tiny tensor stays in a CPU's caches
    )
    own = next(iter(seconds.values()))
    replay.load(own)
    benchmark.extra_info.update(
        row.extra_info(), device=torch.cuda.get_device_name() if ON_GPU else "cpu", missing=missing
    )
    benchmark.pedantic(replay.next, rounds=len(own))
    ROWS.append(row)


# Tests of the benchmark itself, which run where there is no GPU.


KEPT_BUT_NOT_READ = {"qk_norm_rope": 1}  # the values in packed
ROW = Row("op", "forward", "tiny", {"ours": 0.5, "compile": 0.25}, bytes=10**9, copy_gbps=4000.0)


def unique_bytes(tensors: list[Any], size: Size) -> int:
    """Of the tensors that are as large as the tokens, the same memory counted once."""
    large = [t for t in tensors if isinstance(t, Tensor) and t.numel() >= size.tokens * size.dim]
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in large}.values())


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_bytes_are_those_of_the_kernels_tensors(op: Op) -> None:
    """Forward: inputs and outputs. Backward: what the graph keeps, upstream gradients and gradients."""
    size = Size("few", 1, (2, 1, 2), heads=2, head_dim=8, ffn=32)
    inputs = with_gradients(op, op.inputs(size, DEVICE, DTYPE))
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with implementation("triton"), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = list(outputs_of(op.call(**inputs)))
    assert op.bytes_forward(size, DTYPE.itemsize) == unique_bytes([*inputs.values(), *outputs], size)
    if op.bytes_backward is not None:
        roots = [output for output in outputs if output.requires_grad]
        upstream = [torch.ones_like(root) for root in roots]
        wanted = [v for v in inputs.values() if isinstance(v, Tensor) and v.requires_grad]
        with implementation("triton"):
            gradients = torch.autograd.grad(roots, wanted, upstream)
        unread = KEPT_BUT_NOT_READ.get(op.name, 0) * size.tokens * size.dim * DTYPE.itemsize
        assert op.bytes_backward(size, DTYPE.itemsize) == unique_bytes([*kept, *upstream, *gradients], size) - unread


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_compiled_reference_is_right_in_both_directions(op: Op) -> None:
    """Twice, as when timed; by the tracer alone, since generating code takes long."""
    function, inputs = compiled(op, "aot_eager"), op.inputs(TINY, DEVICE, DTYPE)
    for direction in ("forward", "backward") if op.bytes_backward is not None else ("forward",):
        exact = exact_results(op, inputs, direction)
        call = compared(function, op, inputs, DTYPE, direction, exact)
        for actual, expected in zip(outputs_of(call()), exact, strict=True):
            assert_near(actual, expected, DTYPE)


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_a_wrong_kernel_is_not_timed(clock: Clock, monkeypatch: pytest.MonkeyPatch, direction: str) -> None:
    monkeypatch.setattr(clock, "seconds", lambda call: pytest.fail("timed"))
    right = next(op for op in OPS if op.name == "gelu_tanh")
    wrong = replace(right, call=lambda x, bias: 1.05 * torch_gelu(x, bias))
    with pytest.raises(AssertionError):
        measure(wrong, TINY, direction, DTYPE, clock, {})


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_every_implementation_is_timed_and_a_peer_that_fails_is_told(clock: Clock, direction: str) -> None:
    def absent(**_: Tensor) -> Tensor:
        return import_module("no_such_package").gelu

    def wrong(x: Tensor, bias: Tensor) -> Tensor:
        return x + bias

    gelu = next(op for op in OPS if op.name == "gelu_tanh")
    peers = {"absent": absent, "wrong": wrong, "torch": torch_gelu, "forward only": torch.no_grad()(torch_gelu)}
    op = replace(gelu, peers=peers)
    baselines = {"eager": op.reference, "compile": compiled(op, "aot_eager")}
    seconds, missing = measure(op, TINY, direction, DTYPE, clock, baselines)
    forward_only = ["forward only"] if direction == "forward" else []
    assert list(seconds) == ["ours", "eager", "compile", "torch", *forward_only]
    assert missing[2:] == ([] if forward_only else ["forward only: NotImplementedError: no backward pass"])
    assert all(times and min(times) > 0 for times in seconds.values())
    assert missing[0] == "absent: ModuleNotFoundError: No module named 'no_such_package'"
    assert missing[1].startswith("wrong: AssertionError")


def test_the_timer_shows_what_was_measured() -> None:
    timer = Replay()
    timer.load([0.5, 0.25])
    shown = [timer()]
    for _ in range(2):
        timer.next()
        shown.append(timer())
    assert shown == [0.0, 0.5, 0.75]
    with pytest.raises(StopIteration):
        timer.next()


def test_rates_are_those_of_the_first_time() -> None:
    assert ROW.gbps == 2000
    assert ROW.percent_of_copy == 50
    assert ROW.extra_info()["gbps"] == 2000
    assert replace(ROW, copy_gbps=None).percent_of_copy is None


def test_table_has_a_column_for_every_implementation() -> None:
    lines = table([ROW, replace(ROW, ms={"ours": 1.0, "liger": 2.0}, copy_gbps=None)]).splitlines()
    assert lines[0].split() == ["op", "size", "ours", "ms", "compile", "ms", "liger", "ms", "MB", "GB/s", "%", "copy"]
    assert lines[1].split() == ["op", "forward", "tiny", "0.5000", "0.2500", "1000.0", "2000", "50"]
    assert lines[2].split() == ["op", "forward", "tiny", "1.0000", "2.0000", "1000.0", "1000"]


@pytest.mark.skipif(ON_GPU, reason="the benchmark itself does it")
def test_other_processes_fill_the_caches() -> None:
    assert (
        fill_caches([("gelu_tanh", "tiny"), ("sde_step", "tiny"), ("gelu_tanh", "no such size")], "aot_eager", 1) == 2
    )


def test_copy_rate_is_positive(clock: Clock) -> None:
    assert clock.copy_gbps() > 0
