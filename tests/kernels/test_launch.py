"""Which implementation runs where, and that no machine needs Triton to import the ops."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vrlvr_kernels.launch import implementation, next_power_of_2, runs_triton

WITHOUT_TRITON = """
import importlib.util, sys
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "triton" else find_spec(name, *rest)
sys.modules["triton"] = None  # importing it raises ImportError
import torch
from vrlvr_kernels.optional_triton import HAS_TRITON
from vrlvr_kernels.philox import normal
import vrlvr_kernels.grpo_loss, vrlvr_kernels.gated_residual_layernorm_modulate
import vrlvr_kernels.qk_norm_rope, vrlvr_kernels.gelu_tanh, vrlvr_kernels.sde_step
assert not HAS_TRITON
print(normal(1, 0, torch.arange(2), 0, 5).shape)
"""


def test_without_triton_the_references_run() -> None:
    result = subprocess.run([sys.executable, "-c", WITHOUT_TRITON], capture_output=True, text=True, timeout=120)
    assert result.stdout.strip() == "torch.Size([2, 5])", result.stderr


def test_every_op_is_in_that_test() -> None:
    folder = Path(__file__).parents[2] / "kernels"
    ops = {path.stem for path in folder.glob("*.py")} - {"launch", "optional_triton", "layernorm_modulate"}
    assert {op for op in ops if f"vrlvr_kernels.{op}" in WITHOUT_TRITON} == ops


def test_the_implementation_is_chosen_for_a_block_and_restored() -> None:
    x = torch.zeros(1)
    with implementation("auto"):
        assert not runs_triton(x)
        with implementation("triton"):
            assert runs_triton(x)
            with implementation("reference"):
                assert not runs_triton(x)
            assert runs_triton(x)
        assert not runs_triton(x)


@pytest.mark.parametrize(("n", "power"), [(0, 1), (1, 1), (2, 2), (3, 4), (1024, 1024), (3072, 4096)])
def test_next_power_of_2(n: int, power: int) -> None:
    assert next_power_of_2(n) == power
