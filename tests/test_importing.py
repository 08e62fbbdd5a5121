"""`vrlvr import`: files of levels become a data set that the evaluation reads; bad ones are refused in one line."""

import json
from pathlib import Path

import pytest

from vrlvr import puzzles
from vrlvr.cli import main
from vrlvr.dataset_files import read_metadata, read_size
from vrlvr.errors import UserError
from vrlvr.evaluation.benchmark import read_items
from vrlvr.importing import import_puzzles
from vrlvr.video_io import read_mp4

ASSETS = Path(__file__).parent / "assets" / "foreign"
SMALL = {"height": 120, "width": 240, "num_frames": 49}
CORRIDOR = "#######\n#S   E#\n#######\n"
# Two levels solved in 1 and 2 moves, one that cannot be solved, one of 6 moves.
SOKOBAN = "; 0\n#####\n#@$.#\n#####\n; 1\n######\n#@$ .#\n######\n; 2\n#####\n#$@.#\n#####\n"
SOKOBAN += "; 3\n##########\n#@$     .#\n##########\n"


@pytest.mark.parametrize(
    ("format", "file", "task", "count"),
    [
        ("boxoban", "gym_sokoban.txt", "sokoban", 12),
        ("maze", "mazelib.txt", "maze", 21),
        ("numberlink", "numberlink", "flowfree", 11),
    ],
)
def test_an_import_is_a_data_set_whose_videos_are_solved(tmp_path, capsys, format, file, task, count):
    out = tmp_path / "data"
    assert main(["import", str(ASSETS / file), "--format", format, "--out", str(out), "--skip", *options()]) == 0
    items = read_items(out)
    assert [item.id for item in items] == [f"{task}-{index:05d}" for index in range(count)]
    assert capsys.readouterr().out.count("left out") == (9 if format == "numberlink" else 0)
    assert read_size(out) == (49, 120, 240)
    rows = read_metadata(out)
    assert [row.split for row in rows] == ["test"] * count
    for item, row in list(zip(items, rows, strict=True))[::4]:
        assert item.prompt == row.prompt
        assert item.first_frame.is_file()
        assert puzzles.verify(item.puzzle, read_mp4(out / row.video)).solved
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    assert len(manifest["sources"]) == count
    assert manifest["sources"][0] == {"boxoban": "gym_sokoban.txt:2", "maze": "mazelib.txt:1"}.get(
        format, "5x5_ha_4c_016.txt:1"
    )


def options() -> list[str]:
    return [word for name, value in SMALL.items() for word in (f"--{name}", str(value))]


def write(folder: Path, text: str, name: str = "levels.txt") -> Path:
    (folder / name).write_bytes(text.encode())
    return folder / name


def test_moves_last_as_many_frames_as_the_longest_plan_allows(tmp_path):
    path = write(tmp_path, CORRIDOR)
    for num_frames, per_move in ((5, 1), (29, 1), (33, 4), (81, 4)):
        out = tmp_path / str(num_frames)
        import_puzzles([path], out, "maze", 24, 56, num_frames)
        assert json.loads((out / "manifest.json").read_text())["frames_per_move"] == per_move


def test_a_long_plan_shortens_its_moves(tmp_path):
    path = write(tmp_path, "S" + 20 * "." + "G\n" + 22 * "#")
    import_puzzles([path], tmp_path / "out", "maze", 24, 88, 61)
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["frames_per_move"] == 2


def test_flow_paths_grow_as_fast_as_the_frames_ask(tmp_path):
    level = ASSETS / "numberlink" / "6x6_ha_5c_022.txt"  # its longest path has 19 cells
    for num_frames, cells in ((81, 1), (33, 3), (9, 3), (5, 5)):
        import_puzzles([level], tmp_path / str(num_frames), "numberlink", 60, 60, num_frames)
        (item,) = read_items(tmp_path / str(num_frames))
        assert item.puzzle.cells_per_move == cells


def test_levels_that_cannot_be_used_are_named_and_left_out_on_demand(tmp_path, capsys):
    path = write(tmp_path, SOKOBAN)
    with pytest.raises(UserError, match=r"levels.txt:10: the level has no solution.+--skip") as error:
        import_puzzles([path], tmp_path / "out", "boxoban", 48, 80, 5)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()
    import_puzzles([path], tmp_path / "out", "boxoban", 48, 80, 5, skip=True)
    told = capsys.readouterr().out
    assert "left out levels.txt:10: the level has no solution" in told
    assert "left out levels.txt:14: its plan of 6 moves needs --num_frames 9, not 5" in told
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["sources"] == ["levels.txt:2", "levels.txt:6"]
    assert [line.split(": ")[0] for line in manifest["left_out"]] == ["levels.txt:10", "levels.txt:14"]


def test_a_folder_with_anything_in_it_is_left_alone(tmp_path):
    path = write(tmp_path, CORRIDOR)
    for taken in (tmp_path, path):
        with pytest.raises(UserError, match="exists and is not empty"):
            import_puzzles([path], taken, "maze", 24, 56, 5)
    (tmp_path / "empty").mkdir()
    import_puzzles([path], tmp_path / "empty", "maze", 24, 56, 5)
    assert len(read_items(tmp_path / "empty")) == 1


@pytest.mark.parametrize(
    ("text", "changes", "told"),
    [
        (CORRIDOR, {"num_frames": 6}, "num_frames=6 must be 1 + 4k"),
        (CORRIDOR, {"height": 23}, "23x56 has an odd side"),
        (CORRIDOR, {"width": 24}, "levels.txt:1: a 3x7 board in a 24x24 frame leaves 3 pixels a cell"),
        (CORRIDOR, {"format": "png"}, "format='png' is unknown; use one of boxoban, numberlink, maze"),
        (CORRIDOR, {"format": "boxoban"}, "levels.txt:1: row 2 has the character 'E'"),
        ("", {}, "levels.txt holds no board in the format maze"),
        ("Alice was beginning\n", {}, "levels.txt:1: the board has 1 rows"),
        (CORRIDOR.replace(" ", "\x00"), {}, r"row 2 has the character '\x00'"),
        (CORRIDOR + "\n" + CORRIDOR.replace("E", " "), {}, "levels.txt:5: the maze has 0 cells marked as goal"),
        (f"{'#' * 300}\n" * 3, {}, "a board of 3x300 exceeds 255 cells a side"),
        ("#" * 2**20 + "\n#" * 2**20, {}, "a board of 1048577x1048576 exceeds 255"),
        ("#####\n#@$.#\n#####\n" + "l" * 9999, {"format": "boxoban"}, "move 1 of 'LLLL"),
        ("#\n\n" * 10_001, {}, "more than 10000 levels"),
        ("#" * (4 * 2**20 + 1), {}, "larger than 4194304 bytes"),
    ],
    ids=range(14),
)
def test_bad_files_and_options_are_told_in_one_line(tmp_path, text, changes, told):
    path = write(tmp_path, text)
    arguments = {"format": "maze", "height": 24, "width": 56, "num_frames": 5} | changes
    with pytest.raises(UserError) as error:
        import_puzzles([path], tmp_path / "out", **arguments)
    assert told in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 420
    assert not (tmp_path / "out").exists()


def test_files_that_are_no_text_or_not_there(tmp_path):
    (tmp_path / "levels.txt").write_bytes(b"\xff\xfe#")
    (tmp_path / "folder").mkdir()
    for name, told in (
        ("levels.txt", "cannot be read as text"),
        ("none.txt", "cannot be read"),
        ("folder", "holds no file"),
    ):
        with pytest.raises(UserError, match=told):
            import_puzzles([tmp_path / name], tmp_path / "out", "maze")


def test_hostile_file_names_stay_in_one_line(tmp_path, capsys):
    folder = tmp_path / "levels"
    folder.mkdir()
    write(folder, CORRIDOR.replace("E", " "), "a\nb\x1b[2J.txt")
    write(folder, CORRIDOR, "b.txt")
    (folder / "c.txt").mkdir()
    import_puzzles([folder], tmp_path / "out", "maze", 24, 56, 5, skip=True)
    assert r"left out 'a\nb\x1b[2J.txt':1: the maze has 0 cells" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["sources"] == ["b.txt:1"]


def test_a_solution_beside_several_boards_is_refused(tmp_path):
    path = write(tmp_path, "AB..\n....\nA..B\n\nAB..\n....\nA..B\n")
    write(tmp_path, "[]", "levels.sol.json")
    with pytest.raises(UserError, match=r"holds 2 boards, so .+levels.sol.json fits none"):
        import_puzzles([path], tmp_path / "out", "numberlink")


def test_a_board_that_one_move_would_fill_is_refused(tmp_path):
    path = write(tmp_path, "ABC\n...\nABC\n")
    with pytest.raises(UserError, match="every path is drawn in a single move"):
        import_puzzles([path], tmp_path / "out", "numberlink")
