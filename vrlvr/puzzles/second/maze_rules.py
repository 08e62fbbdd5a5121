"""The maze's rules as sets: all cells where the agent may be, moved on by a matrix each frame, kept where the frame agrees."""

import numpy as np
from numpy.typing import NDArray

from vrlvr.puzzles.maze.puzzle import Puzzle
from vrlvr.puzzles.maze.render import AGENT, AGENT_ON_GOAL, FLOOR, GOAL, LOOKS, WALL
from vrlvr.puzzles.second.palette import game_of
from vrlvr.puzzles.second.verdict import NOT_SOLVED, SecondVerdict, broken_by

GAME = game_of(LOOKS, [(FLOOR, AGENT), (GOAL, AGENT_ON_GOAL)])


def judge(puzzle: Puzzle, labels_TRK: NDArray[np.int16]) -> SecondVerdict:
    """Judges what `reading.read` gave.

    From one frame to the next the agent stays or goes to a free cell beside it; from the goal it goes nowhere. Each frame must
    look exactly like the puzzle with the agent on a cell that it can have reached.
    progress: 1 - d / d0, moves still to go from the nearest cell reached, and from the start.
    """
    shown = labels_TRK.reshape(len(labels_TRK), -1)
    ground = np.frombuffer(puzzle.ground, np.int8)
    cells = np.flatnonzero(ground != WALL)
    beside = _beside(cells, puzzle.cols)
    pictures = np.tile(ground, (len(cells), 1)).astype(np.int16)
    pictures[np.arange(len(cells)), cells] = np.where(cells == puzzle.goal, AGENT_ON_GOAL, AGENT)
    looks_like = (shown[:, None] == pictures).all(2)  # (T, free cells)

    may_go = beside | np.eye(len(cells), dtype=bool)
    may_go[cells == puzzle.goal] = cells == puzzle.goal
    to_go = _moves_to(cells == puzzle.goal, beside)
    here = cells == puzzle.start
    total = nearest = to_go[here].min()
    for frame, fits in enumerate(looks_like):
        here = fits & (here if frame == 0 else here @ may_go)
        if not here.any():
            return SecondVerdict(
                False, float(1 - nearest / total), broken_by(frame, shown[frame], bool(fits.any())), frame
            )
        nearest = min(nearest, to_go[here].min())
    if nearest == 0:  # no way leads off the goal
        return SecondVerdict(True, 1.0, None, None)
    return SecondVerdict(False, float(1 - nearest / total), NOT_SOLVED, len(shown) - 1)


def _beside(cells: NDArray[np.intp], cols: int) -> NDArray[np.bool_]:
    """Which of the cells share a side: one step apart in rows and columns together."""
    place = np.stack(np.divmod(cells, cols))
    return np.abs(place[:, :, None] - place[:, None, :]).sum(0) == 1


def _moves_to(goal: NDArray[np.bool_], beside: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Fewest moves from each cell to the goal, inf where there is no way; all cells within n moves are found in n rounds."""
    moves, within = np.where(goal, 0, np.inf), goal
    while (wider := within | within @ beside).sum() > within.sum():
        moves[wider & ~within] = moves[within].max() + 1
        within = wider
    return moves
