"""How kernels are measured: compared first, then timed with a cold L2, on the device's clock.

On a GPU the queue is held up (`torch.cuda._sleep`) while Python enqueues a call, so that the time between the two events is
the device's alone, without gaps that the host's launching leaves.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from statistics import median
from typing import Any

import torch
import torch._functorch.config as functorch_config
from kernel_checks import assert_near
from torch import Tensor

Call = Callable[[], Any]
Inputs = dict[str, Any]
REPEATS = {"cuda": 40, "cpu": 10}


@dataclass(frozen=True)
class Size:
    """grid: tokens by frame, row and column. D = heads * head_dim, ffn: the feed-forward's inner width F."""

    name: str
    batch: int
    grid: tuple[int, int, int]
    heads: int
    head_dim: int
    ffn: int

    @property
    def tokens(self) -> int:
        frames, rows, columns = self.grid
        return frames * rows * columns

    @property
    def dim(self) -> int:
        return self.heads * self.head_dim


@dataclass(frozen=True, eq=False)
class Op:
    """One op to measure.

    inputs: arguments by name for a size, device and dtype; their floating-point tensors get gradients, but those named in
    `constant`. call, reference: of these arguments; they return a tensor, or several as a tuple or as fields, of which those
    with a graph are differentiated. bytes_forward, bytes_backward: what must cross memory, tensors as large as the tokens
    only, from (size, bytes an element); None where the op has no backward pass. for_compile: the reference in the form that
    torch.compile fuses best, if it is another one. peers: what other packages have for the same arguments and results, by
    name; one that is not installed raises ImportError when it is called.
    """

    name: str
    inputs: Callable[[Size, torch.device, torch.dtype], Inputs]
    call: Callable[..., Any]
    reference: Callable[..., Any]
    bytes_forward: Callable[[Size, int], int]
    bytes_backward: Callable[[Size, int], int] | None = None
    constant: Sequence[str] = ()
    for_compile: Callable[..., Any] | None = None
    peers: Mapping[str, Callable[..., Any]] = field(default_factory=dict)


def with_gradients(op: Op, inputs: Inputs) -> Inputs:
    """Copies that are leaves of the graph: those that the op differentiates ask for a gradient."""

    def leaf(name: str, value: Any) -> Any:
        if not isinstance(value, Tensor) or op.bytes_backward is None:
            return value
        return value.detach().requires_grad_(value.is_floating_point() and name not in op.constant)

    return {name: leaf(name, value) for name, value in inputs.items()}


def outputs_of(result: Any) -> tuple[Tensor, ...]:
    """The tensors of a result, in a fixed order."""
    if isinstance(result, Tensor):
        return (result,)
    values = result if isinstance(result, tuple | list) else vars(result).values()
    return tuple(value for value in values if isinstance(value, Tensor))


class Pass:
    """An implementation on given inputs: `forward()`, and `backward()` through the graph of one forward call."""

    def __init__(self, function: Callable[..., Any], op: Op, inputs: Inputs) -> None:
        self._function = function
        self._inputs = with_gradients(op, inputs)
        self._outputs = outputs_of(self.forward())
        self._wanted = [v for v in self._inputs.values() if isinstance(v, Tensor) and v.requires_grad]
        self._roots = [output for output in self._outputs if output.requires_grad]
        self._upstream = [normal(root.shape, seed, root.device, root.dtype) for seed, root in enumerate(self._roots)]

    def forward(self) -> Any:
        return self._function(**self._inputs)

    def backward(self) -> tuple[Tensor, ...]:
        """Gradients of the inputs that ask for one, by upstream gradients that are the same for every implementation."""
        if not self._roots:
            raise NotImplementedError("no backward pass")
        return torch.autograd.grad(self._roots, self._wanted, self._upstream, retain_graph=True, allow_unused=True)

    def results(self, direction: str) -> list[Tensor]:
        found = self._outputs if direction == "forward" else self.backward()
        return [value for value in found if value is not None]


def normal(shape: Sequence[int], seed: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Standard normal values, the same ones in every dtype: bfloat16 can hold them."""
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=device, dtype=torch.bfloat16).to(dtype)


def exact_results(op: Op, inputs: Inputs, direction: str) -> list[Tensor]:
    """Of the reference in float64."""
    wide = {
        name: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in inputs.items()
    }
    return Pass(op.reference, op, wide).results(direction)


def compared(
    function: Callable[..., Any], op: Op, inputs: Inputs, dtype: torch.dtype, direction: str, exact: Sequence[Tensor]
) -> Call:
    """What to time: this pass of the function, once its results are near the exact ones. Raises AssertionError otherwise."""
    candidate = Pass(function, op, inputs)
    for actual, expected in zip(candidate.results(direction), exact, strict=True):
        assert_near(actual, expected, dtype)
    return candidate.forward if direction == "forward" else candidate.backward


class Clock:
    """Times calls on one device. seconds: of each repetition, after a warm-up."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            # Twice the L2; reading it leaves no dirty lines that the timed kernel would have to write back.
            cache_bytes = torch.cuda.get_device_properties(device).L2_cache_size
            self._evict = torch.zeros(cache_bytes // 2, dtype=torch.float32, device=device)
            # The fastest of some: the first is loaded while it is timed, and a GPU that was idle takes a while to clock up.
            sleeps = [self._event_seconds(lambda: torch.cuda._sleep(10_000_000)) for _ in range(20)]
            self._cycles_per_second = 1e7 / min(sleeps)

    def seconds(self, call: Call) -> list[float]:
        repeats = REPEATS[self.device.type]
        enqueue = median([_wall_seconds(call) for _ in range(4)][1:])
        if self.device.type != "cuda":
            return [_wall_seconds(call) for _ in range(repeats)]
        torch.cuda.synchronize(self.device)
        held = int(self._cycles_per_second * min(2 * enqueue + 1e-4, 0.02))
        pairs = []
        for _ in range(repeats):
            torch.cuda._sleep(held)
            self._evict.sum()
            pairs.append(self._events(call))
        torch.cuda.synchronize(self.device)
        return [begin.elapsed_time(end) / 1000 for begin, end in pairs]

    def copy_gbps(self) -> float:
        """Bytes read plus bytes written a second, in 10^9, of a copy far larger than any cache."""
        elements = 2**30 // 4 if self.device.type == "cuda" else 2**22
        source = torch.ones(elements, dtype=torch.float32, device=self.device)
        target = torch.empty_like(source)
        return 2 * source.nbytes / median(self.seconds(lambda: target.copy_(source))) / 1e9

    def _event_seconds(self, call: Call) -> float:
        begin, end = self._events(call)
        torch.cuda.synchronize(self.device)
        return begin.elapsed_time(end) / 1000

    @staticmethod
    def _events(call: Call) -> tuple[torch.cuda.Event, torch.cuda.Event]:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        return begin, end


def _wall_seconds(call: Call) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


class Replay:
    """A timer for pytest-benchmark that shows what was measured already: calling `next` moves it on by one repetition."""

    def __init__(self) -> None:
        self._now = 0.0
        self._pending: Iterator[float] = iter(())

    def __call__(self) -> float:
        return self._now

    def load(self, seconds: Sequence[float]) -> None:
        self._pending = iter(seconds)

    def next(self) -> None:
        self._now += next(self._pending)


@lru_cache(maxsize=64)
def compiled(op: Op, backend: str) -> Callable[..., Any]:
    """The reference by torch.compile, for the very shapes it is called with."""
    functorch_config.donated_buffer = False  # a backward pass that is run again needs what it would have overwritten
    return torch.compile(op.for_compile or op.reference, dynamic=False, backend=backend)


def measure(
    op: Op, size: Size, direction: str, dtype: torch.dtype, clock: Clock, baselines: Mapping[str, Callable[..., Any]]
) -> tuple[dict[str, list[float]], list[str]]:
    """Seconds of every implementation, and why others are missing. Nothing is timed before it was compared.

    "ours", the baselines (forms of the reference) and the peers that are installed. Without baselines only the op as it runs
    here, named "reference". Raises AssertionError for an op that is wrong.
    """
    inputs = op.inputs(size, clock.device, dtype)
    exact = exact_results(op, inputs, direction)
    ours = clock.seconds(compared(op.call, op, inputs, dtype, direction, exact))
    if not baselines:
        return {"reference": ours}, []
    seconds, missing = {"ours": ours}, []
    for name, function in {**baselines, **op.peers}.items():
        try:
            seconds[name] = clock.seconds(compared(function, op, inputs, dtype, direction, exact))
        except Exception as error:  # of code that is not ours: told, and no reason to lose our own numbers
            missing.append(f"{name}: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
    return seconds, missing


@dataclass(frozen=True)
class Row:
    """One line of the summary.

    ms: milliseconds by implementation, on a GPU "ours" first. copy_gbps: None where a share of it would mean nothing.
    missing: why other packages' implementations are not there.
    """

    op: str
    direction: str
    size: str
    ms: Mapping[str, float]
    bytes: int
    copy_gbps: float | None
    missing: Sequence[str] = ()

    @property
    def gbps(self) -> float:
        return self.bytes / next(iter(self.ms.values())) / 1e6

    @property
    def percent_of_copy(self) -> float | None:
        return None if self.copy_gbps is None else 100 * self.gbps / self.copy_gbps

    def extra_info(self) -> dict[str, Any]:
        return {
            "op": self.op,
            "direction": self.direction,
            "size": self.size,
            "ms": dict(self.ms),
            "bytes": self.bytes,
            "gbps": self.gbps,
            "copy_gbps": self.copy_gbps,
            "percent_of_copy": self.percent_of_copy,
            "missing": list(self.missing),
        }


ROWS: list[Row] = []  # of this session, for the summary


def table(rows: Sequence[Row]) -> str:
    """Times in ms; GB/s and share of the copy rate are those of the first time in a row, ours on a GPU."""
    names = list(dict.fromkeys(name for row in rows for name in row.ms))
    lines = [["op", "", "size", *(f"{name} ms" for name in names), "MB", "GB/s", "% copy"]]
    for row in rows:
        times = [f"{row.ms[name]:.4f}" if name in row.ms else "" for name in names]
        share = "" if row.percent_of_copy is None else f"{row.percent_of_copy:.0f}"
        lines.append([row.op, row.direction, row.size, *times, f"{row.bytes / 1e6:.1f}", f"{row.gbps:.0f}", share])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i < 3 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )
