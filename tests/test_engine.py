"""Engines: every ZeRO stage, in any number of processes, trains what one plain process trains, and resumes its runs."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from ranks import on_ranks, train_in_half
from tiny_run import ARGUMENTS, CPU, random_policy, tiny_codec, tiny_config

from vrlvr import engine as engines
from vrlvr.checkpoint import Checkpoints, TrainState
from vrlvr.config import Config
from vrlvr.distributed import World
from vrlvr.engine import PlainEngine, make_engine
from vrlvr.errors import UserError
from vrlvr.tensor_files import TensorFiles
from vrlvr.train import main

STAGES = (0, 1, 2, 3)
# Nothing divides evenly; several backward passes an update, of unequal number on the ranks; all terms of the loss.
SHORT = "--sft.max_steps 3 --sft.validate_every 3 --sft.batch_size 11 --data.num_val 5 --eval.noise_seeds 1 --grpo.puzzles 5 "
SHORT += "--grpo.micro_batch 3 --grpo.kl_weight 0.05 --grpo.anchor_weight 0.01 --grpo.inner_epochs 2 --grpo.validate_every 1"
RUN = [*ARGUMENTS, *SHORT.split()]


def curve(run_dir: Path) -> list[list[float]]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    names = {
        "sft": ("loss", "grad_norm"),
        "grpo": ("reward", "grad_norm", "kl", "anchor_drift", "zero_spread_fraction", "val_success"),
    }
    return [[row["step"], *(row[name] for name in names[row["phase"]])] for row in rows if row["phase"] in names]


def assert_same_curve(run_dir: Path, expected: Path) -> None:
    assert len(curve(run_dir)) == len(curve(expected)) == 3 + 2
    for row, wanted in zip(curve(run_dir), curve(expected), strict=True):
        assert row == pytest.approx(wanted, rel=1e-6, abs=1e-9)


def assert_same_checkpoint(folder: Path, expected: Path) -> None:
    for name in ("model", "ema", "optimizer"):
        actual, wanted = TensorFiles(folder, name), TensorFiles(expected, name)
        assert set(actual) == set(wanted)
        for key, value in wanted.items():
            torch.testing.assert_close(actual[key], value, rtol=1e-4, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run by one process."""
    path = tmp_path_factory.mktemp("runs") / "alone"
    assert main([*RUN, "--run_dir", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def halfway(alone: Path) -> Path:
    """That run, as if killed in its second and last update."""
    path = alone.with_name("halfway")
    shutil.copytree(alone, path)
    shutil.rmtree(path / "checkpoints" / "grpo-final")
    (path / "checkpoints" / "latest-grpo").write_text("grpo-000001\n")
    return path


@pytest.mark.parametrize("processes", [2, 4])
def test_every_engine_trains_what_one_process_trains(
    processes: int, alone: Path, halfway: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And goes on from its checkpoint, by another engine and number of processes; and one process from theirs."""
    pytest.importorskip("deepspeed")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "compiled"))
    whole = {stage: tmp_path / f"whole{stage}" for stage in STAGES}
    resumed = {stage: tmp_path / f"resumed{stage}" for stage in STAGES if stage != processes - 1}
    for path in resumed.values():
        shutil.copytree(halfway, path)
    runs = [[*RUN, "--engine.zero_stage", str(s), "--run_dir", str(path)] for s, path in whole.items()]
    runs += [
        [*RUN, "--engine.zero_stage", str(s), "--run_dir", str(path), "--stage", "grpo", "--resume", "auto"]
        for s, path in resumed.items()
    ]
    on_ranks(processes, "train_runs", runs)
    assert not (tmp_path / "compiled").exists()  # DeepSpeed's operator for collectives on the CPU
    for path in whole.values():
        assert_same_curve(path, alone)
        for name in ("sft-final", "grpo-000001", "grpo-final"):
            assert_same_checkpoint(path / "checkpoints" / name, alone / "checkpoints" / name)
    for path in resumed.values():
        assert curve(path)[-1] == pytest.approx(curve(alone)[-1], rel=1e-6, abs=1e-9)
        assert_same_checkpoint(path / "checkpoints" / "grpo-final", alone / "checkpoints" / "grpo-final")

    back = whole[3]
    shutil.rmtree(back / "checkpoints" / "grpo-final")
    (back / "checkpoints" / "latest-grpo").write_text("grpo-000001\n")
    assert main([*RUN, "--run_dir", str(back), "--stage", "grpo", "--resume", "auto"]) == 0
    assert curve(back)[-1] == pytest.approx(curve(alone)[-1], rel=1e-6, abs=1e-9)
