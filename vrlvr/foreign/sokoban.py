"""Sokoban levels in the usual notation (XSB), as Boxoban's files and most collections have them.

`#` wall, ` `, `-` or `_` floor, `.` target, `$` box, `@` agent, `*` and `+` box and agent on a target. Every line that begins
with a wall, behind floor at most, belongs to a board; any other line parts two boards and is a comment (Boxoban writes
`; 17`), unless it holds moves alone: `uurRDl`, perhaps behind `Solution:`, solves the board above (LURD: capitals push).
"""

import re
from dataclasses import replace

from vrlvr.foreign.level import Level, numbered_lines, padded
from vrlvr.puzzles import grid
from vrlvr.puzzles.sokoban import Puzzle
from vrlvr.puzzles.sokoban.render import FLOOR, TARGET, WALL
from vrlvr.puzzles.sokoban.solve import search

_FLOOR = " -_"
_MOVES = re.compile(r"(?:solution:?)?\s*([udlr]+)\s*", re.IGNORECASE)
_OURS = str.maketrans("-_", "  ")
MAX_BOXES_TO_SOLVE = 5  # the planner matches boxes to targets in all orders
MAX_MOVES = 10_000  # of a solution that comes with a level
MAX_STATES = 300_000  # that the planner may look at: about ten seconds


def levels(text: str) -> list[Level]:
    """The boards of a file, each with the moves that follow it."""
    found: list[tuple[int, list[str], list[str]]] = []
    inside = False
    for number, line in numbered_lines(text):
        was_inside, inside = inside, line.lstrip(_FLOOR).startswith("#")
        if inside:
            if not was_inside:
                found.append((number, [], []))
            found[-1][1].append(line.rstrip())
        elif found and (moves := _MOVES.fullmatch(line)):
            found[-1][2].append(moves[1])
    return [Level(number, tuple(rows), "".join(moves) or None) for number, rows, moves in found]


def puzzle_of(level: Level) -> Puzzle:
    """The level, with its own solution up to the move that solves it, else the planner's. Raises ValueError without one."""
    rows, cols, cells = grid.join([row.translate(_OURS) for row in padded(level.rows)], "# .$*@+")
    agents = [cell for cell, mark in enumerate(cells) if mark in "@+"]
    boxes = tuple(cell for cell, mark in enumerate(cells) if mark in "$*")
    targets = sum(cells.count(mark) for mark in ".*+")
    if len(agents) != 1 or not boxes or len(boxes) != targets:
        raise ValueError(
            f"the board has {len(agents)} agents, {len(boxes)} boxes and {targets} targets; a level has one agent and as "
            "many boxes as targets"
        )
    inside = grid.distances_from(agents[0], bytes(mark != "#" for mark in cells), rows, cols)
    cells = "".join("#" if mark == " " and cell not in inside else mark for cell, mark in enumerate(cells))
    ground = bytes(WALL if mark == "#" else TARGET if mark in ".*+" else FLOOR for mark in cells)
    puzzle = Puzzle(rows, cols, ground, agents[0], boxes, "")
    solution = _solved(puzzle) if level.solution is None else _until_solved(puzzle, level.solution.upper())
    return Puzzle.from_json(replace(puzzle, solution=solution).to_json())


def _until_solved(puzzle: Puzzle, moves: str) -> str:
    """The moves up to the first state with every box on a target, which is all that a solution may show."""
    if len(moves) > MAX_MOVES:
        raise ValueError(f"its solution has {len(moves)} moves; at most {MAX_MOVES} are read")
    for number, (_, boxes) in enumerate(puzzle.trace(moves)):
        if boxes == puzzle.targets:
            return moves[:number]
    return moves


def _solved(puzzle: Puzzle) -> str:
    if len(puzzle.boxes) > MAX_BOXES_TO_SOLVE:
        raise ValueError(
            f"the level has {len(puzzle.boxes)} boxes and no solution, and the planner takes at most {MAX_BOXES_TO_SOLVE}; "
            "write one (u, d, l, r) below the board"
        )
    plan = search(puzzle.ground, puzzle.agent, puzzle.boxes, puzzle.rows, puzzle.cols, MAX_STATES)
    if plan is None:
        raise ValueError(
            f"the level has no solution, or none found among {MAX_STATES} states; write one (u, d, l, r) below the board"
        )
    return plan
