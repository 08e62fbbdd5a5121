"""A run's folder: never overwritten, never gone on with under other options, one line for whatever is wrong."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_run import ARGUMENTS

from vrlvr import options
from vrlvr import run_dir as module
from vrlvr.distributed import World
from vrlvr.errors import UserError
from vrlvr.run_dir import check_shared, facts
from vrlvr.train import main

SHORT = ["--sft.max_steps", "2", "--grpo.updates", "1", "--grpo.validate_every", "9"]
Run = Callable[..., str]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run after data and SFT."""
    path = tmp_path_factory.mktemp("runs") / "trained"
    for stage in ("data", "sft"):
        assert main([*ARGUMENTS, *SHORT, "--run_dir", str(path), "--stage", stage, "--resume", "auto"]) == 0
    return path


@pytest.fixture
def copy_of(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command line that must be refused, and gives the line."""

    def run(run_dir: Path, *arguments: str) -> str:
        assert main([*ARGUMENTS, *SHORT, "--run_dir", str(run_dir), *arguments]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return run


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_fresh_run_moves_a_former_one_aside(copy_of: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = snapshot(copy_of)
    assert main([*ARGUMENTS, *SHORT, "--run_dir", str(copy_of), "--stage", "data"]) == 0
    assert snapshot(copy_of.with_name("run.1")) == before
    assert f"the former {copy_of} is now {copy_of}.1" in capsys.readouterr().out
    assert not (copy_of / "checkpoints").exists()


def test_sft_is_not_trained_over_its_own_checkpoints(copy_of: Path, refused: Run) -> None:
    before = snapshot(copy_of)
    line = refused(copy_of, "--stage", "sft")
    assert "already holds checkpoints of stage sft" in line
    assert "--resume auto" in line
    assert snapshot(copy_of) == before


@pytest.mark.parametrize(
    ("arguments", "drift"),
    [
        ("--stage sft --resume auto --sft.lr 0.5", "sft.lr was 0.003, now 0.5"),
        ("--stage grpo --model.num_layers 3", "model.num_layers was 1, now 3"),
        ("--stage sft --resume auto --data.maze.flips 0.2", "data.maze.flips was 0.1, now 0.2"),
        ("--stage eval --seed 2", "seed was 1, now 2"),
    ],
)
def test_other_options_are_named(arguments: str, drift: str, copy_of: Path, refused: Run) -> None:
    before = snapshot(copy_of)
    line = refused(copy_of, *arguments.split())
    assert drift in line
    assert "another --run_dir" in line
    assert snapshot(copy_of) == before


def test_options_of_stages_that_have_not_begun_may_change(copy_of: Path) -> None:
    common = [*ARGUMENTS, *SHORT, "--run_dir", str(copy_of)]
    assert main([*common, "--stage", "grpo", "--grpo.lr", "0.001"]) == 0
    assert main([*common, "--stage", "grpo", "--grpo.lr", "0.002", "--resume", "auto"]) == 2


def test_how_a_run_is_computed_may_change(copy_of: Path) -> None:
    """What a full GPU, or another machine, asks for."""
    common = [*ARGUMENTS, *SHORT, "--run_dir", str(copy_of), "--stage", "sft", "--resume", "auto"]
    changed = "--sft.micro_batch 5 --model.recompute full --model.attention math --sft.save_every_epochs 0.5"
    assert main([*common, *changed.split()]) == 0
    kept = options.parse(["--config", str(copy_of / "config.yaml")])
    assert (kept.sft.micro_batch, kept.model.recompute, kept.sft.save_every_epochs) == (5, "full", 0.5)


def test_a_checkpoint_that_a_crash_left_aside_is_found(copy_of: Path) -> None:
    """A kill between the two renames with which a checkpoint replaces one of the same name."""
    (copy_of / "checkpoints" / "sft-final").rename(copy_of / "checkpoints" / ".sft-final.former")
    assert main([*ARGUMENTS, *SHORT, "--run_dir", str(copy_of), "--stage", "grpo"]) == 0


def test_an_evaluation_leaves_alone_what_training_is_writing(copy_of: Path) -> None:
    partial = copy_of / "checkpoints" / ".grpo-000001.partial"
    partial.mkdir()
    module.open_run(options.parse([*ARGUMENTS, *SHORT, "--run_dir", str(copy_of), "--stage", "eval"]))
    assert partial.exists()
    module.open_run(options.parse([*ARGUMENTS, *SHORT, "--run_dir", str(copy_of), "--stage", "grpo"]))
    assert not partial.exists()


def test_a_complete_stage_is_not_written_again(copy_of: Path) -> None:
    """70 GB at full size."""
    before = {path: path.stat().st_ino for path in (copy_of / "checkpoints").rglob("*")}
    assert main([*ARGUMENTS, *SHORT, "--run_dir", str(copy_of), "--stage", "sft", "--resume", "auto"]) == 0
    assert {path: path.stat().st_ino for path in (copy_of / "checkpoints").rglob("*")} == before


def test_sft_that_goes_on_from_anothers_last_step_is_kept(trained: Path, tmp_path: Path) -> None:
    """Started from a complete SFT, whose last checkpoint has the name of the new one's."""
    run = tmp_path / "run"
    arguments = ["--run_dir", str(run), "--init_from", str(trained), "--stage", "sft", "--resume", "auto"]
    assert main([*ARGUMENTS, *SHORT, *arguments, "--sft.max_steps", "3"]) == 0
    steps = {
        folder: json.loads((folder / "checkpoints" / "sft-final" / "state.json").read_text())["progress"]["step"]
        for folder in (trained, run)
    }
    assert steps == {trained: 2, run: 3}


def test_a_folder_that_nodes_do_not_share(copy_of: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(World, "gather", lambda self, value: [True, value, True, value])
    check_shared(copy_of, World(1, 4))
    with pytest.raises(UserError, match=r"run_dir=.*nowhere is not there for rank 1, 3; name a folder that all nodes"):
        check_shared(copy_of / "nowhere", World(1, 4))


@pytest.mark.parametrize("stage", ["sft", "grpo", "eval"])
def test_a_run_that_does_not_exist(stage: str, tmp_path: Path, refused: Run) -> None:
    line = refused(tmp_path / "nowhere", "--stage", stage)
    assert str(tmp_path / "nowhere") in line
    assert "use a run whose stage is complete" in line or "run --stage data first" in line


def test_grpo_needs_a_complete_sft(copy_of: Path, refused: Run) -> None:
    shutil.rmtree(copy_of / "checkpoints" / "sft-final")
    assert "sft-final/state.json is no readable checkpoint" in refused(copy_of, "--stage", "grpo")


def test_missing_puzzles(copy_of: Path, refused: Run) -> None:
    (copy_of / "puzzles" / "val.jsonl").unlink()
    assert "val.jsonl is missing; run --stage data first" in refused(copy_of, "--stage", "grpo")


@pytest.mark.parametrize("text", ["", "[1]", "a: ["])
def test_a_damaged_config(text: str, copy_of: Path, refused: Run) -> None:
    (copy_of / "config.yaml").write_text(text)
    assert "config.yaml is damaged" in refused(copy_of, "--stage", "grpo")


def test_damaged_puzzles(copy_of: Path, refused: Run) -> None:
    path = copy_of / "puzzles" / "val.jsonl"
    path.write_text(path.read_text()[:-30])
    assert "val.jsonl: line 9 is no puzzle" in refused(copy_of, "--stage", "grpo")


def test_a_run_starts_from_anothers_sft_policy(trained: Path, tmp_path: Path) -> None:
    before = snapshot(trained)
    arguments = ["--stage", "grpo", "--init_from", str(trained), "--seed", "5", "--run_dir", str(tmp_path / "new")]
    assert main([*ARGUMENTS, *SHORT, *arguments]) == 0
    assert (tmp_path / "new" / "checkpoints" / "grpo-final" / "ema.safetensors").exists()
    assert snapshot(trained) == before


def test_a_start_takes_no_room(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint gets a second name; where a disk has none for it, or a start was broken off, it is copied."""
    new = tmp_path / "new"
    config = options.parse([*ARGUMENTS, *SHORT, "--stage", "grpo", "--init_from", str(trained), "--run_dir", str(new)])
    name = "checkpoints/sft-final/model.safetensors"
    module.open_run(config)
    assert (new / name).samefile(trained / name)

    def refuse(*_: object) -> None:
        raise OSError("Invalid cross-device link")

    (new / "checkpoints" / "latest-sft").unlink()
    monkeypatch.setattr("os.link", refuse)
    before = snapshot(trained)
    module.open_run(config)
    assert not (new / name).samefile(trained / name)
    assert (new / name).read_bytes() == (trained / name).read_bytes()
    assert snapshot(trained) == before


def test_a_run_does_not_start_from_another_that_does_not_fit(trained: Path, tmp_path: Path, refused: Run) -> None:
    start = ["--stage", "grpo", "--init_from"]
    assert "lacks config.yaml, puzzles" in refused(tmp_path / "a", *start, str(tmp_path / "none"))
    line = refused(tmp_path / "b", *start, str(trained), "--model.ffn_dim", "64")
    assert "model.ffn_dim was 32, now 64" in line


def test_a_folder_that_cannot_be_made(tmp_path: Path, refused: Run) -> None:
    (tmp_path / "file").write_text("")
    assert "choose another one" in refused(tmp_path / "file" / "run")


def test_facts_name_command_versions_and_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    from vrlvr.config import Config

    monkeypatch.setattr(module, "_commit", lambda: "abc")
    told = facts(Config(seed=4), ["vrlvr", "train", "--grpo.reward", "{maze: 1}"], 2)
    assert told["command"] == "vrlvr train --grpo.reward '{maze: 1}'"
    assert (told["processes"], told["seed"], told["commit"]) == (2, 4, "abc")
    json.dumps(told)
