"""Which implementation an op runs, and the small arithmetic of launching it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

from vrlvr_kernels.optional_triton import HAS_TRITON

Implementation = Literal["auto", "triton", "reference"]
_implementation: Implementation = "auto"


@contextmanager
def implementation(name: Implementation) -> Iterator[None]:
    """Within it, every op runs `triton` (on a CPU: by Triton's interpreter, if TRITON_INTERPRET=1 was set before the import)
    or `reference`; `auto`, the default, is Triton for CUDA tensors and the reference for others.
    """
    global _implementation
    before, _implementation = _implementation, name
    try:
        yield
    finally:
        _implementation = before


def runs_triton(tensor: Tensor) -> bool:
    """Whether an op on this tensor runs its Triton kernel."""
    if _implementation == "auto":
        return HAS_TRITON and tensor.is_cuda
    return _implementation == "triton"


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is at least n; 1 for n < 1."""
    return 1 << max(0, n - 1).bit_length()


def num_programs(device: torch.device) -> int:
    """Programs of a kernel that accumulates over rows: one a multiprocessor, so that each writes one row of partial sums.

    For meta tensors (the compile gate's) those of an H200.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count
    return 132 if device.type == "meta" else 2
