"""`vrlvr eval videos`: any system's folder of videos becomes rows; what is missing or unreadable is counted, and scores 0."""

import json
import os
import shutil
import zipfile
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from vrlvr import dataset, puzzles
from vrlvr.cli import main
from vrlvr.errors import UserError
from vrlvr.evaluation.benchmark import read_items
from vrlvr.evaluation.tables import read_results
from vrlvr.evaluation.video_names import find_videos
from vrlvr.evaluation.videos import judge_folder
from vrlvr.puzzles import ROOMS
from vrlvr.video_io import read_mp4, write_mp4

HEIGHT, WIDTH = 192, 332  # nearly the aspect of 480x832


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "d"
    difficulties = {task: room.Difficulty() for task, room in ROOMS.items()}
    dataset.build(folder, 0, 2, height=HEIGHT, width=WIDTH, num_frames=9, difficulties=difficulties)
    return folder


@pytest.fixture
def videos(data, tmp_path) -> Path:
    """The planner's videos, named by puzzle."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for item in read_items(data):
        shutil.copy(item.first_frame.with_suffix(".mp4"), folder / f"{item.id}.mp4")
    return folder


def remade(source: Path, target: Path, way: str, height: int, width: int, fps: int, codec: str, crf: int) -> None:
    """A video as another system might have made it: another size by way, another frame rate at equal length, compressed."""
    video = read_mp4(source)
    with av.open(str(target), "w") as container:
        stream = container.add_stream(
            codec, rate=fps, options={"crf": str(crf)} if codec == "libx264" else {"qscale": str(crf)}
        )
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for i in range(len(video) * fps // 16):
            picture = Image.fromarray(video[i * 16 // fps])
            if way == "stretched":
                frame = picture.resize((width, height), Image.Resampling.BICUBIC)
            else:
                scale = (max if way == "cropped" else min)(height / HEIGHT, width / WIDTH)
                picture = picture.resize((round(WIDTH * scale), round(HEIGHT * scale)), Image.Resampling.BICUBIC)
                frame = Image.new("RGB", (width, height))
                frame.paste(picture, ((width - picture.width) // 2, (height - picture.height) // 2))
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode(None))


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "outcomes.jsonl").read_text().splitlines()]


def test_the_planners_videos_score_everything(data, videos, tmp_path, capsys):
    command = ["eval", "videos", str(videos), "--system", "Planner", "--data", str(data)]
    assert main([*command, "--out", str(tmp_path / "a")]) == 0
    rows = read_results(tmp_path / "a" / "results.json")
    assert [row["task"] for row in rows] == list(ROOMS)
    for row in rows:
        assert [row[key] for key in ("precision", "recall", "f1", "success_rate")] == [100] * 4
        assert (row["num_puzzles"], row["num_samples"], row["num_missing"], row["num_undecodable"]) == (2, 2, 0, 0)
        assert row["success_rate_ci95"][0] < 50
    printed = capsys.readouterr().out
    assert "Planner" in printed
    assert "Sora 2" in printed
    assert "6 judged, 0 missing, 0 undecodable" in printed
    page = (tmp_path / "a" / "results.md").read_text()
    assert "| Planner | measured |" in page
    assert "| Sora 2 | published |" in page
    assert main([*command, "--out", str(tmp_path / "b"), "--workers", "2"]) == 0
    for name in ("results.json", "outcomes.jsonl", "results.md"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_workers_keep_the_order(data, videos):
    outcomes = judge_folder(videos, read_items(data, ["sokoban", "maze"]), workers=2)
    assert [outcome.item.id for outcome in outcomes] == [
        f"{task}-0000{i}" for task in ("sokoban", "maze") for i in (0, 1)
    ]


def test_a_data_sets_own_folder_is_one_of_videos(data):
    outcomes = judge_folder(data / "test", read_items(data))
    assert [outcome.verdict.solved for outcome in outcomes] == [True] * 6


@pytest.mark.parametrize(
    ("way", "height", "width", "fps", "codec", "crf", "note"),
    [
        ("stretched", 256, 446, 24, "libx264", 30, "scaled from 256x446"),
        ("stretched", 288, 512, 30, "libx264", 28, "stretched from 288x512"),
        ("letterboxed", 336, 336, 24, "libx264", 24, "letterboxed from 336x336"),
        ("cropped", 272, 360, 24, "mpeg4", 4, "cropped from 272x360"),
    ],
)
def test_other_sizes_and_frame_rates_are_understood(data, tmp_path, way, height, width, fps, codec, crf, note):
    items = read_items(data)[::2]
    for item in items:
        source, target = item.first_frame.with_suffix(".mp4"), tmp_path / f"{item.id}.mp4"
        remade(source, target, way, height, width, fps, codec, crf)
    for outcome in judge_folder(tmp_path, items):
        assert (outcome.status, outcome.note) == ("judged", note)
        assert outcome.verdict.solved, outcome.item.id


def test_the_fit_does_not_depend_on_what_is_solved(data, tmp_path):
    """A video that shows the board in a corner only later is read as its first frame says, and not solved."""
    item = read_items(data, ["maze"])[0]
    video = read_mp4(item.first_frame.with_suffix(".mp4"))
    side = np.zeros((len(video), WIDTH, WIDTH, 3), np.uint8)
    top = (WIDTH - HEIGHT) // 2
    side[0, top : top + HEIGHT] = video[0]
    for i in range(1, len(video)):
        side[i] = np.asarray(Image.fromarray(video[i]).resize((WIDTH, WIDTH)))
    write_mp4(tmp_path / f"{item.id}.mp4", side, 16)
    (outcome,) = judge_folder(tmp_path, [item])
    assert outcome.note == f"letterboxed from {WIDTH}x{WIDTH}"
    assert not outcome.verdict.solved


def test_missing_and_undecodable_videos_count_and_score_nothing(data, videos, tmp_path, capsys):
    (videos / "maze-00000.mp4").unlink()
    (videos / "flowfree-00001.mp4").write_text("no video")
    (videos / "sokoban-00000.mp4").unlink()
    os.mkfifo(videos / "sokoban-00000.mp4")
    out = tmp_path / "out"
    assert main(["eval", "videos", str(videos), "--system", "S", "--data", str(data), "--out", str(out)]) == 0
    rows = {row["task"]: row for row in read_results(out / "results.json")}
    assert [rows[task]["success_rate"] for task in ROOMS] == [50] * 3
    assert [rows[task]["recall"] for task in ROOMS] == [50] * 3
    assert [rows[task]["num_missing"] for task in ROOMS] == [1, 0, 0]
    assert [rows[task]["num_undecodable"] for task in ROOMS] == [0, 1, 1]
    by_id = {line["id"]: line for line in lines(out)}
    assert by_id["maze-00000"]["status"] == "missing"
    assert by_id["flowfree-00001"]["note"] == "flowfree-00001.mp4 is neither MP4 nor WebM"
    assert "no regular file" in by_id["sokoban-00000"]["note"]
    printed = capsys.readouterr().out
    assert "3 judged, 1 missing, 2 undecodable" in printed
    assert "no regular file" in printed.replace("\n", "")


def test_tasks_without_any_video_are_told(data, videos, tmp_path, capsys):
    for path in videos.glob("sokoban-*"):
        path.unlink()
    command = ["eval", "videos", str(videos), "--system", "S", "--data", str(data), "--out", str(tmp_path / "out")]
    assert main(command) == 0
    assert (
        "no video at all of sokoban, which scores 0; --tasks maze,flowfree leaves that out" in capsys.readouterr().out
    )
    assert main([*command, "--tasks", "maze,flowfree"]) == 0
    assert "no video at all" not in capsys.readouterr().out


def test_a_link_out_of_the_folder_is_not_followed(data, videos, tmp_path):
    items = read_items(data)
    outside = tmp_path / "outside.mp4"
    (videos / f"{items[0].id}.mp4").rename(outside)
    (videos / f"{items[0].id}.mp4").symlink_to(outside)
    (videos / "kept").mkdir()
    (videos / f"{items[1].id}.mp4").rename(videos / "kept" / "a.mp4")
    (videos / f"{items[1].id}.mp4").symlink_to("kept/a.mp4")
    outcomes = judge_folder(videos, items[:2])
    assert [outcome.status for outcome in outcomes] == ["undecodable", "judged"]
    assert outcomes[0].note == f"{items[0].id}.mp4 is a link out of its folder; copy the file there"
    shutil.move(videos / "kept" / "a.mp4", tmp_path / "maze")  # and a task's folder that is a link
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "maze").symlink_to(data / "test" / "maze")
    assert [outcome.status for outcome in judge_folder(tasks, items[:1])] == ["undecodable"]


def test_samples_of_a_puzzle_are_clusters_and_missing_ones_count(data, videos, tmp_path):
    items = read_items(data, ["maze"])
    for item in items:
        video = videos / f"{item.id}.mp4"
        shutil.copy(video, videos / f"{item.id}_10.mp4")
        video.rename(videos / f"{item.id}_2.mp4")
    (videos / f"{items[1].id}_10.mp4").write_bytes(b"")
    shutil.copy(videos / f"{items[0].id}_2.mp4", videos / f"{items[0].id}_3.mp4")
    out = tmp_path / "out"
    command = [
        "eval",
        "videos",
        str(videos),
        "--system",
        "S",
        "--data",
        str(data),
        "--out",
        str(out),
        "--tasks",
        "maze",
    ]
    assert main(command) == 0
    (row,) = read_results(out / "results.json")
    assert (row["num_puzzles"], row["num_samples"], row["num_missing"], row["num_undecodable"]) == (2, 6, 1, 1)
    assert row["success_rate"] == pytest.approx(100 * 4 / 6)
    statuses = [(line["id"], line["status"]) for line in lines(out)]
    first, second = (item.id for item in items)
    assert statuses == [*[(first, "judged")] * 3, (second, "judged"), (second, "missing"), (second, "undecodable")]


def test_which_file_answers_which_puzzle(data, tmp_path):
    items = read_items(data, num_puzzles=1)
    (tmp_path / "maze").mkdir()
    (tmp_path / "sokoban-00000.mp4").mkdir()  # told later to be no file
    names = ["maze/00000.MP4", "flowfree-00000.webm", "maze-00001.mp4", "sokoban-00017_3.mp4", "maze-00000.avi"]
    for name in [*names, "readme.txt", ".DS_Store", "maze/.hidden.mp4", "other.mp4"]:
        (tmp_path / name).touch()
    found = find_videos(tmp_path, items)
    assert found.paths == {
        ("maze-00000", ""): "maze/00000.MP4",
        ("flowfree-00000", ""): "flowfree-00000.webm",
        ("sokoban-00000", ""): "sokoban-00000.mp4",
    }
    assert found.samples == [""]
    assert found.unasked == 2
    assert found.others == ["maze-00000.avi", "other.mp4", "readme.txt"]


def test_an_item_may_itself_be_named_like_a_sample(data, videos):
    """As `vrlvr eval model` names the items of its noise seeds."""
    item = read_items(data, ["maze"])[0]
    (videos / f"{item.id}.mp4").rename(videos / f"{item.id}_7.mp4")
    renamed = type(item)(f"{item.id}_7", item.puzzle, item.prompt, item.first_frame)
    (outcome,) = judge_folder(videos, [renamed])
    assert outcome.verdict.solved


@pytest.mark.parametrize("names", [("maze-00000.mp4", "maze/00000.mp4"), ("maze-00000.mp4", "maze-00000.webm")])
def test_two_files_for_a_puzzle_are_an_error(data, tmp_path, names):
    (tmp_path / "maze").mkdir()
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(UserError, match="twice") as error:
        judge_folder(tmp_path, read_items(data))
    assert all(name in str(error.value) for name in names)


def test_samples_and_single_videos_do_not_mix(data, tmp_path):
    for name in ("maze-00000.mp4", "maze-00001_1.mp4"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match="number the samples of all"):
        judge_folder(tmp_path, read_items(data))


def test_unknown_files_are_told_in_one_harmless_line(data, videos, tmp_path, capsys):
    for i in range(9):
        (videos / f"evil\n\x1b[31m{i}.mp4").touch()
    command = ["eval", "videos", str(videos), "--system", "S", "--data", str(data), "--out", str(tmp_path / "out")]
    assert main([*command, "--num_puzzles", "1"]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.isprintable()
    assert "3 videos of puzzles that are not asked for, and 9 other files" in line
    assert line.count("evil") == 5


def test_an_archive_is_a_folder_too(data, videos, tmp_path):
    with zipfile.ZipFile(tmp_path / "videos.zip", "w") as archive:
        for path in sorted(videos.iterdir()):
            archive.write(path, f"system/{path.name}")
        archive.writestr("__MACOSX/system/._x", b"")
    out = tmp_path / "out"
    command = ["--system", "S", "--data", str(data), "--out", str(out)]
    assert main(["eval", "videos", str(tmp_path / "videos.zip"), *command]) == 0
    assert [row["success_rate"] for row in read_results(out / "results.json")] == [100] * 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"videos": "nowhere"}, "neither a folder nor an archive"),
        ({"videos": "."}, "holds no video of the 6 puzzles"),
        ({"--data": "nowhere"}, "no folder test/"),
        ({"--tasks": "chess"}, "task 'chess' is unknown"),
        ({"--num_puzzles": "3"}, "holds 2 puzzles"),
        ({"videos": "some", "--workers": "0"}, "workers=0 must be at least 1"),
        ({"videos": "some", "--system": " "}, "system is empty"),
    ],
)
def test_bad_arguments_get_one_line(data, tmp_path, monkeypatch, capsys, change, message):
    monkeypatch.chdir(tmp_path)
    Path("some").mkdir()
    Path("some", "maze-00000.mp4").touch()
    options = {"--system": "S", "--data": str(data), "--out": "out"} | change
    folder = options.pop("videos", ".")
    assert main(["eval", "videos", folder, *[word for pair in options.items() for word in pair]]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not Path("out").exists()


def test_an_output_that_cannot_be_is_told_before_anything_is_judged(data, videos, tmp_path, capsys):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "out"):
        assert main(["eval", "videos", str(videos), "--system", "S", "--data", str(data), "--out", str(out)]) == 2
        told = capsys.readouterr()
        assert f"{out} cannot be written" in told.err
        assert told.out == ""  # not even a bar of what is being judged


def test_a_data_set_without_its_first_frames_is_an_error(data, videos, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(data, broken)
    items = read_items(broken)
    for item in items:
        item.first_frame.write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(UserError, match="make the data set anew"):
        judge_folder(videos, items)


def test_verify_reads_with_the_same_guard(data, videos, capsys):
    item = read_items(data, ["maze"])[0]
    puzzle = str(item.first_frame.with_suffix(".json"))
    assert main(["verify", str(videos / f"{item.id}.mp4"), "--puzzle", puzzle]) == 0
    (videos / "a.mp4").write_text("#EXTM3U\n/etc/hostname\n")
    assert main(["verify", str(videos / "a.mp4"), "--puzzle", puzzle]) == 2
    assert "neither MP4 nor WebM" in capsys.readouterr().err


def test_verify_fits_a_scaled_video_as_the_table_does(data, videos, tmp_path, capsys):
    """By the first frame beside the puzzle; without one, a board is taken to be drawn for the video's own size."""
    item = read_items(data, ["maze"])[0]
    remade(videos / f"{item.id}.mp4", tmp_path / "v.mp4", "letterboxed", 400, 400, 16, "libx264", 18)
    puzzle = item.first_frame.with_suffix(".json")
    assert main(["verify", str(tmp_path / "v.mp4"), "--puzzle", str(puzzle)]) == 0
    assert "(letterboxed from 400x400)" in capsys.readouterr().out
    shutil.copy(puzzle, tmp_path / "alone.json")
    assert main(["verify", str(tmp_path / "v.mp4"), "--puzzle", str(tmp_path / "alone.json")]) == 1


def test_tables_never_take_a_first_frame_for_a_solution(data, tmp_path, capsys):
    """A frozen first frame is judged, and earns nothing."""
    items = read_items(data)
    for item in items:
        first = puzzles.render_first_frame(item.puzzle, HEIGHT, WIDTH)
        write_mp4(tmp_path / f"{item.id}.mp4", first[None], 16, holds=[9])
    out = str(tmp_path / "out")
    assert main(["eval", "videos", str(tmp_path), "--system", "frozen", "--data", str(data), "--out", out]) == 0
    assert f"judged, and not solved: not_solved {len(items)}\n" in capsys.readouterr().out
    for outcome in judge_folder(tmp_path, items):
        assert outcome.status == "judged"
        assert not outcome.verdict.solved
        assert outcome.verdict.recall == 0
