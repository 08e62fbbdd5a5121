"""What a maze looks like, in states, pixels and words."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vrlvr.puzzles.grid import OFF_BOARD, neighbours

if TYPE_CHECKING:
    from vrlvr.puzzles.maze.puzzle import Puzzle

# Labels of a cell. The ground comes first, so that `label >= AGENT` asks for the agent.
WALL, FLOOR, GOAL, AGENT, AGENT_ON_GOAL = range(5)

# Any two looks differ by 85 levels rmse or more; within 40..210 a gain of 20 % saturates nothing.
_WALL, _FLOOR, _GOAL, _AGENT = (40, 40, 50), (210, 210, 210), (40, 200, 60), (40, 60, 210)
LOOKS = np.array(
    [(_WALL, _WALL), (_FLOOR, _FLOOR), (_GOAL, _FLOOR), (_FLOOR, _AGENT), (_GOAL, _AGENT)],
    np.uint8,
)


def prompt(puzzle: "Puzzle") -> str:
    """The task in words; the same for every maze of a size."""
    return (
        f"A maze of {puzzle.rows} by {puzzle.cols} square cells, seen from above. The blue disc moves one cell at a "
        "time, up, down, left or right, over the light floor, never through a dark wall, until it stands on the green "
        "goal; there it stays. Walls and goal do not change."
    )


def trace(puzzle: "Puzzle", solution: str) -> list[int]:
    """The cells that the agent stands on, start first.

    Raises ValueError at a move that is none of U, D, L, R or that walks off the board, into a wall or off the goal.
    """
    ways = neighbours(puzzle.rows, puzzle.cols)
    cells = [puzzle.start]
    for number, move in enumerate(solution, 1):
        cell = ways[move][cells[-1]] if move in ways else OFF_BOARD
        if cell == OFF_BOARD or puzzle.ground[cell] == WALL or cells[-1] == puzzle.goal:
            raise ValueError(f"move {number} of {solution!r:.60} is illegal; a move is U, D, L or R onto a free cell")
        cells.append(cell)
    return cells


def states(puzzle: "Puzzle", solution: str) -> NDArray[np.int8]:
    """Labels after each of M moves, int8 (M + 1, R, K), [0] the puzzle alone. Raises ValueError at an illegal move."""
    cells = trace(puzzle, solution)
    labels = np.tile(np.frombuffer(puzzle.ground, np.int8), (len(cells), 1))
    labels[np.arange(len(cells)), cells] = [AGENT_ON_GOAL if cell == puzzle.goal else AGENT for cell in cells]
    return labels.reshape(-1, puzzle.rows, puzzle.cols)
