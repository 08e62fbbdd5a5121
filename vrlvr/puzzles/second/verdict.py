"""What the second verifier says of a video, and why it goes no further."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vrlvr.puzzles.second.reading import UNCLEAR

START_CHANGED = "start_changed"  # frame 0 is not the puzzle
UNREADABLE = "unreadable"  # a cell shows no look
IMPOSSIBLE_BOARD = "impossible_board"  # no state of the game looks like that
ILLEGAL_MOVE = "illegal_move"  # a state that no legal move leads to
NOT_SOLVED = "not_solved"  # lawful, but the last frame is no solution


@dataclass(frozen=True)
class SecondVerdict:
    """solved: lawful in every frame, and solved in the last. progress: in [0, 1], how near the lawful frames came to it.

    broken_rule / frame: the first rule that the video breaks, one of this file's, and the frame that shows it; None if solved.
    """

    solved: bool
    progress: float
    broken_rule: str | None
    frame: int | None


def broken_by(frame: int, labels_N: NDArray[np.int16], possible: bool) -> str:
    """The rule that a frame breaks, given its labels. possible: some state of the game looks like that."""
    if (labels_N == UNCLEAR).any():
        return UNREADABLE
    if frame == 0:
        return START_CHANGED
    return ILLEGAL_MOVE if possible else IMPOSSIBLE_BOARD
