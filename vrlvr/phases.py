"""Names for the parts of a step, as every profiler shows them.

rollout, score, advantage, replay, backward, optimizer, sft_step
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.profiler import record_function


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Marks what runs within it: for torch.profiler, and as an NVTX range (Nsight) once CUDA is in use.

    Costs some microseconds, and never waits for the device: the range is the time of launching. Nsight Systems projects it
    onto the kernels launched within.
    """
    with record_function(name):
        if not torch.cuda.is_initialized():
            yield
        else:
            with torch.cuda.nvtx.range(name):
                yield
