"""Mazes asked of language models: what is sent, how answers are read, judged and kept."""

import base64
import io
import json
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_servers import DROP, FakeChat, Fault
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vrlvr import cli, dataset, puzzles
from vrlvr.evaluation import llm
from vrlvr.evaluation.benchmark import Item, read_items
from vrlvr.evaluation.llm_answers import MAX_MOVES, lenient, strict
from vrlvr.evaluation.patience import Patience, Stopped
from vrlvr.evaluation.tables import read_results
from vrlvr.puzzles import ROOMS, maze

MAZE = maze.Puzzle.from_json(
    {"task": "maze", "board": ["S..#", "##.#", "#..#", "#.G#"], "solution": "RRDDD"},
)
LOOP = maze.Puzzle.from_json({"task": "maze", "board": ["...", "S#G", "..."], "solution": "URRD"})


class QuickPatience(Patience):
    """Never waits."""

    def wait(self, seconds: float) -> None:
        if self.is_stopped():
            raise Stopped


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("asked") / "data"
    difficulties = {task: ROOMS[task].Difficulty() for task in ("maze", "sokoban")}
    dataset.build(out, 0, 4, 5, 96, 160, 9, tasks=("maze", "sokoban"), difficulties=difficulties, workers=1)
    return out


@pytest.fixture(scope="module")
def items(data) -> list[Item]:
    return read_items(data, ["maze"])


@pytest.fixture(autouse=True)
def quick(monkeypatch) -> None:
    monkeypatch.setattr(llm, "Patience", QuickPatience)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("GEMINI_API_KEY", raising=False)


def solution_of(items: list[Item]):
    """A model that solves what it reads in the prompt's text, or sees in its image, and answers as it is told to."""
    boards = {"\n".join(item.puzzle.to_json()["board"]): item.puzzle for item in items}
    pictures = {item.first_frame.read_bytes(): item.puzzle for item in items}

    def solve(asked: Any) -> str:
        content = asked["messages"][0]["content"]
        if isinstance(content, str):
            puzzle = next(puzzle for board, puzzle in boards.items() if f"\n\n{board}\n\n" in content)
        else:
            url = content[1]["image_url"]["url"]
            puzzle = pictures[base64.b64decode(url.removeprefix("data:image/png;base64,"), validate=True)]
        return f"Let me think: U, then D.\n\nMOVES: {' '.join(puzzle.solution)}\n"

    return solve


@pytest.fixture
def chat(items):
    with FakeChat(solution_of(items)) as service:
        yield service


def run(service: Any, data: Path, out: Path, *options: str) -> int:
    where = ["--data", str(data), "--out", str(out), "--base-url", f"{service.address}/v1"]
    return cli.main(["eval", "llm", "--model", "some-model", *where, *options])


def score(data: Path, out: Path, answers: list[Any], *options: str) -> int:
    path = out.parent / "given.jsonl"
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in answers))
    return cli.main(["eval", "llm", "--answers", str(path), "--data", str(data), "--out", str(out), *options])


@pytest.mark.parametrize("shown", ["text", "image"])
def test_a_model_that_knows_the_way_scores_everything(chat, data, tmp_path, shown):
    assert run(chat, data, tmp_path / "out", "--input", shown) == 0
    rows = read_results(tmp_path / "out" / "results.json")
    name = f"some-model ({shown})"
    assert [(row["system"], row["task"], row["success_rate"], row["f1"]) for row in rows] == [
        (name, "maze", 100, 100),
        (f"{name}, lenient", "maze", 100, 100),
    ]
    assert len(chat.requests) == 4
    assert all(set(asked) == {"model", "messages"} for asked in chat.requests)  # no option that was not asked for
    assert len((tmp_path / "out" / "outcomes.jsonl").read_text().splitlines()) == 4


def test_options_are_sent_as_given(chat, data, tmp_path):
    options = ("--max_completion_tokens=9", "--max-tokens=8", "--temperature=0.5", "--reasoning-effort=high")
    assert run(chat, data, tmp_path / "out", "--num_puzzles=1", *options) == 0
    (asked,) = chat.requests
    assert (asked["max_completion_tokens"], asked["max_tokens"], asked["temperature"]) == (9, 8, 0.5)
    assert asked["reasoning_effort"] == "high"


def test_answered_puzzles_are_never_asked_again(chat, data, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(chat, data, out, "--num_puzzles=2", "--system=Some LLM") == 0
    with (out / "answers.jsonl").open("ab") as file:
        file.write(b'{"id": "maze-00002", "answer": "MOV')  # as a crash leaves it
    assert run(chat, data, out, "--system=Some LLM") == 0
    assert chat.counts["answer"] == 4
    assert run(chat, data, out, "--system=Some LLM") == 0
    assert chat.counts["answer"] == 4
    assert read_results(out / "results.json")[0]["system"] == "Some LLM"
    assert run(chat, data, out, "--temperature=1") == 2
    assert "holds an answer of maze-00000 to another request" in capsys.readouterr().err
    assert chat.counts["answer"] == 4


def test_busy_and_failing_services_are_asked_again(chat, data, tmp_path, capsys):
    busy = Fault(503, {"error": {"code": "overloaded"}})
    chat.faults["answer"] = [Fault(429, b"", {"Retry-After": "3"}), Fault(500), Fault(502), busy]
    assert run(chat, data, tmp_path / "out", "--parallel=1") == 0
    assert chat.counts["answer"] == 8
    assert read_results(tmp_path / "out" / "results.json")[0]["success_rate"] == 100
    assert "answered 503 overloaded" in capsys.readouterr().out  # why it took so long


@pytest.mark.parametrize("fault", [DROP, Fault(504), Fault(200, b"<html>"), Fault(200, {"choices": []})])
def test_a_lost_answer_is_not_paid_for_twice_by_itself(chat, data, tmp_path, capsys, fault):
    chat.faults["answer"] = [fault]
    assert run(chat, data, tmp_path / "out", "--parallel=1") == 2
    assert chat.counts["answer"] == 4
    assert "1 of 4 are not answered" in capsys.readouterr().err
    assert run(chat, data, tmp_path / "out") == 0
    assert chat.counts["answer"] == 5


def test_a_service_that_stays_busy_leaves_a_state_to_go_on_from(chat, data, tmp_path, capsys):
    chat.faults["answer"] = [Fault(503)] * 7
    assert run(chat, data, tmp_path / "out", "--parallel=1") == 2
    assert "1 of 4 are not answered" in capsys.readouterr().err
    assert run(chat, data, tmp_path / "out") == 0
    assert chat.counts["answer"] == 7 + 3 + 1


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_leaves_a_state_to_go_on_from(chat, data, tmp_path, capsys):
    main = threading.main_thread().ident
    chat.faults["answer"] = [lambda: signal.pthread_kill(main, signal.SIGINT)]
    assert run(chat, data, tmp_path / "out", "--parallel=1") == 2
    assert re.search(r"^vrlvr: interrupted: [34] of 4 are not answered; repeat", capsys.readouterr().err)
    assert run(chat, data, tmp_path / "out") == 0
    assert chat.counts["answer"] == 4


def test_the_key_is_sent_where_it_belongs_and_never_shown(chat, data, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MY_KEY", FakeChat.KEY)
    chat.faults["answer"] = [Fault(400, {"error": {"message": f"{FakeChat.KEY} is not allowed", "type": "x"}})]
    assert run(chat, data, tmp_path / "out", "--key-variable=MY_KEY", "--parallel=1") == 2
    captured = capsys.readouterr()
    assert "answered 400 x [key] is not allowed" in captured.err
    solve = chat.solve
    chat.solve = lambda asked: f"I was sent {FakeChat.KEY}.\n{solve(asked)}"
    assert run(chat, data, tmp_path / "out", "--key-variable=MY_KEY") == 0
    assert all(headers["Authorization"] == f"Bearer {FakeChat.KEY}" for _, _, headers in chat.seen)
    files = [path.read_text() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    captured = capsys.readouterr()
    assert FakeChat.KEY not in "".join([captured.out, captured.err, *files])


@pytest.mark.parametrize(
    ("base_url", "words"),
    [
        ("https://api.openai.com/v1", "OPENAI_API_KEY is not set"),
        ("https://generativelanguage.googleapis.com/v1beta/openai", "GEMINI_API_KEY is not set"),
        ("https://example.com/v1", "may be sent which key? name its environment variable by --key_variable"),
        ("http://example.com/v1", "--key_variable"),
        ("https://[bad", "--key_variable"),
    ],
)
def test_no_key_goes_to_a_service_that_it_is_not_for(data, tmp_path, capsys, base_url, words):
    options = ["--model", "m", "--data", str(data), "--out", str(tmp_path / "out"), "--base_url", base_url]
    assert cli.main(["eval", "llm", *options]) == 2
    assert words in capsys.readouterr().err


def test_a_refusal_for_content_is_an_answer_without_moves(chat, data, tmp_path):
    chat.faults["answer"] = [Fault(400, {"error": {"code": "content_filter", "message": "no"}})]
    assert run(chat, data, tmp_path / "out", "--parallel=1") == 0
    row, _ = read_results(tmp_path / "out" / "results.json")
    assert (row["success_rate"], row["num_undecodable"], row["num_missing"]) == (75, 1, 0)


def test_answers_that_were_cut_off_are_told(chat, data, tmp_path, capsys):
    choice = {"message": {"role": "assistant", "content": None}, "finish_reason": "length"}
    chat.faults["answer"] = [Fault(200, {"choices": [choice]})]
    assert run(chat, data, tmp_path / "out", "--parallel=1") == 0
    assert "1 answers were cut off at the limit of tokens" in capsys.readouterr().out
    outcome = json.loads((tmp_path / "out" / "outcomes.jsonl").read_text().splitlines()[0])
    assert (outcome["status"], outcome["note"]) == ("undecodable", "no moves can be read; the answer ended by: length")


def test_other_tasks_are_refused(chat, data, tmp_path, capsys):
    assert run(chat, data, tmp_path / "out", "--tasks=maze,sokoban") == 2
    assert "tasks=maze,sokoban cannot be asked of a language model, only maze can" in capsys.readouterr().err


def test_answers_in_a_file_are_scored_by_both_readings(data, items, tmp_path):
    one, two, three, _ = (item.puzzle.solution for item in items)
    answers = [
        {"id": "maze-00000", "answer": f"MOVES: {' '.join(one)}"},
        {"id": "maze-00001", "answer": f"**Answer:** {' → '.join(two)}", "extra": 1},
        {"id": "maze-00002", "answer": f"MOVES: {' '.join(three)}\nDone!"},
    ]
    assert score(data, tmp_path / "out", answers) == 0
    by_format, by_sense = read_results(tmp_path / "out" / "results.json")
    assert (by_format["system"], by_sense["system"]) == ("given", "given, lenient")
    assert (by_format["success_rate"], by_format["num_undecodable"], by_format["num_missing"]) == (25, 2, 1)
    assert (by_sense["success_rate"], by_sense["num_undecodable"], by_sense["num_missing"]) == (75, 0, 1)
    assert by_sense["num_puzzles"] == 4
    assert score(data, tmp_path / "out", answers, "--num_puzzles=1") == 0  # the others are not asked for
    assert read_results(tmp_path / "out" / "results.json")[0]["success_rate"] == 100


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["{"], "line 1 is no JSON"),
        (["[" * 100_000], "line 1 is no JSON"),
        ([{"id": "maze-00000"}], 'line 1 lacks a text "id" or "answer"'),
        ([{"id": "maze-00000", "answer": 3}], 'lacks a text "id" or "answer"'),
        ([["maze-00000", "U"]], 'lacks a text "id" or "answer"'),
        ([{"id": "maze-00009", "answer": ""}], "line 1: id='maze-00009' is no maze of the test split"),
        ([{"id": "sokoban-00000", "answer": ""}], "is no maze of the test split"),
        (
            [{"id": "maze-00000", "answer": ""}, "", {"id": "maze-00000", "answer": "U"}],
            "line 3: id=maze-00000 was answered",
        ),
        ([], "holds no answer to any of the 4 mazes"),
        ([{"id": "maze-00000", "answer": "U" * 1_000_001}], "more than 1000000 characters"),
    ],
)
def test_a_hostile_file_of_answers_is_named(data, tmp_path, capsys, lines, words):
    assert score(data, tmp_path / "out", lines) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_model_or_a_file_is_needed(data, tmp_path, capsys):
    assert cli.main(["eval", "llm", "--data", str(data), "--out", str(tmp_path)]) == 2
    assert "give either --model NAME" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("answer", "moves"),
    [
        ("MOVES: U R R D", "URRD"),
        ("I think.\nMOVES: L\n\n", "L"),
        ("MOVES: U R\nMOVES: D D", "DD"),
        ("MOVES: URRD", None),
        ("MOVES:  U R", None),
        ("MOVES: U, R", None),
        ("moves: U R", None),
        ("**MOVES: U R**", None),
        ("MOVES: U R.", None),
        (" MOVES: U R", None),
        ("MOVES: U R\nThat is all.", None),
        ("MOVES:", None),
        ("", None),
        ("MOVES:" + " U" * (MAX_MOVES + 1), None),
    ],
)
def test_the_strict_reading_takes_the_format_alone(answer, moves):
    assert strict(answer) == moves


@pytest.mark.parametrize(
    ("answer", "moves"),
    [
        ("MOVES: R R D D D", "RRDDD"),
        ("moves: R, R, D, D, D.", "RRDDD"),
        ("**MOVES: R R D D D**\n\nHope this helps, good luck!", "RRDDD"),
        ("The answer is RRDDD", "RRDDD"),
        ('```json\n{"moves": ["R", "R", "D", "D", "D"]}\n```', "RRDDD"),
        ("R -> R -> D -> D -> D", "RRDDD"),
        ("r r d d d", "RRDDD"),
        ("→ → ↓ ↓ ↓", "RRDDD"),
        ("➡️➡️⬇️⬇️⬇️", "RRDDD"),
        ("Right, right, down, down, down", "RRDDD"),
        ("Go right 2 times, then down 3.", "RRDDD"),
        ("Right (2), Down (3)", "RRDDD"),
        ("right x2, down x3", "RRDDD"),
        ("1. Right\n2. Right\n3. Down\n4. Down\n5. Down", "RRDDD"),
        ("1. R 2. R 3. D 4. D 5. D", "RRDDD"),
        ("East, east, south, south, south", "RRDDD"),
        ("(0,0) -> (0,1) -> (0,2) -> (1,2) -> (2,2) -> (3,2)", "RRDDD"),
        ("(0,0) → (0,1) → (0,2) → (1,2) → (2,2) → (3,2)", "RRDDD"),
        ("[[1, 1], [1, 2], [1, 3], [2, 3], [3, 3], [4, 3]]", "RRDDD"),  # (row, column) from 1
        ("(0,0), (1,0), (2,0), (2,1), (2,2), (2,3)", "RRDDD"),  # (x, y): as (row, column) it runs into a wall
        ("(0,0) (0,2) (3,2)", "RRDDD"),  # corners only
        ("Cells: (0,1), (0,2), (1,2), (2,2), (3,2)", "RRDDD"),  # without the start
        ("First I tried D, D, D.\nThen U, U.\nFinal answer: R R D D D\nChecked: U, D are blocked.", "RRDDD"),
        ("We begin top left. Moves:\nR R D D D", "RRDDD"),
        ("Answer: R", "R"),
        ("I cannot see the maze.", None),
        ("It's a dead end, so I'd give up.", None),
        ("The goal is at (3,2).", None),
        ("(5,5), (6,6), (7,7)", None),
        ("", None),
    ],
)
def test_the_lenient_reading_finds_the_last_plausible_moves(answer, moves):
    assert lenient(answer, MAZE) == moves


@given(st.text(max_size=300) | st.lists(st.sampled_from("UDLR→(1,2) right\n3.:answer"), max_size=300).map("".join))
def test_any_text_is_read_as_legal_letters_or_nothing(answer):
    moves = lenient(answer, MAZE)
    assert moves is None or (0 < len(moves) <= MAX_MOVES and set(moves) <= set("UDLR"))
    if (exact := strict(answer)) is not None:
        assert moves == exact
    if moves is not None:
        maze.judge_moves(MAZE, moves)


@pytest.mark.parametrize(
    "piece", ["(1,", "( ", "right ", "U,", "→", "U" * 499 + " ", "answer:", "right (", "(0,0),(0,200),"]
)
def test_long_nonsense_is_read_in_time(piece):
    began = time.process_time()
    lenient(piece * (1_000_000 // len(piece)), MAZE)
    assert time.process_time() - began < 2


@pytest.mark.parametrize(
    ("moves", "solved", "rule", "frame", "precision", "recall"),
    [
        ("RRDDD", True, None, None, 1.0, 1.0),
        ("RRDD", False, "not_solved", 4, 1.0, 0.8),
        ("", False, "not_solved", 0, 0.0, 0.0),
        ("RRDDLDR", True, None, None, 5 / 7, 1.0),
        ("RRDDDU", False, "goal_left", 6, 1.0, 1.0),
        ("RRDDDR", False, "goal_left", 6, 1.0, 1.0),
        ("D", False, "walked_through_wall", 1, 0.0, 0.0),
        ("RDDDDRR", False, "walked_through_wall", 2, 1.0, 0.2),
        ("U", False, "left_board", 1, 0.0, 0.0),
        ("RRRDDDL", False, "walked_through_wall", 3, 1.0, 0.4),
    ],
)
def test_walks_are_judged_up_to_the_first_illegal_move(moves, solved, rule, frame, precision, recall):
    verdict = maze.judge_moves(MAZE, moves)
    assert (verdict.solved, verdict.broken_rule, verdict.frame) == (solved, rule, frame)
    assert (verdict.precision, verdict.recall) == pytest.approx((precision, recall))


def test_another_way_solves_too_and_overlaps_only_where_it_does():
    verdict = maze.judge_moves(LOOP, "DRRU")
    assert verdict.solved
    assert (verdict.precision, verdict.recall) == (0.25, 0.25)


def test_moves_of_other_letters_are_an_error():
    with pytest.raises(ValueError, match="move 'X' is unknown"):
        maze.judge_moves(MAZE, "RX")


@given(st.text("UDLR", max_size=12))
def test_a_walk_is_judged_as_the_video_of_it(moves):
    """The video's verifier, on the walk drawn frame by frame up to its first illegal move, sees the same."""
    verdict = maze.judge_moves(MAZE, moves)
    legal = len(moves) if verdict.broken_rule in (None, "not_solved") else verdict.frame - 1
    video = puzzles.render_states(MAZE, maze.states(MAZE, moves[:legal]), 32, 32)
    seen = puzzles.verify(MAZE, video)
    assert (seen.precision, seen.recall) == (verdict.precision, verdict.recall)
    assert seen.components["progress"] == verdict.components["progress"]
    assert seen.solved == (verdict.solved or verdict.broken_rule == "goal_left")


def test_the_image_is_the_first_frame(chat, data, items, tmp_path):
    assert run(chat, data, tmp_path / "out", "--input=image", "--num_puzzles=1") == 0
    url = chat.requests[0]["messages"][0]["content"][1]["image_url"]["url"]
    with Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))) as image:
        shown = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(shown, puzzles.render_first_frame(items[0].puzzle, 96, 160))
