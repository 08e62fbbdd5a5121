"""What a Sokoban level looks like, in states, pixels and words."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from vrlvr.puzzles.sokoban.puzzle import Puzzle

# Labels of a cell: what lies on the ground comes in pairs, on the floor and on a target.
WALL, FLOOR, TARGET, BOX, BOX_ON_TARGET, AGENT, AGENT_ON_TARGET = range(7)

# Any two looks differ by 85 levels rmse or more; within 40..210 a gain of 20 % saturates nothing.
_WALL, _FLOOR, _TARGET, _BOX, _AGENT = (40, 40, 50), (210, 210, 210), (40, 200, 60), (180, 90, 40), (40, 60, 210)
LOOKS = np.array(
    [
        (_WALL, _WALL),
        (_FLOOR, _FLOOR),
        (_TARGET, _FLOOR),
        (_FLOOR, _BOX),
        (_TARGET, _BOX),
        (_FLOOR, _AGENT),
        (_TARGET, _AGENT),
    ],
    np.uint8,
)


def prompt(puzzle: "Puzzle") -> str:
    """The task in words; the same for every level of a size and number of boxes."""
    boxes = "a brown disc, the box" if len(puzzle.boxes) == 1 else f"{len(puzzle.boxes)} brown discs, the boxes"
    return (
        f"A Sokoban level of {puzzle.rows} by {puzzle.cols} square cells, seen from above, with {boxes}. The blue disc "
        "walks one cell at a time, up, down, left or right, over the light floor, never through a dark wall. Walking "
        "into a box, it pushes it one cell ahead, if that cell is free; it never pulls. In the end every box is on a "
        "green target and stays there. Walls and targets do not change."
    )


def labels(ground: bytes, agent: int, boxes: tuple[int, ...]) -> bytes:
    """The labels of a state, row by row."""
    cells = bytearray(ground)
    for box in boxes:
        cells[box] += BOX - FLOOR
    cells[agent] += AGENT - FLOOR
    return bytes(cells)


def states(puzzle: "Puzzle", solution: str) -> NDArray[np.int8]:
    """Labels after each of M moves, int8 (M + 1, R, K), [0] the puzzle alone. Raises ValueError at an illegal move."""
    drawn = b"".join(labels(puzzle.ground, agent, boxes) for agent, boxes in puzzle.trace(solution))
    return np.frombuffer(drawn, np.int8).reshape(-1, puzzle.rows, puzzle.cols)
