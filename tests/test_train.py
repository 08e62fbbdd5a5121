"""A whole run of debug sizes: what it leaves, its golden losses, and that a resumed run is the uninterrupted one.

The golden losses are compared to a relative 1e-4, not exactly: sums of matrix products differ in their last bits between
CPUs (AVX2, AVX-512, ARM) and versions of torch. After a change that is meant to alter them, write them anew with
VRLVR_WRITE_GOLDEN=1 pytest tests/test_train.py, and say so in the commit.
"""

import base64
import gc
import json
import os
import re
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from tiny_run import ARGUMENTS

from vrlvr import options, train
from vrlvr.checkpoint import Checkpoints, TrainState
from vrlvr.config import SftConfig
from vrlvr.distributed import World
from vrlvr.sft import save_at_times
from vrlvr.train import main

GOLDEN = Path(__file__).parent / "assets" / "losses" / "debug.txt"
ROW = ["system", "task", "precision", "recall", "f1", "success_rate", "success_rate_ci95", "num_puzzles", "source"]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    path = tmp_path_factory.mktemp("runs") / "whole"
    assert main([*ARGUMENTS, "--run_dir", str(path)]) == 0
    return path


def test_a_stage_holds_nothing_of_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even what lies in a cycle, as PyTorch leaves some: at full size two stages' models do not fit at once."""

    class Model:
        pass

    def first(*_: object) -> None:
        model = Model()
        model.itself = model
        held.append(weakref.ref(model))

    held: list[weakref.ref[Model]] = []
    gone: list[bool] = []
    monkeypatch.setattr(train, "check_shared", lambda *_: None)  # rank 1 alone
    monkeypatch.setattr(train, "STAGES", {"sft": first, "grpo": lambda *_: gone.append(held[0]() is None)})
    arguments = [*ARGUMENTS, "--run_dir", str(tmp_path / "run")]
    gc.disable()
    try:
        train.train(replace(options.parse(arguments), stage="all"), World(rank=1), arguments)
    finally:
        gc.enable()
    assert gone == [True]


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_every_promised_file_is_there(run_dir: Path) -> None:
    assert yaml.safe_load((run_dir / "config.yaml").read_text())["grpo"]["puzzles"] == 6
    assert list(run_dir.glob("tensorboard/**/events.out.tfevents.*"))
    for name in ("rollouts_before.gif", "rollouts_after.gif"):
        assert (run_dir / name).read_bytes().startswith(b"GIF8")
    assert "| rl | measured |" in (run_dir / "results.md").read_text()
    page = (run_dir / "report.html").read_text()
    assert base64.b64encode((run_dir / "rollouts_after.gif").read_bytes()).decode() in page
    assert not re.search(r"(?:src|href)=[\"']https?://", page)  # one self-contained file
    checkpoints = {path.parent.name for path in run_dir.glob("checkpoints/*/model.safetensors")}
    assert {"sft-epoch-001", "sft-epoch-004", "sft-final", "grpo-000001", "grpo-final"} <= checkpoints


def test_result_rows_have_the_published_schema(run_dir: Path) -> None:
    rows = json.loads((run_dir / "results.json").read_text())
    assert [(row["task"], row["system"]) for row in rows] == [
        (task, system) for task in ("maze", "flowfree", "sokoban") for system in ("base", "sft", "rl")
    ]
    for row in rows:
        others = ["precision_ci95", "recall_ci95", "f1_ci95"]
        assert list(row) == [*ROW, "num_samples", *others, "verifier", "test_set"]
        low, high = row["success_rate_ci95"]
        assert 0 <= low <= row["success_rate"] <= high <= 100
        assert (row["num_puzzles"], row["source"]) == (4, "measured")


def test_nothing_that_could_execute_is_saved(run_dir: Path) -> None:
    kinds = {path.suffix for path in run_dir.rglob("*") if path.is_file() and "tfevents" not in path.name}
    assert kinds <= {".safetensors", ".json", ".jsonl", ".yaml", ".gif", ".md", ".html", ""}
    for path in run_dir.rglob("*.safetensors"):
        with safe_open(path, "pt") as file:
            assert len(list(file.keys())) > 0
    for path in run_dir.glob("checkpoints/latest-*"):
        assert (path.parent / path.read_text().strip()).is_dir()


def test_the_log_tells_rewards_gradients_and_seconds(run_dir: Path) -> None:
    last = [row for row in metrics(run_dir) if row["phase"] == "grpo"][-1]
    names = [
        "reward",
        "success",
        "grad_norm",
        "clip_fraction",
        "zero_spread_fraction",
        "lr",
        "anchor_drift",
        "val_success",
    ]
    names += [f"seconds_{phase}" for phase in ("rollout", "decode", "verify", "update")]
    names += [f"grad_norm_step_{i}" for i in range(3)]
    names += [f"{name}_{task}" for name in ("reward", "success") for task in ("maze", "flowfree", "sokoban")]
    names += ["component_maze_progress", "component_flowfree_filled", "component_sokoban_error"]
    assert [name for name in names if not isinstance(last.get(name), int | float)] == []


def test_golden_losses(run_dir: Path) -> None:
    names = {"sft": ("loss", "grad_norm"), "grpo": ("reward", "grad_norm", "anchor_drift")}
    lines = [
        " ".join([row["phase"], str(row["step"]), *(f"{row[name]:.9e}" for name in names[row["phase"]])])
        for row in metrics(run_dir)
        if row["phase"] in names
    ]
    if os.environ.get("VRLVR_WRITE_GOLDEN") == "1":
        GOLDEN.write_text("\n".join(lines) + "\n")
    golden = GOLDEN.read_text().splitlines()
    assert len(lines) == len(golden) == 32
    for line, expected in zip(lines, golden, strict=True):
        assert line.split()[:2] == expected.split()[:2]
        values, wanted = ([float(word) for word in text.split()[2:]] for text in (line, expected))
        assert values == pytest.approx(wanted, rel=1e-4, abs=1e-9), line


@pytest.mark.parametrize(
    ("every", "names"),
    [
        (2, ["sft-epoch-002", "sft-epoch-004"]),
        (0.5, ["sft-000005", "sft-epoch-001", "sft-000015", "sft-epoch-002", "sft-000025"]),
        (0.1, [f"sft-{step:06d}" if step % 10 else f"sft-epoch-{step // 10:03d}" for step in range(1, 26)]),
    ],
)
def test_sft_is_saved_every_so_many_epochs(every: float, names: list[str]) -> None:
    """A tenth of 240 videos is a step of 24."""
    saved: list[str] = []
    checkpoints: Any = SimpleNamespace(save=lambda stage, state, name: saved.append(name))
    state: Any = SimpleNamespace(progress=SimpleNamespace(step=0))
    for state.progress.step in range(1, 26 if every < 1 else 41):
        save_at_times(SftConfig(batch_size=24, save_every_epochs=every), 240, checkpoints, state)
    assert saved == names


def test_a_full_gpu_is_told_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fill(*_: object) -> None:
        raise torch.OutOfMemoryError("Out of memory.\nTried to allocate 2 GiB.")

    monkeypatch.setitem(train.STAGES, "data", fill)
    assert main([*ARGUMENTS, "--stage", "data", "--run_dir", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "vrlvr: stage data: Out of memory. Tried to allocate 2 GiB.; lower sft.micro_batch, grpo.micro_b"
    )


class Interrupted(Exception):
    """Stands for a killed process."""


def run_until(fatal: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs until checkpoint `fatal` is about to be written."""
    save = Checkpoints.save

    def save_or_die(self: Checkpoints, stage: str, state: TrainState, name: str) -> None:
        if name == fatal:
            raise Interrupted
        save(self, stage, state, name)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_or_die)
        with pytest.raises(Interrupted):
            main(arguments)


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resumed = tmp_path / "resumed"
    arguments = [*ARGUMENTS, "--run_dir", str(resumed)]
    run_until("sft-epoch-003", arguments, monkeypatch)  # steps 13 to 18 are logged, then lost
    run_until("grpo-final", [*arguments, "--resume", "auto"], monkeypatch)  # update 2 is logged, then lost
    assert main([*arguments, "--resume", "auto"]) == 0

    files = sorted(path.relative_to(run_dir) for path in run_dir.glob("checkpoints/*/*"))
    assert len(files) == 4 * 7
    for path in [*files, Path("results.json"), Path("rollouts_after.gif"), Path("puzzles/train.jsonl")]:
        assert (resumed / path).read_bytes() == (run_dir / path).read_bytes(), path

    def without_clocks(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{name: value for name, value in row.items() if not name.startswith("seconds")} for row in rows]

    assert without_clocks(metrics(resumed)) == without_clocks(metrics(run_dir))


def test_the_control_trains_on_other_advantages(run_dir: Path, tmp_path: Path) -> None:
    arguments = ["--grpo.shuffle_advantages", "true", "--grpo.updates", "1", "--init_from", str(run_dir)]
    assert main([*ARGUMENTS, *arguments, "--stage", "grpo", "--run_dir", str(tmp_path / "control")]) == 0
    plain, control = (
        next(row for row in metrics(path) if row["phase"] == "grpo") for path in (run_dir, tmp_path / "control")
    )
    assert control["reward"] == plain["reward"]  # the same puzzles, noise and policy
    assert control["zero_spread_fraction"] == plain["zero_spread_fraction"]
    assert control["grad_norm"] != plain["grad_norm"]


@pytest.mark.parametrize(
    "arguments", ["--grpo.sde_steps all --grpo.sampler cps", "--grpo.inner_epochs 2 --grpo.kl_weight 0.1"]
)
def test_other_ways_to_train(arguments: str, run_dir: Path, tmp_path: Path) -> None:
    whole = [*ARGUMENTS, "--stage", "grpo", "--init_from", str(run_dir), "--run_dir", str(tmp_path / "other")]
    assert main([*whole, "--grpo.reward", "sparse", *arguments.split()]) == 0
    rows = [row for row in metrics(tmp_path / "other") if row["phase"] == "grpo"]
    assert [row["step"] for row in rows] == [1, 2]
    assert all(row["reward"] == row["success"] for row in rows)


def test_a_rollout_in_parts_is_the_same_rollout(run_dir: Path, tmp_path: Path) -> None:
    """Each part is judged while the next is made. Sums over other batches round otherwise."""
    whole = [
        *ARGUMENTS,
        "--stage",
        "grpo",
        "--init_from",
        str(run_dir),
        "--grpo.updates",
        "1",
        "--grpo.validate_every",
        "9",
    ]
    first = []
    for parts in ("null", "3"):
        run = tmp_path / parts
        assert main([*whole, "--run_dir", str(run), "--grpo.rollout_puzzles", parts]) == 0
        first.append(next(row for row in metrics(run) if row["phase"] == "grpo"))
    assert first[0].keys() == first[1].keys()
    for name, value in first[0].items():
        if not name.startswith("seconds") and name != "phase":
            assert first[1][name] == pytest.approx(value, rel=1e-3, abs=1e-6), name


def test_micro_batches_of_sft_change_nothing_but_memory(run_dir: Path, tmp_path: Path) -> None:
    whole = [*ARGUMENTS, "--stage", "sft", "--sft.max_steps", "3", "--run_dir", str(tmp_path / "parts")]
    assert main([*ARGUMENTS, "--stage", "data", "--run_dir", str(tmp_path / "parts")]) == 0
    assert main([*whole, "--sft.micro_batch", "5", "--sft.validate_every", "9"]) == 0
    rows, whole_rows = (
        [row for row in metrics(path) if row["phase"] == "sft"][:3] for path in (tmp_path / "parts", run_dir)
    )
    for whole_row, row in zip(whole_rows, rows, strict=True):
        for name in ("loss", "grad_norm"):
            assert row[name] == pytest.approx(whole_row[name], rel=1e-4)
