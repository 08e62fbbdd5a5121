"""Boards as grids: cells, moves, symmetric copies, text.

The N = R * K cells of a board are numbered row by row. A board state is N bytes, one label a cell: hashable, comparable
and searchable at C speed, which is what makes judging a small video cost microseconds.
"""

from collections.abc import Callable
from functools import lru_cache
from operator import itemgetter

import numpy as np

MOVES = {"U": (-1, 0), "D": (1, 0), "L": (0, -1), "R": (0, 1)}
OPPOSITE = {"U": "D", "D": "U", "L": "R", "R": "L"}
OFF_BOARD = -1


@lru_cache(maxsize=256)
def neighbours(rows: int, cols: int) -> dict[str, tuple[int, ...]]:
    """For each of the moves U, D, L, R: the cell it leads to from every cell, OFF_BOARD where it leaves the board."""
    cells = [(row, col) for row in range(rows) for col in range(cols)]

    def to(row: int, col: int) -> int:
        return row * cols + col if 0 <= row < rows and 0 <= col < cols else OFF_BOARD

    return {name: tuple(to(row + down, col + right) for row, col in cells) for name, (down, right) in MOVES.items()}


@lru_cache(maxsize=256)
def around(rows: int, cols: int) -> tuple[tuple[int, ...], ...]:
    """The two to four cells beside every cell."""
    ways = neighbours(rows, cols).values()
    return tuple(tuple(way[cell] for way in ways if way[cell] != OFF_BOARD) for cell in range(rows * cols))


def distances_from(cell: int, free: bytes | bytearray, rows: int, cols: int) -> dict[int, int]:
    """Fewest moves from `cell` to every cell that can be reached over free cells (the non-zero ones), nearest first."""
    beside = around(rows, cols)
    moves = {cell: 0}
    queue = [cell]
    for at in queue:  # grows while it is walked
        for other in beside[at]:
            if free[other] and other not in moves:
                moves[other] = moves[at] + 1
                queue.append(other)
    return moves


@lru_cache(maxsize=256)
def _symmetries(rows: int, cols: int) -> tuple[tuple[bytes, Callable[[bytes], tuple[int, ...]]], ...]:
    """The 8 symmetries of a rectangle's grid: the shape of the copy, and a function that picks its cells in order."""
    index = np.arange(rows * cols).reshape(rows, cols)
    copies = [np.rot90(side, turns) for side in (index, index.T) for turns in range(4)]
    return tuple((bytes(copy.shape), itemgetter(*copy.ravel().tolist())) for copy in copies)


def canonical(state: bytes, rows: int, cols: int) -> bytes:
    """The least of a state's 8 rotated and mirrored copies, each headed by its shape: equal for all of them.

    For boards of 2 to 255 rows and columns.
    """
    return min(shape + bytes(pick(state)) for shape, pick in _symmetries(rows, cols))


def join(lines: object, alphabet: str) -> tuple[int, int, str]:
    """A board of text as (rows, cols, its cells row by row).

    Raises ValueError if it is no list of strings of one length, or holds a character outside the alphabet.
    """
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise ValueError("board must be a list of strings, one a row")
    cols = len(lines[0]) if lines else 0
    if not (2 <= len(lines) <= 255 and 2 <= cols <= 255):
        raise ValueError(
            f"the board has {len(lines)} rows of {cols} cells; it must have 2 to 255 rows, and as many columns"
        )
    for number, line in enumerate(lines, 1):
        if len(line) != cols:
            raise ValueError(f"row {number} has {len(line)} cells, row 1 has {cols}; all must have the same")
        if unknown := set(line) - set(alphabet):
            raise ValueError(f"row {number} has the character {min(unknown)!r}; known are {alphabet!r}")
    return len(lines), cols, "".join(lines)


def split(cells: str, cols: int) -> list[str]:
    """The inverse of `join`: cells as one string a row."""
    return [cells[at : at + cols] for at in range(0, len(cells), cols)]
