"""RunLog: what lands in metrics.jsonl and TensorBoard, what is printed, and what a resumed run keeps."""

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vrlvr.errors import UserError
from vrlvr.run_log import RunLog, _clock, read_metrics


def test_scalars_of_any_kind_are_recorded_and_nan_is_null(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        log.log("sft", 1, 2, loss=torch.tensor(0.5), lr=np.float32(0.25), count=3, bad=float("nan"), worse=float("inf"))
        log.log("sft", 2, 2, loss=0.1, val_success=None)
    first, second = read_metrics(tmp_path / "metrics.jsonl")
    assert first | {"seconds": 0} == {
        "phase": "sft",
        "step": 1,
        "total": 2,
        "seconds": 0,
        "loss": 0.5,
        "lr": 0.25,
        "count": 3,
        "bad": None,
        "worse": None,
    }
    assert second["val_success"] is None
    assert 0 <= first["seconds"] <= second["seconds"]


def test_a_line_is_on_disk_as_soon_as_it_is_logged(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        log.log("grpo", 1, 5, reward=0.5)
        assert read_metrics(tmp_path / "metrics.jsonl")[0]["reward"] == 0.5


def test_a_resumed_phase_replaces_its_own_later_lines_only(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        for step in range(1, 6):
            log.log("sft", step, 5, loss=step)
        for step in range(1, 5):
            log.log("grpo", step, 5, reward=step)
    with RunLog(tmp_path) as log:
        for step in range(3, 6):
            log.log("grpo", step, 5, reward=-step)
        log.log("grpo", 5, 5, val_success=0.5)  # a second line of one step is no repetition
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["loss"] for row in rows if row["phase"] == "sft"] == [1, 2, 3, 4, 5]
    assert [row["reward"] for row in rows if "reward" in row] == [1, 2, -3, -4, -5]
    assert [row["seconds"] for row in rows] == sorted(row["seconds"] for row in rows)


def test_seconds_go_on_where_the_file_ends(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"phase": "sft", "step": 1, "seconds": 100.0}\n')
    with RunLog(tmp_path) as log:
        log.log("sft", 2, 2)
    assert 100 <= read_metrics(tmp_path / "metrics.jsonl")[-1]["seconds"] < 110


def test_a_cut_last_line_is_dropped_and_the_next_run_starts_a_fresh_one(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"phase": "sft", "step": 1, "seconds": 1.0}\n{"phase": "sft", "st\xc3')
    assert [row["step"] for row in read_metrics(path)] == [1]
    with RunLog(tmp_path) as log:
        log.log("grpo", 1, 1, reward=1.0)
    assert [row["phase"] for row in map(json.loads, path.read_text().splitlines())] == ["sft", "grpo"]


@pytest.mark.parametrize("line", ["not json", "[1]", '{"step": 1}', ""])
def test_a_damaged_line_elsewhere_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"phase": "a", "step": 1, "seconds": 1}}\n{line}\n{{"phase": "a", "step": 2, "seconds": 1}}\n')
    with pytest.raises(UserError, match=r"line 2, .* must be a JSON object") as caught:
        read_metrics(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_metrics(tmp_path / "metrics.jsonl")


def _tensorboard(folder: Path, tag: str) -> list[tuple[int, float]]:
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return [(event.step, event.value) for event in accumulator.Scalars(tag)]


def test_tensorboard_reads_the_scalars_and_a_resumed_run_does_not_double_them(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        for step in range(1, 5):
            log.log("grpo", step, 5, reward=step, nothing=float("nan"))
    time.sleep(1.1)  # event files are named, and ordered, by the second
    with RunLog(tmp_path) as log:
        for step in range(3, 6):
            log.log("grpo", step, 5, reward=-step)
    folder = tmp_path / "tensorboard" / "grpo"
    assert _tensorboard(folder, "grpo/reward") == [(1, 1), (2, 2), (3, -3), (4, -4), (5, -5)]


def test_other_ranks_write_and_print_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunLog(tmp_path / "run", enabled=False) as log:
        log.log("sft", 1, 1, loss=1.0)
        log.say("hello")
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_piped_output_is_single_lines_with_phase_speed_and_success(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunLog(tmp_path) as log:
        for step in range(1, 101):
            log.log("grpo", step, 100, reward=0.25, success=0.5)
        log.say("[bold]done[/bold]")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "grpo 1/100  reward 0.25  success 50.0%"
    assert lines[1].startswith("grpo 100/100  ")
    assert "it/s  ETA 0:00  reward 0.25  success 50.0%" in lines[1]
    assert lines[2:] == ["[bold]done[/bold]"]


def test_a_terminal_shows_a_bar(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "120")
    with RunLog(tmp_path) as log:
        log.log("grpo", 1, 2, reward=0.25)
        log.say("[plain]")
        log.log("grpo", 2, 2, reward=0.5)
    out = capsys.readouterr().out
    assert "[plain]" in out
    assert "2/2" in out
    assert "reward 0.5" in out


def test_the_log_is_closed_when_training_fails(tmp_path: Path) -> None:
    def train() -> None:
        with RunLog(tmp_path) as log:
            log.log("sft", 1, 2, loss=1.0)
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        train()
    assert _tensorboard(tmp_path / "tensorboard" / "sft", "sft/loss") == [(1, 1.0)]


def test_a_refusing_disk_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"metrics\.jsonl cannot be written \(Not a directory\); free some disk space"):
        RunLog(tmp_path / "file" / "run")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's always full device")
def test_a_full_disk_is_one_clear_line_and_keeps_what_was_logged(tmp_path: Path) -> None:
    def train() -> None:
        with RunLog(tmp_path) as log, Path("/dev/full").open("w") as full:
            log.log("sft", 1, 2, loss=1.0)
            os.dup2(full.fileno(), log._lines.fileno())
            log.log("sft", 2, 2, loss=1.0)

    with pytest.raises(UserError, match="No space left on device"):
        train()
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1]


def test_clock() -> None:
    assert [_clock(seconds) for seconds in (0, 59.6, 61, 3661)] == ["0:00", "1:00", "1:01", "1:01:01"]


def test_overhead_per_call(tmp_path: Path) -> None:
    """A step with ten scalars takes about 0.1 ms; the bound is loose because tests share their cores."""
    scalars = {f"name_{i}": 0.5 for i in range(10)}
    with RunLog(tmp_path) as log:
        log.log("sft", 0, 1000, **scalars)
        times = []
        for step in range(1, 301):
            start = time.perf_counter()
            log.log("sft", step, 1000, **scalars)
            times.append(time.perf_counter() - start)
    assert float(np.median(times)) < 0.3e-3
