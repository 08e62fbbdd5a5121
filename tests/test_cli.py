"""The console script, as a user types it: exit codes, and one line for bad input."""

import importlib
import inspect
import json

import numpy as np
import pytest

from vrlvr import cli, puzzles
from vrlvr.cli import main
from vrlvr.puzzles.maze import Difficulty
from vrlvr.video_io import write_mp4

SIZE = (96, 160)
PLAIN = {"data": "dataset.build", "encode": "encode.encode"}


@pytest.fixture
def maze(tmp_path):
    """A maze's JSON and the planner's video of it."""
    puzzle = puzzles.generate("maze", Difficulty(4, 5), 0, "test", 3)
    puzzles.save(puzzle, tmp_path / "maze.json")
    video = puzzles.render(puzzle, *SIZE, num_frames=9, frames_per_move=2)
    write_mp4(tmp_path / "solved.mp4", video, fps=8)
    write_mp4(tmp_path / "frozen.mp4", np.repeat(video[:1], 9, axis=0), fps=8)
    return tmp_path


def verify(folder, video, *options):
    return main(["verify", str(folder / video), "--puzzle", str(folder / "maze.json"), *options])


def test_verify_tells_solved_from_frozen_by_its_exit_code(maze, capsys):
    assert verify(maze, "solved.mp4") == 0
    assert capsys.readouterr().out.startswith("solved; reward 0.9")
    assert verify(maze, "frozen.mp4") == 1
    assert "not solved, not_solved at frame 8" in capsys.readouterr().out


def test_verify_json_holds_the_whole_verdict(maze, capsys):
    verify(maze, "solved.mp4", "--json")
    verdict = json.loads(capsys.readouterr().out)
    others = {"components", "broken_rule", "frame", "precision", "recall", "f1", "fit"}
    assert set(verdict) == {"solved", "reward", *others}
    assert verdict["fit"] == "same size"
    assert verdict["solved"] is True
    assert verdict["f1"] == 1.0
    assert verdict["broken_rule"] is None
    assert verdict["components"]["progress"] == 1.0


def test_data_then_verify(tmp_path, capsys):
    out = tmp_path / "data"
    sizes = ["--height", "96", "--width", "96", "--num_frames", "81"]
    assert (
        main(["data", "--out", str(out), "--num_train", "1", "--num_test", "1", "--tasks", "maze,sokoban", *sizes]) == 0
    )
    header, train, test = (out / "metadata_sokoban.csv").read_text(encoding="utf-8").splitlines()
    assert header == "video,prompt,input_image,puzzle"
    assert train.startswith("train/sokoban/")
    assert test.startswith("test/sokoban/")
    assert not (out / "metadata_flowfree.csv").exists()
    stem = out / "test" / "maze" / "00000"
    assert main(["verify", f"{stem}.mp4", "--puzzle", f"{stem}.json"]) == 0


EVAL = ["eval", "videos", "v", "--system", "S", "--data", "d", "--out", "o"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ["verfy"],
            "command 'verfy' does not exist; use one of train, data, import, encode, ",
        ),
        (["verify", "solved.mp4"], "--puzzle must be given; vrlvr verify --help tells more"),
        (["verify", "solved.mp4", "other.mp4"], "'other.mp4' is one value too many"),
        (["eval", "vidoes", "videos"], "eval vidoes does not exist; use one of videos, model, provider, llm, vbvr, "),
        (["eval", "two\nlines\x1b[31m"], r"eval two\nlines\x1b[31m does not exist"),
        (["eval", "videos"], "videos and --system and --data and --out must be given"),
        ([*EVAL, "--num_puzzles", "few"], "num_puzzles=few must be a whole number"),
        ([*EVAL, "--wokers=2"], "option --wokers does not exist; the nearest one is --workers"),
        (["eval", "provider", "--provider", "sora"], "provider=sora must be one of sora2, veo3.1, kling3"),
        (["eval", "vbvr", "--timeout_minutes", "long"], "timeout_minutes=long must be a number"),
        (["eval", "provider", "--yes=maybe"], "yes=maybe must be true or false"),
        (
            ["eval", "verifiers", "--out", "o", "--size", "tiny,small"],
            "size=tiny,small must be one of tiny, small, full",
        ),
        (["table", "--format", "pdf"], "format=pdf must be one of markdown, latex, csv, html"),
        (["verify", "missing.mp4", "--puzzle", "maze.json"], "missing.mp4"),
        (["verify", "cut.mp4", "--puzzle", "maze.json"], "cut.mp4"),
        (["verify", "maze.json", "--puzzle", "maze.json"], "maze.json"),
        (["verify", "solved.mp4", "--puzzle", "solved.mp4"], "is no puzzle file"),
        (["verify", "small.mp4", "--puzzle", "maze.json"], "a 4x5 board in a 16x16 frame leaves 3 pixels a cell"),
        (["data", "--out", "d", "--num_train", "1", "--num_test", "1", "--num_frames", "6"], "num_frames"),
        (["data", "--out", "d", "--num_train", "1", "--num_test", "1", "--tasks", "chess"], "chess"),
        (["eval", "--run_dir", "nowhere"], "run"),
        (["export", "--run_dir", "nowhere", "--out", "d", "--format", "merged"], "name a trained run with --run_dir"),
        (["export", "--run_dir", "nowhere", "--out", "d", "--format", "onnx"], "lora-comfyui"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(maze, monkeypatch, capsys, arguments, told):
    monkeypatch.chdir(maze)
    (maze / "cut.mp4").write_bytes((maze / "solved.mp4").read_bytes()[:400])
    write_mp4(maze / "small.mp4", np.zeros((5, 16, 16, 3), np.uint8), fps=8)
    assert main(arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("vrlvr: ")
    assert told in lines[0]


def test_help_lists_the_commands(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {command} " in shown for command in ("train", "data", "encode", "eval", "verify"))


def test_a_stop_by_hand_is_one_line(monkeypatch, capsys):
    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, "data", interrupted)
    assert main(["data"]) == 130
    assert capsys.readouterr().err.startswith("vrlvr: data was stopped; what is complete stays")


@pytest.mark.parametrize("command", [*cli.CALLED, "data", "encode"])
def test_help_is_the_functions_docstring(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*command.split(), "--help"])
    assert stop.value.code == 0
    told = "".join(capsys.readouterr().out.split())
    path = cli.CALLED[command][0] if command in cli.CALLED else f"vrlvr.{PLAIN[command]}"
    module, _, name = path.rpartition(".")
    assert "".join(inspect.getdoc(getattr(importlib.import_module(module), name)).split()) in told
