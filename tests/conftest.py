"""What every test needs: one thread, for speed and for the same sums everywhere, no network, and Triton without a GPU."""

import os
import signal
from collections.abc import Iterator

os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"

import pytest
import torch
from hypothesis import settings

if not torch.cuda.is_available():
    # Before a kernel's file is imported. Only the kernels' own tests run Triton then.
    os.environ["TRITON_INTERPRET"] = "1"

torch.set_num_threads(1)
settings.register_profile("vrlvr", deadline=None, derandomize=True)
settings.load_profile("vrlvr")


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """SIGINT interrupts Python, as in a terminal. What runs in the background of a script is started to ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
