"""The puzzles that every system is asked, and how their outcomes become rows and files."""

import json
from pathlib import Path

import pytest

from vrlvr import dataset, puzzles
from vrlvr.errors import UserError
from vrlvr.evaluation.benchmark import Item, Outcome, failed, read_items, rows_of, write_outcomes
from vrlvr.evaluation.tables import read_results
from vrlvr.puzzles import ROOMS
from vrlvr.puzzles.verdict import Verdict, reward
from vrlvr.verifier_version import verifier_version


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "d"
    difficulties = {task: room.Difficulty() for task, room in ROOMS.items()}
    dataset.build(folder, 1, 3, height=48, width=64, num_frames=5, difficulties=difficulties)
    return folder


def judged(item: Item, solved: bool, precision: float = 0.5, recall: float = 0.25) -> Outcome:
    components = {name: float(solved) for name in puzzles.room_of(item.puzzle).COMPONENTS}
    return Outcome(item, "judged", Verdict(solved, components, None if solved else "teleport", 3, precision, recall))


def test_items_are_the_test_puzzles_by_task_and_number(data):
    items = read_items(data)
    assert [item.id for item in items] == [f"{task}-0000{i}" for task in ROOMS for i in range(3)]
    for item in items:
        path = data / "test" / item.puzzle.task / f"{item.id.rpartition('-')[2]}.json"
        assert item.puzzle == puzzles.load(path)
        assert item.first_frame == path.with_suffix(".png")
        assert item.first_frame.exists()
        assert item.prompt == ROOMS[item.puzzle.task].prompt(item.puzzle)


def test_fewer_items_are_the_first_ones(data):
    items = read_items(data, ["sokoban", "maze"], 2)
    assert [item.id for item in items] == ["sokoban-00000", "sokoban-00001", "maze-00000", "maze-00001"]


def test_requests_that_cannot_be_met_get_one_line(data, tmp_path):
    for arguments, message in [
        ((data, ["chess"]), "task 'chess' is unknown"),
        ((data, None, 4), "holds 3 puzzles, 4 are asked for"),
        ((tmp_path,), "no folder test/ with puzzles"),
        ((tmp_path, ["maze"]), "holds 0 puzzles"),
    ]:
        with pytest.raises(UserError, match=message) as error:
            read_items(*arguments)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("num_puzzles", [0, -1])
def test_a_number_of_puzzles_is_positive(data, num_puzzles):
    with pytest.raises(UserError, match=f"num_puzzles={num_puzzles}"):
        read_items(data, None, num_puzzles)


def test_a_task_counts_once(data):
    with pytest.raises(UserError, match="each task once"):
        read_items(data, ["maze", "maze"])


def test_a_damaged_puzzle_is_named(tmp_path):
    (tmp_path / "test" / "maze").mkdir(parents=True)
    (tmp_path / "test" / "maze" / "00000.json").write_text('{"task": "maze"}')
    with pytest.raises(UserError, match=r"00000\.json is no puzzle file"):
        read_items(tmp_path)


def test_a_puzzle_among_those_of_another_task_is_named(data, tmp_path):
    (tmp_path / "test" / "maze").mkdir(parents=True)
    text = (data / "test" / "sokoban" / "00000.json").read_text()
    (tmp_path / "test" / "maze" / "00000.json").write_text(text)
    with pytest.raises(UserError, match="puzzle of sokoban among those of maze"):
        read_items(tmp_path)


@pytest.mark.parametrize("status", ["missing", "undecodable"])
def test_a_failure_earns_nothing(data, status):
    for item in read_items(data, num_puzzles=1):
        outcome = failed(item, status)
        assert (outcome.item, outcome.status) == (item, status)
        assert (outcome.verdict.solved, outcome.verdict.precision, outcome.verdict.recall) == (False, 0, 0)
        assert set(outcome.verdict.components) == set(puzzles.room_of(item.puzzle).COMPONENTS)
        assert reward(outcome.verdict, puzzles.DENSE_REWARD[item.puzzle.task]) <= 0


def test_rows_count_every_outcome(data):
    first, second, third = read_items(data, ["maze"])
    (sokoban,) = read_items(data, ["sokoban"], 1)
    outcomes = [
        judged(first, True, 1, 1),
        judged(sokoban, True, 1, 1),
        failed(second, "missing"),
        failed(third, "undecodable"),
    ]
    maze, other = rows_of("S", outcomes)
    assert (maze["task"], other["task"]) == ("maze", "sokoban")
    assert (maze["num_puzzles"], maze["num_samples"], maze["num_missing"], maze["num_undecodable"]) == (3, 3, 1, 1)
    for name in ("precision", "recall", "f1", "success_rate"):
        assert maze[name] == pytest.approx(100 / 3)
        low, high = maze[f"{name}_ci95"]
        assert 0 < low < 100 / 3 < high < 100
    assert (other["num_puzzles"], other["num_missing"], other["success_rate"]) == (1, 0, 100)
    assert (maze["system"], maze["source"], maze["verifier"]) == ("S", "measured", verifier_version())


def test_samples_of_a_puzzle_are_a_cluster(data):
    items = read_items(data, ["maze"])
    agreeing = [judged(item, item is items[0]) for item in items for _ in range(8)]
    (row,) = rows_of("S", agreeing)
    (single,) = rows_of("S", agreeing[::8])
    assert (row["num_puzzles"], row["num_samples"]) == (3, 24)
    assert row["success_rate_ci95"] == pytest.approx(
        single["success_rate_ci95"]
    )  # eight equal answers tell no more than one
    interleaved = [judged(item, item is items[0]) for _ in range(8) for item in items]
    assert rows_of("S", interleaved) == [row]


def test_outcomes_are_written_a_line_each(data, tmp_path):
    items = read_items(data, ["maze"], 2)
    outcome = Outcome(items[0], "judged", judged(items[0], False).verdict, "scaled from 1x2")
    rows = write_outcomes(tmp_path / "new" / "out", "S", [outcome, failed(items[1], "missing")])
    assert read_results(tmp_path / "new" / "out" / "results.json") == rows
    first, second = map(json.loads, (tmp_path / "new" / "out" / "outcomes.jsonl").read_text().splitlines())
    assert first == {
        "id": "maze-00000",
        "task": "maze",
        "status": "judged",
        "solved": False,
        "solved_gliding": False,
        "broken_rule": "teleport",
        "frame": 3,
        "precision": 0.5,
        "recall": 0.25,
        "components": {"solved": 0, "progress": 0, "error": 0},
        "note": "scaled from 1x2",
    }
    assert (second["id"], second["status"], second["solved"], second["note"]) == ("maze-00001", "missing", False, "")


def test_a_folder_that_cannot_be_made_gets_one_line(data, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        write_outcomes(tmp_path / "file" / "out", "S", [failed(read_items(data)[0], "missing")])
