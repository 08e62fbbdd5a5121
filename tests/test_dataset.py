"""Data sets in the public layout: complete, repeatable, resumable, and solved after H.264."""

import csv
import dataclasses
import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vrlvr import dataset, puzzles
from vrlvr.dataset import Instance, build, frames_per_move, full_size_difficulties, make
from vrlvr.errors import UserError
from vrlvr.puzzles import ROOMS
from vrlvr.video_io import read_mp4

SMALL = {
    "height": 96,
    "width": 96,
    "num_frames": 5,
    "difficulties": {t: room.Difficulty() for t, room in ROOMS.items()},
}


def small(out: Path, **changes) -> None:
    build(**{"out": out, "num_train": 3, "num_test": 2, "seed": 7, "workers": 1, **SMALL, **changes})


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("made") / "data"
    small(out)
    return out


def rows_of(out: Path, name: str) -> list[dict[str, str]]:
    with (out / f"metadata_{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_layout_is_the_public_one(made):
    expected = {"manifest.json"} | {f"metadata_{name}.csv" for name in ("all", *ROOMS)}
    for split, count in (("train", 3), ("test", 2)):
        for task in ROOMS:
            for i in range(count):
                expected |= {f"{split}/{task}/{i:05d}.{kind}" for kind in ("mp4", "png", "json")}
    assert set(contents(made)) == expected


def test_the_metadata_lists_every_video_once(made):
    rows = rows_of(made, "all")
    assert list(rows[0]) == ["video", "prompt", "input_image", "puzzle"]
    assert len(rows) == 15
    assert sorted(row["video"] for row in rows) == sorted(n for n in contents(made) if n.endswith(".mp4"))
    for task in ROOMS:
        assert rows_of(made, task) == [row for row in rows if f"/{task}/" in row["video"]]
        assert len(rows_of(made, task)) == 5


def test_every_row_is_solved_and_starts_with_its_image(made):
    for row in rows_of(made, "all"):
        puzzle = puzzles.load(made / row["puzzle"])
        video = read_mp4(made / row["video"])
        assert video.shape == (5, 96, 96, 3)
        assert puzzles.verify(puzzle, video).solved
        assert row["prompt"] == ROOMS[puzzle.task].prompt(puzzle)
        image = np.asarray(Image.open(made / row["input_image"]))
        assert (image == puzzles.render_first_frame(puzzle, 96, 96)).all()


def test_the_splits_share_no_puzzle(made):
    for task, room in ROOMS.items():
        keys = {
            split: {room.canonical(puzzles.load(path)) for path in (made / split / task).glob("*.json")}
            for split in ("train", "test")
        }
        assert keys["train"]
        assert not keys["train"] & keys["test"]


def test_processes_do_not_change_a_byte(made, tmp_path):
    """Enough instances for several chunks, made by two processes and by one."""
    small(tmp_path / "two", num_train=8, tasks=["maze", "sokoban"], workers=2)
    small(tmp_path / "one", num_train=8, tasks=["maze", "sokoban"], workers=1)
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    assert (tmp_path / "one/train/maze/00002.json").read_bytes() == (made / "train/maze/00002.json").read_bytes()


def test_another_seed_gives_other_puzzles(made, tmp_path):
    small(tmp_path / "other", seed=8)
    assert contents(tmp_path / "other")["train/maze/00000.json"] != contents(made)["train/maze/00000.json"]


def test_a_broken_off_build_goes_on(made, tmp_path, monkeypatch):
    """The disk fills up during the 6th instance: 5 stay, and only the other 10 are made later."""
    out = tmp_path / "data"
    saved, calls = puzzles.save, []

    def save(puzzle, path):
        calls.append(path)
        if len(calls) == 6:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        saved(puzzle, path)

    monkeypatch.setattr(puzzles, "save", save)
    with pytest.raises(UserError, match="No space left on device") as error:
        small(out)
    assert "\n" not in str(error.value)
    assert len(list(out.rglob("*.json"))) == 1 + 5
    assert not list(out.rglob("*.partial"))
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.json")}
    small(out)
    assert len(calls) == 6 + 10
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert contents(out) == contents(made)


def test_a_complete_build_is_left_alone(made, monkeypatch):
    monkeypatch.setattr(dataset, "make", None)  # would raise if it were called
    before = contents(made)
    small(made)
    assert contents(made) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 8}, "seed=7, not 8"),
        ({"num_train": 4}, "num_train=3, not 4"),
        ({"width": 128}, "width=96, not 128"),
        ({"tasks": ["maze"]}, "difficulties="),
        (
            {"difficulties": {**SMALL["difficulties"], "maze": ROOMS["maze"].Difficulty(4, 4, max_plan=3)}},
            "difficulties=",
        ),
    ],
)
def test_other_arguments_are_refused(made, changes, message):
    before = contents(made)
    with pytest.raises(UserError, match=message) as error:
        small(made, **changes)
    assert "\n" not in str(error.value)
    assert contents(made) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_train": -1}, "num_train=-1"),
        ({"seed": -1}, "seed=-1"),
        ({"num_frames": 6}, "num_frames=6 .* use 5"),
        ({"num_frames": 1}, "num_frames=1 .* use 5"),
        ({"tasks": ["chess"]}, "'chess' is unknown"),
        ({"tasks": []}, "at least one task"),
        ({"tasks": ["maze", "maze"]}, "each once"),
        ({"difficulties": {}}, "difficulties lack maze"),
        ({"height": 8}, "4x5 board in a 8x96"),
        ({"height": 95}, "odd side"),
        ({"difficulties": full_size_difficulties()}, "train/.*/00000 cannot be made: a plan of"),
    ],
)
def test_arguments_that_cannot_be_met_get_one_line(changes, message, tmp_path):
    with pytest.raises(UserError, match=message) as error:
        small(tmp_path / "data", **changes)
    assert "\n" not in str(error.value)


def test_a_worker_reports_in_one_line_too(tmp_path):
    with pytest.raises(UserError, match="cannot be made: a plan of"):
        small(tmp_path / "data", num_train=20, difficulties=full_size_difficulties(), workers=2)


def test_folders_that_cannot_be_used_get_one_line(tmp_path):
    with pytest.raises(UserError, match="parent exists"):
        small(tmp_path / "missing" / "data")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file"):
        small(tmp_path / "file")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "todo.txt").touch()
    with pytest.raises(UserError, match="no manifest"):
        small(tmp_path / "notes")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="broken"):
        small(tmp_path / "broken")


def test_the_manifest_holds_the_arguments(made):
    manifest = json.loads((made / "manifest.json").read_text())
    assert manifest["seed"] == 7
    assert manifest["num_frames"] == 5
    assert manifest["frames_per_move"] == 1
    assert manifest["difficulties"]["maze"] == dataclasses.asdict(ROOMS["maze"].Difficulty())


@pytest.mark.parametrize("num_frames", [5, 9, 17, 33, 49, 81, 121])
def test_full_size_difficulties_fit_their_video(num_frames):
    moves = (num_frames - 1) // frames_per_move(num_frames)
    assert frames_per_move(81) == 4
    for task, difficulty in full_size_difficulties(num_frames).items():
        for index in range(5):
            puzzle = puzzles.generate(task, difficulty, 0, "train", index)
            assert 2 <= len(ROOMS[task].states(puzzle, puzzle.solution)) - 1 <= moves


@pytest.mark.parametrize("task", ROOMS)
def test_full_size_videos_are_solved_after_compression(task, tmp_path):
    recipe = dataset.Recipe(20, 0, 11, 480, 832, 81, 4, (task,), full_size_difficulties())
    (tmp_path / "train" / task).mkdir(parents=True)
    for index in range(20):
        instance = Instance("train", task, index)
        make(tmp_path, recipe, instance)
        puzzle = puzzles.load(tmp_path / f"{instance.stem}.json")
        video = read_mp4(tmp_path / f"{instance.stem}.mp4")
        assert video.shape == (81, 480, 832, 3)
        assert puzzles.verify(puzzle, video).solved
