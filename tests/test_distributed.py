"""Two processes train what one trains; collectives and shares."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import ARGUMENTS
from torch import nn

from vrlvr.distributed import World
from vrlvr.train import main

# The anchor's states are drawn by each rank for itself, so they differ with the number of ranks.
SHORT = ["--sft.max_steps", "2", "--sft.validate_every", "2", "--grpo.anchor_weight", "0"]
ENTRY = Path(__file__).parents[1] / "vrlvr" / "train.py"


def torchrun(*arguments: str, processes: int = 2) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return subprocess.run([*launcher, str(ENTRY), *arguments], capture_output=True, text=True, timeout=300)


def losses(run_dir: Path) -> list[list[float]]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    names = {"sft": ("loss", "grad_norm", "val_success"), "grpo": ("reward", "grad_norm", "val_success")}
    return [[row["step"], *(row.get(name, 0.0) for name in names[p])] for row in rows if (p := row["phase"]) in names]


def test_two_processes_train_what_one_trains(tmp_path: Path) -> None:
    together, alone = tmp_path / "together", tmp_path / "alone"
    finished = torchrun(*ARGUMENTS, *SHORT, "--run_dir", str(together))
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert main([*ARGUMENTS, *SHORT, "--run_dir", str(alone)]) == 0
    assert len(losses(together)) == 4
    for row, expected in zip(losses(together), losses(alone), strict=True):
        assert row == pytest.approx(expected, rel=1e-5)
    assert (together / "puzzles" / "train.jsonl").read_text() == (alone / "puzzles" / "train.jsonl").read_text()
    assert [path.name for path in together.glob("results.*")] != []

    refused = torchrun(*ARGUMENTS, *SHORT, "--run_dir", str(together), "--stage", "sft")
    lines = [line for line in refused.stderr.splitlines() if line.startswith("vrlvr: ")]
    assert len(lines) == 1
    assert "already holds checkpoints of stage sft" in lines[0]
    assert "[rank1]" not in refused.stderr  # the other process ends in peace


@given(total=st.integers(0, 300), size=st.integers(1, 17))
def test_shares_are_whole_and_even(total: int, size: int) -> None:
    shares = [World(rank, size).share(total) for rank in range(size)]
    assert [i for share in shares for i in share] == list(range(total))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_one_process_needs_no_group() -> None:
    world, layer = World(), nn.Linear(2, 1)
    layer.weight.grad = torch.ones(1, 2)
    assert world.on_main(lambda: "done") == "done"
    world.sync_gradients(layer.parameters())
    assert world.gather("x") == ["x"]
    assert world.sum(torch.tensor(3.0)).item() == 3.0
    assert layer.weight.grad.tolist() == [[1.0, 1.0]]
    assert layer.bias.grad is None
