"""How large and how long the corpus's videos are, and how states become videos."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vrlvr import puzzles
from vrlvr.dataset import full_size_difficulties
from vrlvr.puzzles import ROOMS, Puzzle, board, flow_free, maze

Video = NDArray[np.uint8]  # video_TYXC
States = NDArray[np.int8]  # (T, R, K), labels of a room


@dataclass(frozen=True)
class Scene:
    """Size and length of a video: pixels, frames, and the frames that a move lasts."""

    height: int
    width: int
    num_frames: int
    frames_per_move: int


# A video from a puzzle (of the task that the maker is for), a scene and random numbers: an attack or an honest one.
Maker = Callable[[Any, Scene, np.random.Generator], Video]

SCENES = {
    "tiny": Scene(16, 20, 5, 1),  # the default training run
    "small": Scene(120, 208, 41, 2),
    "full": Scene(480, 832, 81, 4),
}


def puzzle_of(task: str, size: str, seed: int) -> Puzzle:
    """A test puzzle of a size in SCENES: the boards of the default run (tiny), or those of `vrlvr data`.

    Rooms with walls have at least one: about one tiny level in twenty has none, and nothing can go through it.
    """
    difficulty = _difficulties(task)[size != "tiny"]
    for index in count(seed, 1_000_000):
        puzzle = puzzles.generate(task, difficulty, 0, "test", index)
        if isinstance(puzzle, flow_free.Puzzle) or maze.render.WALL in puzzle.ground:
            return puzzle
    raise AssertionError("unreachable")


def another(puzzle: Puzzle, rng: np.random.Generator) -> Puzzle:
    """Another puzzle of the same task and board. Raises ValueError if `puzzle_of` makes no such boards."""
    for difficulty in _difficulties(puzzle.task):
        if (difficulty.rows, difficulty.cols) == (puzzle.rows, puzzle.cols):
            other = puzzles.generate(puzzle.task, difficulty, 1, "test", int(rng.integers(10**6)))
            return another(puzzle, rng) if np.array_equal(plan(other)[0], plan(puzzle)[0]) else other
    raise ValueError(f"no other {puzzle.task} is made on a board of {puzzle.rows}x{puzzle.cols}")


def _difficulties(task: str) -> list[Any]:
    """Of the tiny boards and of the others."""
    return [ROOMS[task].Difficulty(), full_size_difficulties()[task]]


def plan(puzzle: Puzzle) -> States:
    """The planner's states (M + 1, R, K), the first the puzzle alone."""
    return puzzles.room_of(puzzle).states(puzzle, puzzle.solution)


def timed(states: States, scene: Scene) -> States:
    """States (M + 1, R, K) spread over the scene's frames (T, R, K), frames_per_move or fewer each; the last is held.

    Raises ValueError where there are more states than frames.
    """
    pace = min(scene.frames_per_move, max(1, (scene.num_frames - 1) // max(1, len(states) - 1)))
    return board.hold(states, scene.num_frames, pace).astype(np.int8)


def draw(puzzle: Puzzle, scene: Scene, states: States) -> Video:
    """The states (T, R, K) as a video; each distinct one is drawn once."""
    stills, order = distinct(states)
    return puzzles.render_states(puzzle, stills, scene.height, scene.width)[order]


def distinct(states: States) -> tuple[States, NDArray[np.intp]]:
    """The states without repetition, and which of them each frame shows (T,)."""
    flat, order = np.unique(states.reshape(len(states), -1), axis=0, return_inverse=True)
    return flat.reshape(-1, *states.shape[1:]), order.reshape(-1)


def place(puzzle: Puzzle, scene: Scene) -> board.Layout:
    """Where the puzzle's cells lie in the scene's frames."""
    return board.layout(puzzle.rows, puzzle.cols, scene.height, scene.width)


def cell_box(puzzle: Puzzle, scene: Scene, cell: int) -> tuple[slice, slice]:
    """The pixel rows and columns of a cell."""
    at, (row, col) = place(puzzle, scene), divmod(cell, puzzle.cols)
    top, left = at.top + row * at.cell, at.left + col * at.cell
    return slice(top, top + at.cell), slice(left, left + at.cell)


def board_box(puzzle: Puzzle, scene: Scene) -> tuple[slice, slice]:
    """The pixel rows and columns of the whole board."""
    at = place(puzzle, scene)
    return slice(at.top, at.top + puzzle.rows * at.cell), slice(at.left, at.left + puzzle.cols * at.cell)
