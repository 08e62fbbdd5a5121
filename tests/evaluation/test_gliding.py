"""Moves that glide: allowed in a row of their own, and nothing else with them."""

import json
from itertools import pairwise

import numpy as np
import pytest

from vrlvr import puzzles
from vrlvr.evaluation.benchmark import Item, Outcome, write_outcomes
from vrlvr.evaluation.corpus import SCENES, attacks, puzzle_of
from vrlvr.evaluation.gliding import MAX_FRAMES, judge_gliding
from vrlvr.puzzles import ROOMS, board, maze
from vrlvr.puzzles.maze.render import AGENT, FLOOR
from vrlvr.puzzles.verdict import Verdict

CELL = 40
MAZE = maze.Puzzle.from_json({"task": "maze", "board": ["S..#", "##.#", "##.#", "##G."], "solution": "RRDDD"})
PATH = [(0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (3, 2)]
EMPTY = maze.states(MAZE, "R")[1:2].copy()
EMPTY[EMPTY == AGENT] = FLOOR
Where = tuple[float, float]


def frame(*agents: Where) -> np.ndarray:
    """The board with agents anywhere, in cells from the top left."""
    image = board.render(EMPTY, maze.LOOKS, 4 * CELL, 4 * CELL)[0].copy()
    y, x = np.mgrid[: 4 * CELL, : 4 * CELL] + 0.5
    for row, col in agents:
        image[np.hypot(y / CELL - row - 0.5, x / CELL - col - 0.5) <= 0.35] = maze.LOOKS[AGENT, 1]
    return image


def glide(stops: list[Where], steps: int = 4) -> list[Where]:
    """Places on the way along straight lines, `steps` frames each, the last stop held."""
    ways = pairwise(stops)
    places = [
        (a[0] + (b[0] - a[0]) * i / steps, a[1] + (b[1] - a[1]) * i / steps) for a, b in ways for i in range(steps)
    ]
    return [*places, stops[-1], stops[-1]]


def both(video: list[np.ndarray], puzzle: puzzles.Puzzle = MAZE) -> tuple[Verdict, Verdict]:
    """Strictly, and with gliding moves."""
    shown = puzzles.read(puzzle, np.stack(video))
    strict = puzzles.room_of(puzzle).judge(puzzle, *shown)
    return strict, judge_gliding(puzzle, *shown, strict)


@pytest.mark.parametrize("steps", [2, 4, 7, MAX_FRAMES + 1])
def test_a_disc_that_glides_along_the_way_solves_by_the_second_verdict_alone(steps: int) -> None:
    strict, gliding = both([frame(place) for place in glide(PATH, steps)])
    assert not strict.solved
    assert gliding.solved
    assert (gliding.broken_rule, gliding.recall) == (None, 1.0)


def test_without_glides_the_verdicts_are_the_same() -> None:
    for stops in (PATH, PATH[:4], [*PATH[:2], PATH[3]]):
        strict, gliding = both([frame(stop) for stop in stops])
        assert strict == gliding


def held_too_long(places: list[Where]) -> list[np.ndarray]:
    return [frame(p) for p in (*places[:2], *[places[1]] * MAX_FRAMES, *places[2:])]


def with_a_second_agent(places: list[Where]) -> list[np.ndarray]:
    return [frame(p, *([(3, 3)] if i == 6 else [])) for i, p in enumerate(places)]


def with_a_wall_erased(places: list[Where]) -> list[np.ndarray]:
    video = [frame(p) for p in places]
    video[6][3 * CELL :, :CELL] = maze.LOOKS[FLOOR, 0]
    return video


def with_noise_between(places: list[Where]) -> list[np.ndarray]:
    video = [frame(p) for p in places]
    video[6] = np.random.default_rng(0).integers(256, size=video[6].shape, dtype=np.uint8)
    return video


def cut_mid_glide(places: list[Where]) -> list[np.ndarray]:
    return [frame(p) for p in places[:-4]]


def begun_mid_glide(places: list[Where]) -> list[np.ndarray]:
    return [frame(p) for p in places[2:]]


@pytest.mark.parametrize(
    "spoil",
    [held_too_long, with_a_second_agent, with_a_wall_erased, with_noise_between, cut_mid_glide, begun_mid_glide],
)
def test_what_a_glide_may_not_hide(spoil) -> None:
    strict, gliding = both(spoil(glide(PATH)))
    assert not strict.solved
    assert not gliding.solved


@pytest.mark.parametrize(
    "stops",
    [
        [(0, 0), (3, 2)],  # straight through the walls
        [(0, 0), (0, 1), (1, 1), (1, 2), (2, 2), (3, 2)],  # through one of them
        [(0, 0), (0, 1), (1, 2), (2, 2), (3, 2)],  # around a corner
        [*PATH, (3, 3)],  # off the goal again
    ],
)
def test_glides_obey_the_walls(stops: list[Where]) -> None:
    assert not both([frame(place) for place in glide(stops)])[1].solved


@pytest.mark.parametrize("task", ROOMS)
def test_moves_that_fade_count_too_and_no_attack_does(task: str) -> None:
    scene = SCENES["small"]
    puzzle = puzzle_of(task, "small", 0)
    states = puzzles.room_of(puzzle).states(puzzle, puzzle.solution)
    still = puzzles.render_states(puzzle, states, scene.height, scene.width).astype(np.float32)
    faded = [(1 - share) * a + share * b for a, b in pairwise(still) for share in (0, 0.5)]
    strict, gliding = both([image.round().astype(np.uint8) for image in (*faded, still[-1], still[-1])], puzzle)
    assert (strict.solved, gliding.solved) == (False, True)
    fooled = [
        name
        for number, (name, make) in enumerate(attacks(task).items())
        if both(list(make(puzzle, scene, np.random.default_rng([0, number]))), puzzle)[1].solved
    ]
    assert fooled == []


def test_a_system_that_glides_has_two_rows(tmp_path) -> None:
    strict, gliding = both([frame(place) for place in glide(PATH)])
    items = [Item(f"maze-0000{i}", MAZE, "", tmp_path) for i in range(2)]
    quiet = Outcome(items[0], "judged", both([frame(stop) for stop in PATH])[0])
    assert [row["system"] for row in write_outcomes(tmp_path, "S", [quiet])] == ["S"]
    rows = write_outcomes(tmp_path, "S", [quiet, Outcome(items[1], "judged", strict, gliding=gliding)])
    assert [(row["system"], row["success_rate"]) for row in rows] == [("S", 50), ("S (gliding)", 100)]
    lines = [json.loads(line) for line in (tmp_path / "outcomes.jsonl").read_text().splitlines()]
    assert [(line["solved"], line["solved_gliding"]) for line in lines] == [(True, True), (False, True)]
    assert json.loads((tmp_path / "results.json").read_text())[1]["system"] == "S (gliding)"
