"""The facts of a result, and its JSON."""

import json
import subprocess
import sys
from pathlib import Path

import machine
import pytest
import torch


def test_facts_tell_versions_commit_and_device(tmp_path: Path) -> None:
    machine.write_json(tmp_path / "new" / "result.json", {"value": 1})
    result = json.loads((tmp_path / "new" / "result.json").read_text())
    assert list(result) == ["machine", "value"]
    assert result["machine"]["torch"] == torch.__version__
    assert (result["machine"]["cuda"] is None) == (not torch.cuda.is_available())
    assert result["machine"]["device"]


def test_nan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        machine.write_json(tmp_path / "x.json", {"value": float("nan")})


def test_the_commit_is_that_of_the_checkout_or_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    (tmp_path / "file").write_text("1")
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "one"], check=True)
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert machine.commit() == head[:10]
    (tmp_path / "file").write_text("2")
    assert machine.commit() == f"{head[:10]} with changes"
    monkeypatch.setattr(machine, "ROOT", tmp_path / "nowhere")
    monkeypatch.setenv("VRLVR_COMMIT", "abc")
    assert machine.commit() == "abc"
    monkeypatch.delenv("VRLVR_COMMIT")
    assert machine.commit() == "unknown"


def test_scripts_hide_no_module() -> None:
    """A script's own folder is first on its path, so none may be called like a module that something imports."""
    names = {path.stem for path in Path(machine.__file__).parent.glob("*.py")}
    assert not names & set(sys.stdlib_module_names)
    assert not (Path(machine.__file__).parent / "__init__.py").exists()
