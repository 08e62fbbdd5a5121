"""How FlowFree looks: the labels of its cells, their colours, the planner's states and the prompt."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vrlvr.puzzles.flow_free.puzzle import MAX_COLOURS, Path, Puzzle

EMPTY = 0
_LIGHT, _DARK = (215, 215, 215), (40, 40, 40)
# Corners of the colour cube first (101 levels or more apart in the reader's measure), each with the core that tells its
# endpoint from its path. The last two are closer: white's endpoint to other dark cores 71, grey's to its own path 62.
_COLOURS = (
    ("red", (215, 40, 40), _LIGHT),
    ("green", (40, 215, 40), _LIGHT),
    ("blue", (40, 40, 215), _LIGHT),
    ("yellow", (215, 215, 40), _DARK),
    ("magenta", (215, 40, 215), _DARK),
    ("cyan", (40, 215, 215), _DARK),
    ("white", (215, 215, 215), _DARK),
    ("grey", (128, 128, 128), _LIGHT),
)
assert len(_COLOURS) == MAX_COLOURS


def endpoint_label(colour: int) -> int:
    """The label of a cell that shows an endpoint of a colour."""
    return 1 + 2 * colour


def path_label(colour: int) -> int:
    """The label of a cell that shows the path of a colour."""
    return 2 + 2 * colour


LOOKS = np.array(
    [(_DARK, (72, 72, 72))] + [look for _, rim, core in _COLOURS for look in ((rim, core), (rim, rim))], np.uint8
)


def num_moves(longest_path: int, cells_per_move: int) -> int:
    """Moves until a path of this many cells, both endpoints included, is drawn."""
    return -(-(longest_path - 2) // cells_per_move)


def states(puzzle: Puzzle, solution: Sequence[Path]) -> NDArray[np.int8]:
    """Labels int8 (M+1, R, K) after each of M moves: all colours grow at once from their first endpoints."""
    step = puzzle.cells_per_move
    moves = num_moves(max(map(len, solution)), step)
    labels = np.full((moves + 1, puzzle.rows * puzzle.cols), EMPTY, np.int8)
    for colour, path in enumerate(solution):
        labels[:, [path[0], path[-1]]] = endpoint_label(colour)
        for i, cell in enumerate(path[1:-1]):
            labels[1 + i // step :, cell] = path_label(colour)
    return labels.reshape(moves + 1, puzzle.rows, puzzle.cols)


def prompt(puzzle: Puzzle) -> str:
    """The instruction that goes with the first frame."""
    names = [name for name, _, _ in _COLOURS[: len(puzzle.endpoints)]]
    listed = f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]
    return (
        f"A Flow Free puzzle on a {puzzle.rows} by {puzzle.cols} grid with pairs of ringed endpoints in {listed}. "
        "Every pair is connected by a path of its own colour that grows cell by cell through neighbouring cells. "
        "Paths never cross or overlap, and in the end they fill the whole grid. Static camera, no other change."
    )
