"""Videos in which what moves glides from cell to cell, as hosted systems animate it.

The verifiers want a board in every frame, and a disc between two cells is none. So such a video is judged a second time, with
every glide taken for the move that it ends in, and gets a row of its own beside the strict one. Rewards never come from here.
"""

import numpy as np
from numpy.typing import NDArray

from vrlvr.puzzles import Puzzle, room_of
from vrlvr.puzzles.board import UNREADABLE
from vrlvr.puzzles.verdict import Verdict

MAX_FRAMES = 30  # of a glide: a second or more at the frame rates of such systems


def judge_gliding(
    puzzle: Puzzle, labels_TRK: NDArray[np.int16], rmse_TRK: NDArray[np.float32], verdict: Verdict
) -> Verdict:
    """The verdict on what `puzzles.read` gives, where frames may show a move on its way. verdict: the strict one.

    They must lie between two boards that are one legal move apart, be at most MAX_FRAMES, and show in every cell that the move
    does not change what it showed before: all that a glide can hide is how the move itself was drawn.
    """
    judge = room_of(puzzle).judge
    while start := _broken_at(verdict):
        for end in range(start + 1, min(start + MAX_FRAMES + 1, len(labels_TRK))):
            if _is_on_its_way(labels_TRK, start, end):
                held = labels_TRK.copy()
                held[start:end] = labels_TRK[start - 1]
                judged = judge(puzzle, held, rmse_TRK)
                broken_at = _broken_at(judged)
                if not broken_at or broken_at > end:
                    labels_TRK, verdict = held, judged
                    break
        else:
            return verdict
    return verdict


def _broken_at(verdict: Verdict) -> int:
    """The frame that breaks a rule; 0 if none after the first does."""
    return 0 if verdict.broken_rule == "not_solved" else verdict.frame or 0


def _is_on_its_way(labels_TRK: NDArray[np.int16], start: int, end: int) -> bool:
    """Whether frames start to end - 1 show the board before, save for cells that the board of frame `end` changes: at least
    one of those can't be read. A frame that can be read whole is a board, and judged as one."""
    between, before = labels_TRK[start:end], labels_TRK[start - 1]
    same = before == labels_TRK[end]
    boards = (between != UNREADABLE).all((1, 2)) & (between != before).any((1, 2))
    return not boards.any() and bool((between[:, same] == before[same]).all())
