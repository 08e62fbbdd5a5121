"""A second verifier, written apart from the first: other reading, other rules' code, so that one's blind spot is seen by the
other. It shares the puzzles' facts with it (their dataclasses, looks and layout), no code that reads or judges.

    reading.py           every pixel votes for a tone; cells need clear majorities in their areas
    maze_rules.py        the set of cells where the agent may be
    sokoban_rules.py     simulation of the four moves
    flow_free_rules.py   laying cells on two strands in the order of their appearance
"""

import numpy as np
from numpy.typing import NDArray

from vrlvr.puzzles import Puzzle, maze, room_of, sokoban
from vrlvr.puzzles.second import flow_free_rules, maze_rules, sokoban_rules
from vrlvr.puzzles.second.reading import read
from vrlvr.puzzles.second.verdict import SecondVerdict

__all__ = ["SecondVerdict", "second_verify"]


def second_verify(puzzle: Puzzle, video_TYXC: NDArray[np.uint8], size: tuple[int, int] | None = None) -> SecondVerdict:
    """Judges video_TYXC (uint8 RGB) of any size that the board fits, from all its pixels.

    size: height and width in which the board was drawn, if the video was scaled since. Raises ValueError where the board does
    not fit, or the array is no video.
    """
    if video_TYXC.dtype != np.uint8 or video_TYXC.ndim != 4 or video_TYXC.shape[3] != 3 or not len(video_TYXC):
        raise ValueError(f"video {video_TYXC.dtype} {video_TYXC.shape} must be uint8 (1 or more frames, Y, X, 3)")
    start_RK = room_of(puzzle).states(puzzle, puzzle.solution)[0]
    if isinstance(puzzle, maze.Puzzle):
        return maze_rules.judge(puzzle, read(video_TYXC, start_RK, maze_rules.GAME, size))
    if isinstance(puzzle, sokoban.Puzzle):
        return sokoban_rules.judge(puzzle, read(video_TYXC, start_RK, sokoban_rules.GAME, size))
    return flow_free_rules.judge(puzzle, read(video_TYXC, start_RK, flow_free_rules.GAME, size))
