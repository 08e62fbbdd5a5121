"""Numberlink boards as text, FlowFree's own rules on top: the level files of the package `numberlink`.

Each letter or digit marks one of the two ends of a colour, `.` an empty cell. Blank lines part several boards of a file.
The package keeps a board's solution in a file beside it, `NAME.sol.json` for `NAME.txt`: a list of paths, each a list of
[row, col] from 0. Numberlink lets cells stay empty, FlowFree does not: a solution that leaves some is replaced by the
planner's, and a board that cannot be filled is refused.
"""

import json
import string

from vrlvr.foreign.level import Level, blocks
from vrlvr.puzzles import grid
from vrlvr.puzzles.flow_free import Puzzle
from vrlvr.puzzles.flow_free.puzzle import MAX_COLOURS, MAX_SIDE, check_solution
from vrlvr.puzzles.flow_free.solve import count_solutions

# The planner's time grows threefold with every column: 4 s at ten of them, 20 s and 0.6 GB at eleven.
MAX_CELLS_TO_SOLVE = 100
_COLOURS = string.ascii_letters + string.digits

levels = blocks


def puzzle_of(level: Level) -> Puzzle:
    """The board at one cell a move. Raises ValueError for a board or a solution that FlowFree's rules do not allow."""
    rows, cols, cells = grid.join([row.strip() for row in level.rows], "." + _COLOURS)
    if max(rows, cols) > MAX_SIDE:
        raise ValueError(f"a board of {rows}x{cols} exceeds {MAX_SIDE} cells a side")
    ends: dict[str, list[int]] = {}
    for cell, mark in enumerate(cells):
        if mark != ".":
            ends.setdefault(mark, []).append(cell)
    if not 1 <= len(ends) <= MAX_COLOURS:
        raise ValueError(f"the board has {len(ends)} colours; it must have 1 to {MAX_COLOURS}, all that can be drawn")
    for mark, pair in ends.items():
        if len(pair) != 2:
            raise ValueError(f"colour {mark} marks {len(pair)} cells; it must mark the 2 ends of a path")
    paths = _given(level.solution, rows, cols, list(ends.values())) if level.solution is not None else None
    puzzle = Puzzle.from_paths(rows, cols, paths or _solved(rows, cols, list(ends.values())), cells_per_move=1)
    check_solution(rows, cols, puzzle.endpoints, puzzle.solution)
    return puzzle


def _given(solution: str, rows: int, cols: int, ends: list[list[int]]) -> list[list[int]] | None:
    """The paths of a .sol.json as cells; None if they leave cells empty. Raises ValueError if they are no solution."""
    try:
        paths = [[_cell(place, rows, cols) for place in path] for path in json.loads(solution)]
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"its .sol.json is no list of paths of [row, col] on the board ({error})") from error
    if not all(paths) or sorted(sorted((path[0], path[-1])) for path in paths) != sorted(ends):
        raise ValueError("its .sol.json does not have one path between the two ends of each colour")
    covered = [cell for path in paths for cell in path]
    if len(set(covered)) < len(covered):
        raise ValueError("its .sol.json leads two paths, or one twice, over the same cell")
    return paths if len(covered) == rows * cols else None


def _cell(place: object, rows: int, cols: int) -> int:
    match place:
        case [int(row), int(col)] if 0 <= row < rows and 0 <= col < cols:
            return row * cols + col
    raise ValueError("a place is not on it")


def _solved(rows: int, cols: int, ends: list[list[int]]) -> tuple[tuple[int, ...], ...]:
    if rows * cols > MAX_CELLS_TO_SOLVE:
        raise ValueError(
            f"a board of {rows}x{cols} comes without a solution that fills it, and the planner takes at most "
            f"{MAX_CELLS_TO_SOLVE} cells; put a .sol.json beside the file"
        )
    count, paths = count_solutions(rows, cols, ends)
    if not count:
        raise ValueError(f"no paths fill the {rows}x{cols} board, as FlowFree's rules demand")
    return paths
