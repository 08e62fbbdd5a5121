"""The maze's rules as sets: all cells where the agent may be, widened by a step each frame and kept where the frame agrees."""

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
    progress: 1 - d / d0, moves still to go from the nearest cell reached, and from the start. Raises ValueError where d0 is
    infinite.
    """
    ground = np.frombuffer(puzzle.ground, np.int8).reshape(puzzle.rows, puzzle.cols)
    free, goal = ground != WALL, ground == GOAL
    changed = labels_TRK != ground
    agent = changed & free & (labels_TRK == np.where(goal, AGENT_ON_GOAL, AGENT))
    agent &= (changed.sum((1, 2)) == 1)[:, None, None]  # nothing else may differ from the bare ground

    to_go = _moves_to(goal, free)
    here = np.zeros_like(free)
    here.flat[puzzle.start] = True
    total = nearest = to_go[here].min()
    if not np.isfinite(total):
        raise ValueError("the maze has no solution: no way leads from its start to its goal")
    for frame, seen in enumerate(agent):
        here = seen & (here if frame == 0 else here | _beside(here & ~goal))
        if not here.any():
            rule = broken_by(frame, labels_TRK[frame], bool(seen.any()))
            return SecondVerdict(False, float(1 - nearest / total), rule, frame)
        nearest = min(nearest, to_go[here].min())
    if nearest == 0:  # no way leads off the goal
        return SecondVerdict(True, 1.0, None, None)
    return SecondVerdict(False, float(1 - nearest / total), NOT_SOLVED, len(labels_TRK) - 1)


def _beside(cells_RK: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The cells that share a side with one of these."""
    beside = np.zeros_like(cells_RK)
    beside[1:] |= cells_RK[:-1]
    beside[:-1] |= cells_RK[1:]
    beside[:, 1:] |= cells_RK[:, :-1]
    beside[:, :-1] |= cells_RK[:, 1:]
    return beside


def _moves_to(goal_RK: NDArray[np.bool_], free_RK: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Fewest moves from each cell to the goal, inf where there is no way: in round n all cells n moves away are found."""
    moves, found = np.full(goal_RK.shape, np.inf), goal_RK
    away = 0
    while found.any():
        moves[found] = away
        away += 1
        found = _beside(found) & free_RK & np.isinf(moves)
    return moves
