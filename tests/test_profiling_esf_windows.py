"""profiling/esf_windows.py on a debug run: the counted units, the measured seconds, and one line for bad input."""

import json
from pathlib import Path

import esf_windows
import pytest
from tiny_run import ARGUMENTS, tiny_config

from vrlvr.train import main


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose data and SFT are complete."""
    path = tmp_path_factory.mktemp("runs") / "sft"
    for stage in ("data", "sft"):
        assert main([*ARGUMENTS, "--run_dir", str(path), "--stage", stage, "--sft.max_steps", "2"]) == 0
    return path


def test_units_count_forwards() -> None:
    """Five steps, the first shared by four samples: 4.25 of rollout, and 3 per trained step, the first again shared."""
    assert esf_windows.predicted_units(tiny_config("--grpo.sde_steps", "2")) == 4.25 + 3 * 1.25
    assert esf_windows.predicted_units(tiny_config("--grpo.sde_steps", "all")) == 4.25 + 3 * 3.25
    assert esf_windows.predicted_units(tiny_config("--grpo.shared_noise", "false", "--grpo.sde_steps", "2")) == 5 + 6


def test_it_measures_every_window(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "esf" / "saving.json"
    options = ["--run_dir", str(run_dir), "--updates", "2", "--windows", "1,all", "--out", str(out)]
    monkeypatch.setattr("sys.argv", ["esf_windows.py", *options])
    assert esf_windows.main() == 0
    early, full = json.loads(out.read_text())["rows"]
    assert (early["sde_steps"], full["sde_steps"]) == (1, 4)
    assert full["saved"] == 0
    assert early["saved_predicted"] == pytest.approx(1 - (4.25 + 0.75) / (4.25 + 9.75))
    assert all(row["seconds_update"] > 0 for row in (early, full))  # which takes longer is chance on a busy machine
    assert early["saved"] == pytest.approx(1 - early["seconds"] / full["seconds"])


@pytest.mark.parametrize(
    ("options", "told"),
    [(["--updates", "1"], "use at least 2"), (["--windows", "7"], "sde_steps=7"), (["--windows", "x"], "x")],
)
def test_bad_input_is_one_line(
    run_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    told: str,
) -> None:
    monkeypatch.setattr("sys.argv", ["esf_windows.py", "--run_dir", str(run_dir), *options])
    assert esf_windows.main() == 2
    line = capsys.readouterr().err.strip()
    assert told in line
    assert "\n" not in line
