"""Geometry shared by the rooms whose agent walks: cells, moves, symmetric copies, and frames as bytes.

The N = R * K cells of a board are numbered row by row. A board state is N bytes, one label a cell: hashable, comparable and
searchable at C speed, which is what makes judging a small video cost microseconds.
"""

from collections.abc import Callable
from functools import lru_cache
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from vrlvr.puzzles import board

MOVES = {"U": (-1, 0), "D": (1, 0), "L": (0, -1), "R": (0, 1)}
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


@lru_cache(maxsize=256)
def _symmetries(rows: int, cols: int) -> tuple[tuple[bytes, Callable[[bytes], tuple[int, ...]]], ...]:
    """The 8 symmetries of a rectangle's grid: the shape of the copy, and a function that picks its cells in order."""
    index = np.arange(rows * cols).reshape(rows, cols)
    copies = [np.rot90(side, turns) for side in (index, index.T) for turns in range(4)]
    return tuple((bytes(copy.shape), itemgetter(*copy.ravel().tolist())) for copy in copies)


def canonical(state: bytes, rows: int, cols: int) -> bytes:
    """The least of a state's 8 rotated and mirrored copies, each headed by its shape: equal for all of them."""
    return min(shape + bytes(pick(state)) for shape, pick in _symmetries(rows, cols))


def frames(labels_TRK: NDArray[np.integer], rmse_TRK: NDArray[np.floating], rows: int, cols: int) -> list[bytes]:
    """The T states of a video as bytes; board.UNREADABLE becomes 255.

    Raises ValueError if either array is not (T >= 1, rows, cols).
    """
    if labels_TRK.shape != rmse_TRK.shape or labels_TRK.ndim != 3 or labels_TRK.shape[1:] != (rows, cols):
        raise ValueError(
            f"labels {labels_TRK.shape} and rmse {rmse_TRK.shape} must both be (frames, {rows}, {cols}), the puzzle's board"
        )
    if not len(labels_TRK):
        raise ValueError("a video of 0 frames cannot be judged; give at least 1")
    raw, size = labels_TRK.astype(np.uint8).tobytes(), rows * cols
    return [raw[start : start + size] for start in range(0, len(raw), size)]


def reading_error(rmse_TRK: NDArray[np.floating]) -> float:
    """How far the pixels are from any legal board, in [0, 1]: the mean over frames and cells; an unreadable cell counts 1."""
    return float(np.minimum(rmse_TRK / board.MAX_CELL_RMSE, 1.0).mean())


def join(lines: object, alphabet: str) -> tuple[int, int, str]:
    """A board of text as (rows, cols, its cells row by row).

    Raises ValueError if the lines are not strings of one length, hold a character outside the alphabet, or are no board.
    """
    if not isinstance(lines, list) or not lines or not all(isinstance(line, str) and line for line in lines):
        raise ValueError("board must be a list of strings, one a row, none empty")
    if len(lines) > 255 or len(lines[0]) > 255:
        raise ValueError(
            f"the board has {len(lines)} rows and {len(lines[0])} columns; at most 255 of each are allowed"
        )
    for number, line in enumerate(lines, 1):
        if len(line) != len(lines[0]):
            raise ValueError(f"row {number} has {len(line)} cells, row 1 has {len(lines[0])}; all must have the same")
        if unknown := set(line) - set(alphabet):
            raise ValueError(f"row {number} has the character {min(unknown)!r}; known are {alphabet!r}")
    return len(lines), len(lines[0]), "".join(lines)
