"""The shell scripts with stand-ins for Python, nsys and ncu, and the Python ones that they and a profiler run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import one_update
import profiler_trace
import pytest

PROFILING = Path(__file__).parents[1] / "profiling"
TINY = ["--group_size", "2", "--num_steps", "3"]


def stand_in(folder: Path, name: str, body: str) -> Path:
    """An executable bash script."""
    path = folder / name
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(0o755)
    return path


def run(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(PROFILING / script), *arguments],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=60,
    )


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A folder for stand-ins, to be put first on PATH."""
    folder = tmp_path / "tools"
    folder.mkdir()
    return folder


@pytest.mark.parametrize(("script", "tool"), [("nsys_update.sh", "nsys"), ("ncu_kernel.sh", "ncu")])
def test_a_missing_tool_is_one_line_and_code_3(script: str, tool: str, tmp_path: Path) -> None:
    for name in ("bash", "dirname", "mktemp", "ln", "rm"):
        (tmp_path / name).symlink_to(Path("/usr/bin") / name if (Path("/usr/bin") / name).exists() else f"/bin/{name}")
    result = run(script, "a_kernel" if tool == "ncu" else "--updates", PATH=str(tmp_path))
    assert result.returncode == 3
    assert f"{tool} is not installed; install Nsight" in result.stderr
    assert result.stderr.count("\n") == 1


def test_nsys_watches_an_update(tools: Path) -> None:
    stand_in(tools, "nsys", 'echo "$@"')
    result = run("nsys_update.sh", "--out", "mine", "--window", "1", PATH=f"{tools}:{os.environ['PATH']}")
    profile, stats = result.stdout.splitlines()
    assert result.returncode == 0
    assert "--capture-range=cudaProfilerApi" in profile
    assert "--output=mine" in profile
    assert profile.endswith("one_update.py --window 1")
    assert stats.endswith("mine.nsys-rep")


def test_ncu_measures_the_named_kernel(tools: Path) -> None:
    stand_in(tools, "ncu", 'echo "$@"')
    path = f"{tools}:{os.environ['PATH']}"
    measured = run("ncu_kernel.sh", "_gelu", "--rows", "2", PATH=path)
    assert measured.returncode == 0
    assert "--kernel-name regex:_gelu " in measured.stdout
    assert "--clock-control none" in measured.stdout
    assert "one_update.py --num_steps 2 --window 1 --rows 2" in measured.stdout
    assert run("ncu_kernel.sh", PATH=path).returncode == 2
    assert run("ncu_kernel.sh", "--out", "x", PATH=path).returncode == 2


@pytest.mark.parametrize(("code", "state", "exit_code"), [(0, "passed", 0), (1, "failed", 1), (124, "out of time", 1)])
def test_a_part_that_fails_stops_no_other(code: int, state: str, exit_code: int, tmp_path: Path, tools: Path) -> None:
    """With a Python that notes what it is told to run; mfu.py ends with `code`."""
    out = tmp_path / "results"
    out.mkdir()
    (out / "kernels.json").write_text(
        json.dumps({"machine_info": {"node": "secret"}, "commit_info": {}, "benchmarks": []})
    )
    python = stand_in(
        tools,
        "python",
        f"""echo "$@" >>{tmp_path}/calls
case "$*" in
  *suite_summary.py*) exec {sys.executable} "$@" ;;
  *get_device_name*) echo cpu ;;
  *mfu.py*) exit {code} ;;
esac""",
    )
    result = run("gpu_suite.sh", "--out", str(out), PYTHON=str(python))
    assert result.returncode == exit_code, result.stderr
    parts = {part["part"]: part["state"] for part in json.loads((out / "suite.json").read_text())["parts"]}
    names = ["correctness", "kernels", "esf_saving", "mfu", "attention_backends"]
    assert parts == dict.fromkeys(names, "passed") | {"mfu": state}
    calls = (tmp_path / "calls").read_text()
    assert "--benchmark-only" in calls
    assert "attention_backends.py" in calls
    kernels = json.loads((out / "kernels.json").read_text())
    assert "secret" not in json.dumps(kernels)
    assert "torch" in kernels["machine_info"]
    assert "commit_info" not in kernels
    assert len(list(out.iterdir())) <= 8


def test_a_part_that_hangs_is_ended(tmp_path: Path, tools: Path) -> None:
    """The limits are the script's; its `timeout` is a stand-in that waits no longer than half a second."""
    stand_in(tools, "timeout", f'shift 2; exec {"/usr/bin/timeout"} 0.5 "$@"')
    body = (
        f'case "$*" in *suite_summary*) exec {sys.executable} "$@" ;; *-c*) echo cpu ;; *esf_saving*) sleep 20 ;; esac'
    )
    python = stand_in(tools, "python", body)
    result = run("gpu_suite.sh", "--out", str(tmp_path), PYTHON=str(python), PATH=f"{tools}:{os.environ['PATH']}")
    assert result.returncode == 1
    assert "esf_saving  out of time" in result.stdout
    assert "attention_backends       passed" in result.stdout


def test_the_limits_leave_the_suite_below_9_minutes() -> None:
    lines = (PROFILING / "gpu_suite.sh").read_text().splitlines()
    limits = [int(line.split()[2]) for line in lines if line.startswith("part ")]
    assert len(limits) == 5
    assert sum(limits) + 5 * 3 <= 540  # and starting Python five times


def test_unknown_arguments_of_the_suite() -> None:
    result = run("gpu_suite.sh", "--fast")
    assert result.returncode == 2
    assert "unknown arguments: --fast" in result.stderr


def test_the_checkout_is_importable_without_an_install(tmp_path: Path) -> None:
    code = "import vrlvr, vrlvr_kernels.launch as l; print(vrlvr.__file__, l.__file__)"
    script = f'source "{PROFILING}/bare_path.sh"; "$python" -S -c "import sys; print(sys.path)"; echo $links'
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path)
    paths, links = result.stdout.splitlines()
    assert str(PROFILING.parent) in paths
    assert links in paths
    assert not Path(links).exists()
    script = f'source "{PROFILING}/bare_path.sh"; "$python" -c "{code}"'
    result = subprocess.run(
        ["bash", "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHON": sys.executable},
    )
    ours, kernels = result.stdout.split()
    assert ours == str(PROFILING.parent / "vrlvr" / "__init__.py")
    assert kernels.endswith("vrlvr_kernels/launch.py")


def test_one_update_tells_its_phases(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["one_update.py", *TINY, "--updates", "2", "--layers", "1"])
    assert one_update.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:2]] == ["update 1", "update 2"]
    assert all(name in lines[0] for name in ("rollout", "replay", "optimizer"))


@pytest.mark.parametrize("script", [one_update, profiler_trace])
def test_a_window_of_all_steps_is_refused(script, monkeypatch: pytest.MonkeyPatch, capsys, tmp_path: Path) -> None:
    out = ["--out", str(tmp_path)] if script is profiler_trace else []
    monkeypatch.setattr("sys.argv", ["script.py", "--num_steps", "2", "--window", "2", *out])
    assert script.main() == 2
    assert "must lie below --num_steps 2" in capsys.readouterr().err


def test_the_trace_shows_the_phases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["profiler_trace.py", *TINY, "--out", str(tmp_path / "trace")])
    assert profiler_trace.main() == 0
    table = (tmp_path / "trace" / "table.txt").read_text()
    assert all(phase in table for phase in ("rollout", "replay", "backward"))
    assert (tmp_path / "trace" / "trace.json.gz").stat().st_size > 1000


def test_files_of_missing_packages_are_no_failure(tmp_path: Path, tools: Path) -> None:
    """pytest ends with 5 where it finds nothing to run, with 1 where a test fails."""
    body = """case "$*" in
  *suite_summary*) exec {python} "$@" ;;
  *get_device_name*) echo cpu ;;
  *test_umt5*) exit 5 ;;
  *test_dit*) exit {code} ;;
esac"""
    for code, state in ((0, "passed"), (1, "failed")):
        python = stand_in(tools, "python", body.format(python=sys.executable, code=code))
        result = run("gpu_suite.sh", "--out", str(tmp_path / str(code)), PYTHON=str(python))
        parts = json.loads((tmp_path / str(code) / "suite.json").read_text())["parts"]
        assert (parts[0]["part"], parts[0]["state"]) == ("correctness", state)
        assert result.returncode == code
