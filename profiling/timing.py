"""How the scripts here measure: seconds of a call on a device, and what the device can do at best."""

import gc
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch


def synchronize(device: torch.device) -> None:
    """Waits for the device's queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_seconds(call: Callable[[], Any], device: torch.device, repeats: int = 10, warmup: int = 3) -> float:
    """Median over repeats of one call's time: between device events on a GPU, of the wall clock on a CPU."""
    for _ in range(warmup):
        call()
    synchronize(device)
    if device.type != "cuda":
        seconds = []
        for _ in range(repeats):
            begin = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - begin)
        return median(seconds)
    pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for begin_event, end_event in pairs:
        begin_event.record()
        call()
        end_event.record()
    synchronize(device)
    return median(begin_event.elapsed_time(end_event) for begin_event, end_event in pairs) / 1000


def peak_gib(device: torch.device) -> float | None:
    """Largest memory that PyTorch's allocator has handed out since the last call, which restarts the count; None on a CPU."""
    if device.type != "cuda":
        return None
    peak = torch.cuda.max_memory_allocated(device) / 2**30
    torch.cuda.reset_peak_memory_stats(device)
    return peak


def free(device: torch.device) -> None:
    """Gives unused memory back, and restarts the count of the peak."""
    synchronize(device)
    gc.collect()  # what autograd and captured graphs leave in cycles
    if device.type == "cuda":
        torch.cuda.empty_cache()
    peak_gib(device)


def ceilings(device: torch.device) -> dict[str, Any]:
    """Matrix and copy rates of this device in this run, which every share here is a share of.

    matmul_tflops: n^3 product of random normal data, n = 8192 in bfloat16 on a GPU, n = 512 in float32 on a CPU.
    copy_gbps: bytes read plus bytes written of a device-to-device copy, 10^9 bytes a second.
    """
    gpu = device.type == "cuda"
    size, dtype = (8192, torch.bfloat16) if gpu else (512, torch.float32)
    a, b = torch.randn(2, size, size, device=device, dtype=dtype).unbind(0)
    matmul = median_seconds(lambda: a @ b, device)
    source = torch.randn(2**30 if gpu else 2**22, device=device)  # far larger than any cache
    target = torch.empty_like(source)
    copy = median_seconds(lambda: target.copy_(source), device)
    return {
        "matmul_tflops": 2 * size**3 / matmul / 1e12,
        "matmul_dtype": str(dtype).removeprefix("torch."),
        "matmul_size": size,
        "copy_gbps": 2 * source.nbytes / copy / 1e9,
        "copy_gib": source.nbytes / 2**30,
    }
