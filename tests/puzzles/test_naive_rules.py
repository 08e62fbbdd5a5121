"""The verifiers against a second, naive implementation of the rules, which knows full boards of text and nothing else.

Boards are strings in the usual notation of Sokoban levels: `#` wall, ` ` floor, `.` target, `$` box, `@` agent, `*` and
`+` box and agent on a target; a maze is a level without boxes whose target is the goal. In FlowFree `A` is an endpoint
of the first colour and `a` its path. All legal continuations of a board are listed, and a video is compared with them.
"""

import random
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
import pytest

from vrlvr.puzzles import ROOMS, flow_free, generate, render, render_states, verify, verify_many
from vrlvr.puzzles.grid import around
from vrlvr.puzzles.verdict import Verdict

MAZE, SOKOBAN, FLOW = "# .@+", "# .$*@+", " AaBbCcDdEeFfGgHh"  # the mark of each label
LIFT = {"@": " ", "+": ".", "$": " ", "*": "."}  # the ground under things
PUT_AGENT, PUT_BOX = {" ": "@", ".": "+"}, {" ": "$", ".": "*"}

Judgement = tuple[int | None, float]  # the first frame that breaks a rule, None in a solved video; the progress made


# ---------------------------------------------------------------------------------------------- Maze and Sokoban


def moves_from(board: str, cols: int) -> Iterator[str]:
    """All boards that one move of the agent makes of a board."""
    at = next(cell for cell, mark in enumerate(board) if mark in "@+")

    def beyond(cell: int, down: int, right: int) -> int | None:
        row, col = cell // cols + down, cell % cols + right
        return row * cols + col if 0 <= row < len(board) // cols and 0 <= col < cols else None

    for way in ((-1, 0), (1, 0), (0, -1), (0, 1)):
        cells, to = list(board), beyond(at, *way)
        if to is None or cells[to] == "#":
            continue
        if cells[to] in "$*":
            behind = beyond(to, *way)
            if behind is None or cells[behind] not in " .":
                continue
            cells[behind] = PUT_BOX[cells[behind]]
            cells[to] = LIFT[cells[to]]
        cells[at], cells[to] = LIFT[cells[at]], PUT_AGENT[cells[to]]
        yield "".join(cells)


def is_solved(board: str, task: str) -> bool:
    return "+" in board if task == "maze" else "$" not in board


def may_follow(before: str, after: str, task: str, cols: int) -> bool:
    """Whether a frame may show `after` when the one before it showed `before`, another board."""
    if is_solved(before, task) and (task == "maze" or "$" in after):
        return False
    return after in moves_from(before, cols)


@lru_cache(maxsize=256)
def moves_left(start: str, task: str, cols: int) -> dict[str, float]:
    """The fewest moves to a solved board from every board that can be reached, by relaxing all until nothing changes."""
    following: dict[str, list[str]] = {}
    unexplored = [start]
    while unexplored:
        board = unexplored.pop()
        if board not in following:
            following[board] = list(moves_from(board, cols))
            unexplored += following[board]
    left = {board: 0 if is_solved(board, task) else float("inf") for board in following}
    changed = True
    while changed:
        better = {board: min([left[board], *(left[after] + 1 for after in following[board])]) for board in following}
        changed, left = better != left, better
    return left


def judge_walk(boards: list[str], start: str, task: str, cols: int) -> Judgement:
    """A maze's or a level's video."""
    legal = 0
    while legal < len(boards):
        before = boards[legal - 1] if legal else start
        if boards[legal] != before and not (legal and may_follow(before, boards[legal], task, cols)):
            break
        legal += 1
    left = moves_left(start, task, cols)
    progress = 1 - min([left[start], *(left[board] for board in boards[:legal])]) / left[start]
    if legal == len(boards):
        return (None if is_solved(boards[-1], task) else legal - 1), progress
    return legal, progress


# ------------------------------------------------------------------------------------------------------ FlowFree


def walks(at: int, cells: frozenset[int], cols: int) -> Iterator[tuple[int, ...]]:
    """All simple paths from beside `at` through some of the cells, the empty one included."""
    yield ()
    for cell in cells:
        if abs(cell // cols - at // cols) + abs(cell % cols - at % cols) == 1:
            for rest in walks(cell, cells - {cell}, cols):
                yield (cell, *rest)


def arms(own: list[frozenset[int]], ends: tuple[int, int], limit: int, cols: int) -> Iterator[tuple[int, int]]:
    """The tips of every pair of arms, one from each endpoint, that explains how the cells of a colour grew."""
    for first in walks(ends[0], own[-1], cols):
        for second in walks(ends[1], own[-1] - set(first), cols):
            if len(first) + len(second) != len(own[-1]):
                continue
            reached = {(0, 0)}
            for cells in own:
                reached = {
                    (i, j)
                    for i, j in product(range(len(first) + 1), range(len(second) + 1))
                    if cells == {*first[:i], *second[:j]}
                    if any(k <= i and m <= j and i - k + j - m <= limit for k, m in reached)
                }
            if reached:
                yield (first or ends[:1])[-1], (second or ends[1:])[-1]


def judge_colour(boards: list[str], ends: tuple[int, int], letter: str, limit: int, cols: int) -> tuple[int, int, bool]:
    """How many frames one colour stays legal, how many of them show its endpoints joined, whether the last one does."""
    joined = 0
    for count in range(1, len(boards) + 1):
        own = [frozenset(cell for cell, mark in enumerate(b) if mark == letter.lower()) for b in boards[:count]]
        if {cell for cell, mark in enumerate(boards[count - 1]) if mark == letter} != set(ends):
            return count - 1, joined, False
        if count > 1 and any(boards[count - 2][cell] != " " for cell in own[-1] - own[-2]):
            return count - 1, joined, False
        tips = list(arms(own, ends, limit, cols))
        if not tips:
            return count - 1, joined, False
        now = any(abs(a // cols - b // cols) + abs(a % cols - b % cols) == 1 for a, b in tips)
        joined += now and bool(own[-1])
    return len(boards), joined, now


def judge_flow(boards: list[str], puzzle: flow_free.Puzzle) -> Judgement:
    """A FlowFree video."""
    cells = [" "] * len(boards[0])
    for letter, pair in zip("ABCDEFGH", puzzle.endpoints, strict=False):
        cells[pair[0]] = cells[pair[1]] = letter
    if boards[0] != "".join(cells):
        return 0, 0.0
    letters = "ABCDEFGH"[: len(puzzle.endpoints)]
    colours = [
        judge_colour(boards, ends, letter, puzzle.cells_per_move, puzzle.cols)
        for ends, letter in zip(puzzle.endpoints, letters, strict=True)
    ]
    strange = [frame for frame, board in enumerate(boards) if set(board) - set(" " + letters + letters.lower())]
    broken = min([legal for legal, _, _ in colours] + strange)
    progress = sum(joined > 0 for _, joined, _ in colours) / len(colours)
    if broken < len(boards):
        return broken, progress
    if " " not in boards[-1] and all(last for _, _, last in colours):
        return None, 1.0
    return len(boards) - 1, progress


# ------------------------------------------------------------------------------------------------ the comparison


def judge(puzzle: Any, labels_TRK: np.ndarray) -> Judgement:
    marks = {"maze": MAZE, "sokoban": SOKOBAN, "flowfree": FLOW}[puzzle.task]
    boards = ["".join(marks[label] for label in frame.flat) for frame in labels_TRK]
    if puzzle.task == "flowfree":
        return judge_flow(boards, puzzle)
    start = "".join(puzzle.to_json()["board"])
    if puzzle.task == "maze":
        start = start.translate(str.maketrans(".SG", " @."))
    return judge_walk(boards, start, puzzle.task, puzzle.cols)


def compare(puzzle: Any, labels_TRK: np.ndarray, verdict: Verdict) -> bool:
    """Whether the video is solved, once both have said the same of it."""
    frame, progress = judge(puzzle, labels_TRK)
    assert (verdict.solved, verdict.frame) == (frame is None, frame), labels_TRK
    assert verdict.components["progress"] == pytest.approx(progress), labels_TRK
    return verdict.solved


def draw(puzzle: Any, labels_TRK: np.ndarray) -> np.ndarray:
    return render_states(puzzle, labels_TRK, 4 * puzzle.rows, 4 * puzzle.cols)


@pytest.mark.parametrize("task", ROOMS)
def test_every_single_changed_cell_of_the_planners_video(task):
    """All frames, cells and looks; on three puzzles."""
    looks = len(ROOMS[task].LOOKS)
    for index in range(3):
        puzzle = generate(task, ROOMS[task].Difficulty(), 9, "rl", index)
        states = ROOMS[task].states(puzzle, puzzle.solution)
        states = states[np.minimum(np.arange(5), len(states) - 1)]
        edits = list(product(range(5), range(states[0].size), range(looks)))
        changed = np.repeat(states[None], len(edits), axis=0)
        for labels, (frame, cell, look) in zip(changed, edits, strict=True):
            labels[frame].flat[cell] = look
        videos = np.stack([draw(puzzle, labels) for labels in changed])
        verdicts = verify_many([puzzle] * len(edits), videos)
        solved = sum(compare(puzzle, *pair) for pair in zip(changed, verdicts, strict=True))
        assert verify(puzzle, render(puzzle, 16, 20, 5, 1)).solved
        assert states.size <= solved < len(edits) / 2  # the edits that change nothing are among them


def wander(puzzle: Any, rng: random.Random) -> np.ndarray:
    """Labels (7, R, K): the agent mostly nears the goal, and sometimes stays or walks anywhere."""
    marks = MAZE if puzzle.task == "maze" else SOKOBAN
    start = ROOMS[puzzle.task].states(puzzle, "")[0]
    boards = ["".join(marks[label] for label in start.flat)]
    left = moves_left(boards[0], puzzle.task, puzzle.cols)
    for _ in range(6):
        ways = list(moves_from(boards[-1], puzzle.cols))
        if is_solved(boards[-1], puzzle.task):
            ways = [boards[-1]] if rng.random() < 0.8 else ways
        elif rng.random() < 0.8:
            ways = [min(ways, key=left.__getitem__)]
        boards.append(rng.choice([*ways, boards[-1]]) if rng.random() < 0.3 else rng.choice(ways))
    return np.array([[marks.index(mark) for mark in board] for board in boards]).reshape(-1, *start.shape)


def grow(puzzle: flow_free.Puzzle, rng: random.Random) -> np.ndarray:
    """Labels (T, R, K): the planner's solution drawn at a random pace from both ends of each path, held for a frame."""
    start = flow_free.states(puzzle, puzzle.solution)[0]
    sides = []
    for path in puzzle.solution:
        cut = rng.randrange(1, len(path))
        sides.append((list(path[1:cut]), list(path[cut:-1])[::-1]))
    video = [start]
    while any(front or back for front, back in sides):
        state = video[-1].copy()
        for colour, (front, back) in enumerate(sides):
            count = rng.randrange(puzzle.cells_per_move + 1)
            for _ in range(min(count, len(front) + len(back))):
                side = rng.choice([side for side in (front, back) if side])
                state.flat[side.pop(0)] = flow_free.render.path_label(colour)
        video.append(state)
    return np.stack([*video, video[-1]])


def ramble(puzzle: flow_free.Puzzle, rng: random.Random) -> np.ndarray:
    """Labels (T, R, K): both ends of every path grow into any empty cell, one cell a frame, until none can."""
    video = [flow_free.states(puzzle, puzzle.solution)[0]]
    heads = [list(pair) for pair in puzzle.endpoints]
    while True:
        state = video[-1].copy()
        for colour, pair in enumerate(heads):
            steps = [
                (side, cell)
                for side, head in enumerate(pair)
                for cell in around(puzzle.rows, puzzle.cols)[head]
                if state.flat[cell] == flow_free.render.EMPTY
            ]
            if steps:
                side, pair[side] = rng.choice(steps)
                state.flat[pair[side]] = flow_free.render.path_label(colour)
        if (state == video[-1]).all():
            return np.stack([*video, state])
        video.append(state)


def spoil(labels_TRK: np.ndarray, looks: int, rng: random.Random) -> None:
    """In half of the cases: another look for a cell, two cells exchanged, a frame shown again, two frames exchanged."""
    for _ in range(rng.choice([0, 0, 1, 2])):
        frame, other = rng.randrange(len(labels_TRK)), rng.randrange(1, len(labels_TRK))
        cell, place = rng.randrange(labels_TRK[0].size), rng.randrange(labels_TRK[0].size)
        match rng.randrange(5):
            case 0 | 1:
                labels_TRK[frame].flat[cell] = rng.randrange(looks)
            case 2:
                labels_TRK[frame].flat[[cell, place]] = labels_TRK[frame].flat[[place, cell]]
            case 3:
                labels_TRK[other] = labels_TRK[other - 1]
            case 4:
                labels_TRK[[frame, other]] = labels_TRK[[other, frame]]


@pytest.mark.parametrize("task", ["maze", "sokoban"])
def test_random_walks_some_of_them_spoiled(task):
    rng, solved = random.Random(1), 0
    difficulty = ROOMS[task].Difficulty() if task == "maze" else ROOMS[task].Difficulty(boxes=2, max_plan=6)
    for index in range(1500):
        puzzle = generate(task, difficulty, 9, "rl", index % 50)
        labels = wander(puzzle, rng)
        spoil(labels, len(ROOMS[task].LOOKS), rng)
        solved += compare(puzzle, labels, verify(puzzle, draw(puzzle, labels)))
    assert 300 < solved < 1200


@pytest.mark.parametrize("cells_per_move", [1, 2, 3])
def test_random_growth_some_of_it_spoiled(cells_per_move):
    """On boards that may have several solutions, where a path may run along itself."""
    rng, solved = random.Random(2), 0
    difficulty = flow_free.Difficulty(4, 4, mixes=((2, 10), (3, 8), (4, 6)), max_moves=8, unique_cells=0)
    for index in range(400):
        puzzle = generate("flowfree", difficulty, 9, "rl", index % 100)
        puzzle = replace(puzzle, cells_per_move=cells_per_move)
        labels = grow(puzzle, rng)
        spoil(labels, 3 + 2 * len(puzzle.endpoints), rng)
        solved += compare(puzzle, labels, verify(puzzle, draw(puzzle, labels)))
    assert 130 < solved < 320


def test_filled_boards_are_solved_only_by_paths_from_end_to_end():
    """Most boards that are filled by growth in any direction hold loose ends; the others are solutions."""
    rng, filled, solved = random.Random(3), 0, 0
    difficulty = flow_free.Difficulty(3, 3, mixes=((2, 6),), unique_cells=0)
    for index in range(600):
        puzzle = generate("flowfree", difficulty, 9, "rl", index % 20)
        labels = ramble(puzzle, rng)
        filled += bool((labels[-1] != flow_free.render.EMPTY).all())
        solved += compare(puzzle, labels, verify(puzzle, draw(puzzle, labels)))
    assert 50 < solved < filled - 50
