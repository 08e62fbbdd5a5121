"""Kernel tests run Triton (its interpreter where there is no GPU), and every fresh buffer is full of NaN."""

from collections.abc import Iterator

import pytest
import torch

from vrlvr_kernels.launch import implementation


@pytest.fixture(autouse=True)
def _triton_on_poisoned_memory() -> Iterator[None]:
    fill, torch.utils.deterministic.fill_uninitialized_memory = torch.utils.deterministic.fill_uninitialized_memory, True
    torch.use_deterministic_algorithms(True, warn_only=True)
    with implementation("triton"):
        yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = fill
