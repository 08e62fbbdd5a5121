"""Kernel tests run Triton (its interpreter where there is no GPU), and every fresh buffer is full of NaN."""

from collections.abc import Iterator

import pytest
import torch
from kernel_bench import ROWS, table

from vrlvr_kernels.launch import implementation


@pytest.fixture(autouse=True)
def _triton_on_poisoned_memory() -> Iterator[None]:
    fill, torch.utils.deterministic.fill_uninitialized_memory = (
        torch.utils.deterministic.fill_uninitialized_memory,
        True,
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    with implementation("triton"):
        yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = fill


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if ROWS:
        terminalreporter.section("kernel benchmarks")
        terminalreporter.line(table(ROWS))
        for line in sorted({line for row in ROWS for line in row.missing}):
            terminalreporter.line(f"left out: {line}")
        if not torch.cuda.is_available():
            terminalreporter.line(
                "No GPU: these are the PyTorch references on a CPU, tiny, and not the speed of any kernel."
            )
