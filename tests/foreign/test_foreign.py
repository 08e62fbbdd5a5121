"""Puzzles that we did not make: rendered and verified with no change of code, and attacks on them refused."""

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from vrlvr import puzzles
from vrlvr.foreign import mazes, numberlink, sokoban
from vrlvr.foreign.level import Level
from vrlvr.puzzles import Puzzle, flow_free, room_of

ASSETS = Path(__file__).parents[1] / "assets" / "foreign"
SIZE = (180, 240)
# Numberlink lets paths leave cells empty, and 7 of the package's solutions lead one path over the end of another.
FILLED = [
    f"{side}x{side}_ha_{colours}c_{seed:03d}"
    for side, colours, seeds in (
        (5, 4, (16, 26)),
        (6, 5, (12, 22)),
        (7, 6, (18, 28)),
        (8, 6, (14, 24)),
        (9, 7, (20, 30)),
    )
    for seed in seeds
]
REFUSED = {"5x5_ra_4c_011": "no paths fill", "5x5_ra_4c_021": "no paths fill"} | dict.fromkeys(
    [
        "6x6_ra_5c_017",
        "6x6_ra_5c_027",
        "7x7_ra_6c_013",
        "7x7_ra_6c_023",
        "8x8_ra_6c_019",
        "9x9_ra_7c_015",
        "9x9_ra_7c_025",
    ],
    "over the same cell",
)


def of_numberlink(name: str) -> Level:
    (level,) = numberlink.levels((ASSETS / "numberlink" / f"{name}.txt").read_text(encoding="utf-8"))
    return replace(level, solution=(ASSETS / "numberlink" / f"{name}.sol.json").read_text(encoding="utf-8"))


@cache
def foreign() -> dict[str, Puzzle]:
    """All of the assets that are puzzles by our rules, by name."""
    found: dict[str, Puzzle] = {name: numberlink.puzzle_of(of_numberlink(name)) for name in FILLED}
    for module, file in ((sokoban, "gym_sokoban.txt"), (mazes, "mazelib.txt")):
        for level in module.levels((ASSETS / file).read_text(encoding="utf-8")):
            found[f"{file}:{level.line}"] = module.puzzle_of(level)
    return found


def states_of(puzzle: Puzzle) -> np.ndarray:
    return room_of(puzzle).states(puzzle, puzzle.solution)


def verdict_of(puzzle: Puzzle, states: np.ndarray) -> puzzles.Verdict:
    return puzzles.verify(puzzle, puzzles.render_states(puzzle, states, *SIZE))


def gains(verdict: puzzles.Verdict) -> set[float]:
    return {value for name, value in verdict.components.items() if name != "error"}


def test_all_levels_are_there():
    tasks = [puzzle.task for puzzle in foreign().values()]
    assert {task: tasks.count(task) for task in tasks} == {"flowfree": 10, "sokoban": 12, "maze": 21}


def test_their_solutions_are_solved():
    for name, puzzle in foreign().items():
        verdict = verdict_of(puzzle, states_of(puzzle))
        assert verdict.solved, name
        assert gains(verdict) == {1.0}, name
        assert (verdict.f1, verdict.components["error"]) == (1.0, pytest.approx(0, abs=1e-3)), name


def test_flow_paths_that_grow_from_both_ends_are_solved():
    for name in FILLED:
        puzzle = replace(foreign()[name], cells_per_move=2)
        states = states_of(puzzle)
        both = [states[0].copy()]
        for turn in range(max(map(len, puzzle.solution))):
            both.append(both[-1].copy())
            for colour, path in enumerate(puzzle.solution):
                for cell in {path[1 + turn], path[-2 - turn]} if 2 * turn < len(path) - 2 else set():
                    both[-1].flat[cell] = flow_free.render.path_label(colour)
        assert verdict_of(puzzle, np.stack(both)).solved, name


def attacks(states: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    yield "static", np.repeat(states[:1], len(states), axis=0)
    yield "jump to the end", states[[0, -1]]
    yield "teleport", np.delete(states, [len(states) // 2, len(states) // 2 - 1], axis=0)
    yield "solved from the start", states[-1:]
    yield "backwards", states[::-1]
    yield "too short", states[:-1]


def test_attacks_on_them_are_refused():
    for name, puzzle in foreign().items():
        states = states_of(puzzle)
        for attack, shown in attacks(states):
            if attack == "teleport" and len(states) < 5:
                continue  # two of so few states may be cut without a jump
            verdict = verdict_of(puzzle, shown)
            assert not verdict.solved, (name, attack)
            if attack in ("static", "solved from the start", "backwards"):
                assert gains(verdict) == {0.0}, (name, attack)


def test_walking_straight_through_the_walls_is_refused():
    seen = 0
    for name, puzzle in foreign().items():
        if puzzle.task != "maze":
            continue
        start, goal = (divmod(cell, puzzle.cols) for cell in (puzzle.start, puzzle.goal))
        rows = np.linspace(start[0], goal[0], 1 + abs(start[0] - goal[0]), dtype=int)
        cols = np.linspace(start[1], goal[1], 1 + abs(start[1] - goal[1]), dtype=int)
        cells = [(row, start[1]) for row in rows] + [(goal[0], col) for col in cols[1:]]
        walls = [puzzle.ground[row * puzzle.cols + col] == puzzles.maze.render.WALL for row, col in cells]
        frames = np.repeat(np.frombuffer(puzzle.ground, np.int8)[None], len(cells), 0).reshape(
            -1, puzzle.rows, puzzle.cols
        )
        for frame, cell in zip(frames, cells, strict=True):
            frame[cell] = 4 if cell == goal else 3
        verdict = verdict_of(puzzle, frames)
        assert verdict.solved != any(walls), name
        if any(walls):
            assert (verdict.broken_rule, verdict.frame) == ("walked_through_wall", walls.index(True)), name
            seen += 1
    assert seen > 10


@pytest.mark.parametrize(("name", "why"), REFUSED.items())
def test_numberlink_boards_that_are_no_flow_free(name, why):
    with pytest.raises(ValueError, match=why):
        numberlink.puzzle_of(of_numberlink(name))


def test_a_numberlink_solution_that_leaves_cells_empty_is_replaced_and_not_solved():
    level = of_numberlink("8x8_ra_6c_029")
    puzzle = numberlink.puzzle_of(level)
    assert sorted(cell for path in puzzle.solution for cell in path) == list(range(64))
    theirs = [[row * 8 + col for row, col in path] for path in json.loads(level.solution)]
    theirs = sorted(path if path[0] < path[-1] else path[::-1] for path in theirs)
    assert tuple((path[0], path[-1]) for path in theirs) == puzzle.endpoints
    verdict = verdict_of(puzzle, flow_free.states(puzzle, theirs))
    assert (verdict.solved, verdict.broken_rule, verdict.components["progress"]) == (False, "not_solved", 1.0)


def test_own_solutions_are_kept():
    """Not the planner's: the second maze's text walks a way that its `+` show, a level's moves are taken up to the end."""
    (level,) = mazes.levels("#######\n#S  E##\n#+###+#\n#+++++#\n#######\n")
    (other,) = mazes.levels("#######\n#S..G##\n#.###.#\n#.....#\n#######\n")
    assert mazes.puzzle_of(other).solution == "RRR"
    with pytest.raises(ValueError, match="do not join start and goal"):
        mazes.puzzle_of(level)
    (level,) = mazes.levels("#######\n#S   E#\n#+###+#\n#+++++#\n#######\n")
    assert mazes.puzzle_of(level).solution == "DDRRRRUU"
    (level,) = sokoban.levels("#####\n#@$.#\n#   #\n#####\nDUrLLRR\n")
    with pytest.raises(ValueError, match="move 5 of 'DURLLRR' is illegal"):
        sokoban.puzzle_of(level)
    (level,) = sokoban.levels("#####\n#@$.#\n#   #\n#####\ndu\nRld\n")
    assert sokoban.puzzle_of(level).solution == "DUR"


MICROBAN_1 = """Microban 1, by David W. Skinner
####
# .#
#  ###
#*@  #
#  $ #
#  ###
####

dlUrrrdLullddrUluRuulDrddrruLdlUU
"""


def test_a_classic_level_with_ragged_rows_and_its_moves():
    """The floor outside its walls is no place to go: it becomes wall."""
    (level,) = sokoban.levels(MICROBAN_1)
    assert level.line == 2
    puzzle = sokoban.puzzle_of(level)
    assert puzzle.to_json()["board"][1] == "# .###"
    assert puzzle.solution == "dlUrrrdLullddrUluRuulDrddrruLdlUU".upper()
    assert verdict_of(puzzle, states_of(puzzle)).solved
    assert len(sokoban.puzzle_of(replace(level, solution=None)).solution) == 33


def test_boxoban_files_are_many_levels():
    text = (ASSETS / "gym_sokoban.txt").read_text(encoding="utf-8")
    assert len(sokoban.levels(text)) == 12
    assert sokoban.levels(text.replace("\n", "\r\n")) == sokoban.levels(text)


def sok(board: str, moves: str | None = None) -> Level:
    return Level(1, tuple(board.split("|")), moves)


@pytest.mark.parametrize(
    ("level", "why"),
    [
        (sok("####|#@.#|####"), "1 agents, 0 boxes and 1 targets"),
        (sok("#####|#@$.#|#@$.#|#####"), "2 agents"),
        (sok("######|#@$ .#|#$   #|######"), "1 agents, 2 boxes and 1 targets"),
        (sok("######|#@ * #|######"), "every box is on a target already"),
        (sok("#####|#$@.#|#####"), "no solution, or none found"),
        (sok("#####|#@$.#|#####", "L"), "move 1 of 'L' is illegal"),
        (sok("#####|#@$.#|#####", "R" * 10_001), "10001 moves; at most 10000"),
        (sok("######|#@$ .#|######", "R"), "does not end with every box on a target"),
        (sok("#@$.#"), "1 rows"),
        (sok("#####|#@$X#|#####"), "character 'X'"),
        (sok("##########|#@$ $ $ .#|# $ $ $ .#|#. . . . #|##########"), "6 boxes and no solution"),
    ],
)
def test_bad_sokoban_levels(level, why):
    with pytest.raises(ValueError, match=why) as error:
        sokoban.puzzle_of(level)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("board", "why"),
    [
        ("####|#S.#|####", "0 cells marked as goal"),
        ("#####|#SSE#|#####", "2 cells marked as start"),
        ("#####|#S#E#|#####", "walls part start and goal"),
        ("S", "1 rows"),
        ("#####|#S?E#|#####", "character '[?]'"),
    ],
)
def test_bad_mazes(board, why):
    with pytest.raises(ValueError, match=why):
        mazes.puzzle_of(sok(board))


BOARD = "A.B|...|A.B"


@pytest.mark.parametrize(
    ("board", "solution", "why"),
    [
        ("A.B|..A|A.B", None, "colour A marks 3 cells"),
        ("...|...|...", None, "0 colours"),
        ("AABBCC|DDEEFF|GGHHII", None, "9 colours"),
        ("A.B|.é.|A.B", None, "character 'é'"),
        ("A" + 15 * ".", None, "1 rows"),
        ("A" + 15 * "." + "|" + 15 * "." + "A", None, "exceeds 15 cells a side"),
        (("A" + 10 * "." + "|") + 9 * (11 * "." + "|") + 10 * "." + "A", None, "at most 100 cells"),
        ("AB|BA", None, "no paths fill"),
        ("AA|BB", None, "leave at least one between"),
        ("A.B|A.B", "[[[0,0],[0,1],[1,0]],[[0,2],[1,1],[1,2]]]", "jumps from cell 1 to cell 3"),
        (BOARD, "[[[0,0],[1,0],[2,0]],[[0,2],[1,0],[2,2]]]", "over the same cell"),
        (BOARD, "[[[0,0],[1,0],[2,0]]]", "one path between the two ends"),
        (BOARD, "[[[0,0],[1,0],[2,0]],[]]", "one path between the two ends"),
        (BOARD, "[[[0,0],[1,0],[3,0]]]", "a place is not on it"),
        (BOARD, "[[[0,0],0]]", "a place is not on it"),
        (BOARD, "17", "no list of paths"),
        (BOARD, "{", "no list of paths"),
        (BOARD, "[" * 100_000, "no list of paths"),
    ],
)
def test_bad_numberlink_boards(board, solution, why):
    with pytest.raises(ValueError, match=why) as error:
        numberlink.puzzle_of(sok(board, solution))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("b", [[1, 2, 3, 7, 6, 5, 9, 10, 11], [1, 5, 9, 10, 6, 2, 3, 7, 11]])
def test_a_good_numberlink_solution_is_kept(b):
    """Each of the two that this board has, told from either end and in any order of the colours."""
    a = [8, 4, 0]
    told = json.dumps([[divmod(cell, 4) for cell in path] for path in (b, a)])
    puzzle = numberlink.puzzle_of(sok("AB..|....|A..B", told))
    assert puzzle.solution == ((0, 4, 8), tuple(b))
