"""The FlowFree puzzle: pairs of endpoints on a grid, its JSON form and its canonical key.

A cell is its index in reading order, row * cols + col. A path is the cells of one colour from its first endpoint (the
smaller index) to its second; colours are ordered by their first endpoint, so that colour names carry no information.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any, ClassVar

from vrlvr.puzzles import grid

Path = tuple[int, ...]

MAX_COLOURS = 8
MAX_SIDE = 15
MAX_CELLS_PER_MOVE = 8
LETTERS = "ABCDEFGH"


@dataclass(frozen=True)
class Puzzle:
    """A FlowFree board and the planner's solution.

    endpoints: the two end cells of each colour. solution: the path of each colour; together they fill the grid.
    cells_per_move: how many cells a colour may grow, at either or both of its ends together, from one state to the next.
    """

    rows: int
    cols: int
    endpoints: tuple[tuple[int, int], ...]
    cells_per_move: int
    solution: tuple[Path, ...]
    task: ClassVar[str] = "flowfree"

    @cached_property
    def _hash(self) -> int:
        return hash((self.rows, self.cols, self.endpoints, self.cells_per_move, self.solution))

    def __hash__(self) -> int:
        return self._hash  # puzzles key the verifier's caches, once a video

    @classmethod
    def from_paths(cls, rows: int, cols: int, paths: Iterable[Sequence[int]], cells_per_move: int) -> "Puzzle":
        """The puzzle solved by these paths, with its colours in canonical order."""
        solution = tuple(sorted(tuple(path) if path[0] < path[-1] else tuple(reversed(path)) for path in paths))
        return cls(rows, cols, tuple((path[0], path[-1]) for path in solution), cells_per_move, solution)

    def to_json(self) -> dict[str, Any]:
        """Rows of letters: `.` is an empty cell, `A` to `H` the endpoints, and in `solution` whole paths."""
        return {
            "task": self.task,
            "board": _write_rows(self.rows, self.cols, self.endpoints),
            "solution": _write_rows(self.rows, self.cols, self.solution),
            "paths": [list(path) for path in self.solution],
            "cells_per_move": self.cells_per_move,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Puzzle":
        """Reads what `to_json` wrote. Raises ValueError naming what is wrong with it, KeyError for a missing field."""
        if data["task"] != cls.task:
            raise ValueError(f"task is {data['task']!r:.40}, a FlowFree puzzle has {cls.task!r}")
        rows, cols, cells = grid.join(data["board"], "." + LETTERS)
        if max(rows, cols) > MAX_SIDE:
            raise ValueError(f"a board of {rows}x{cols} exceeds {MAX_SIDE} cells a side")
        by_colour: dict[str, list[int]] = {}
        for cell, letter in enumerate(cells):
            if letter != ".":
                by_colour.setdefault(letter, []).append(cell)
        if list(by_colour) != list(LETTERS[: len(by_colour)]) or not by_colour:
            raise ValueError(f"board letters {''.join(by_colour)!r} must be A, B, ... in reading order, at most H")
        wrong = [letter for letter, pair in by_colour.items() if len(pair) != 2]
        if wrong:
            raise ValueError(f"colour {wrong[0]} has {len(by_colour[wrong[0]])} endpoints on the board; give it 2")
        endpoints = tuple((pair[0], pair[1]) for pair in by_colour.values())
        cells_per_move = data["cells_per_move"]
        if type(cells_per_move) is not int or not 1 <= cells_per_move <= MAX_CELLS_PER_MOVE:
            raise ValueError(f"cells_per_move={cells_per_move!r:.40} must be an integer from 1 to {MAX_CELLS_PER_MOVE}")
        solution = _read_paths(data["paths"])
        check_solution(rows, cols, endpoints, solution)
        if data["solution"] != _write_rows(rows, cols, solution):
            raise ValueError("solution and paths disagree; write both with to_json")
        return cls(rows, cols, endpoints, cells_per_move, solution)


def check_solution(
    rows: int, cols: int, endpoints: Sequence[tuple[int, int]], solution: Sequence[Sequence[int]]
) -> None:
    """Raises ValueError unless the paths join their endpoints step by step and fill the grid, each cell once."""
    if [(path[0], path[-1]) for path in solution if path] != list(endpoints):
        raise ValueError("every path must run from its colour's first endpoint to its second")
    if sorted(cell for path in solution for cell in path) != list(range(rows * cols)):
        raise ValueError(f"the paths must cover each of the {rows * cols} cells exactly once")
    beside = grid.around(rows, cols)
    for letter, path in zip(LETTERS, solution, strict=False):
        if len(path) < 3:
            raise ValueError(f"path {letter} has {len(path)} cells; leave at least one between its endpoints")
        for a, b in pairwise(path):
            if b not in beside[a]:
                raise ValueError(f"path {letter} jumps from cell {a} to cell {b}; consecutive cells must touch")


def canonical(puzzle: Puzzle) -> bytes:
    """The least form of the endpoints over the 8 symmetries of the square; colour names never enter it."""
    return canonical_key(puzzle.rows, puzzle.cols, puzzle.endpoints)


def canonical_key(rows: int, cols: int, endpoints: Iterable[Sequence[int]]) -> bytes:
    """`canonical` of a board that is no puzzle yet. endpoints: (first, ..., last) of each colour."""
    pairs = [(ends[0], ends[-1]) for ends in endpoints]
    forms = []
    for new_rows, new_cols, image in _symmetries(rows, cols):
        ends = sorted((image[a], image[b]) if image[a] < image[b] else (image[b], image[a]) for a, b in pairs)
        forms.append((new_rows, new_cols, *(cell for pair in ends for cell in pair)))
    return bytes(min(forms))


@lru_cache(maxsize=64)
def _symmetries(rows: int, cols: int) -> tuple[tuple[int, int, tuple[int, ...]], ...]:
    """The 8 symmetries of the square: the image's rows and columns, and where each cell goes."""
    symmetries = []
    for transpose in (False, True):
        new_rows, new_cols = (cols, rows) if transpose else (rows, cols)
        for flip_rows in (False, True):
            for flip_cols in (False, True):
                image = []
                for cell in range(rows * cols):
                    row, col = divmod(cell, cols)
                    row, col = (rows - 1 - row if flip_rows else row), (cols - 1 - col if flip_cols else col)
                    image.append(col * new_cols + row if transpose else row * new_cols + col)
                symmetries.append((new_rows, new_cols, tuple(image)))
    return tuple(symmetries)


def _read_paths(paths: Any) -> tuple[Path, ...]:
    whole = isinstance(paths, list) and all(
        isinstance(path, list) and all(type(cell) is int for cell in path) for path in paths
    )
    if not whole:
        raise ValueError("paths must be a list of lists of cell numbers")
    return tuple(tuple(path) for path in paths)


def _write_rows(rows: int, cols: int, cells_of_colours: Iterable[Iterable[int]]) -> list[str]:
    letters = ["."] * (rows * cols)
    for letter, cells in zip(LETTERS, cells_of_colours, strict=False):
        for cell in cells:
            letters[cell] = letter
    return ["".join(letters[row * cols : (row + 1) * cols]) for row in range(rows)]
