"""Random mazes of any size by one rule: corridors grown cell by cell, then some cells flipped."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vrlvr.puzzles.chance import Draw, pick, stable_draws
from vrlvr.puzzles.grid import around, distances_from
from vrlvr.puzzles.maze.puzzle import Puzzle, key
from vrlvr.puzzles.maze.render import FLOOR, GOAL, WALL
from vrlvr.puzzles.maze.solve import descend

_MAX_TRIES = 10_000


@dataclass(frozen=True)
class Difficulty:
    """Sizes of a maze. Raises ValueError where no maze could exist.

    min_plan, max_plan: fewest and most moves of the shortest path.
    flips: share of the cells that turn from wall to floor or back after the corridors are grown. 0 leaves a perfect
    maze, with one path between any two cells; more gives loops, dead pockets and many more distinct small boards.
    """

    rows: int = 4
    cols: int = 5
    min_plan: int = 2
    max_plan: int = 4
    flips: float = 0.1

    def __post_init__(self) -> None:
        if not (2 <= self.rows <= 255 and 2 <= self.cols <= 255):
            raise ValueError(f"a maze of {self.rows}x{self.cols} cells must have 2 to 255 rows and columns")
        if not 1 <= self.min_plan <= self.max_plan:
            raise ValueError(f"min_plan={self.min_plan} must be from 1 to max_plan={self.max_plan}")
        if self.min_plan > self.rows * self.cols // 2:
            raise ValueError(
                f"min_plan={self.min_plan} is longer than corridors of a {self.rows}x{self.cols} maze; "
                f"use at most {self.rows * self.cols // 2} or a larger board"
            )
        if not 0 <= self.flips <= 0.5:
            raise ValueError(f"flips={self.flips} must be a share from 0 to 0.5")


def generate(difficulty: Difficulty, rng: np.random.Generator, accept: Callable[[bytes], bool]) -> Puzzle:
    """A maze within the difficulty whose canonical key `accept` takes.

    The length of the plan is drawn before the start, lest short plans, which have more pairs of cells, prevail.
    Raises ValueError if none was found in 10,000 tries.
    """
    rows, cols = difficulty.rows, difficulty.cols
    draw = stable_draws(rng)
    lengths = range(difficulty.min_plan, difficulty.max_plan + 1)
    for _ in range(_MAX_TRIES):
        floor = _carve(difficulty, draw)
        free = [cell for cell, label in enumerate(floor) if label == FLOOR]
        if not free:
            continue
        goal = pick(draw, free)
        to_goal = distances_from(goal, floor, rows, cols)
        plan = pick(draw, lengths)
        starts = [cell for cell, moves in to_goal.items() if moves == plan]
        if not starts:
            continue
        start = pick(draw, starts)
        ground = floor[:goal] + bytes([GOAL]) + floor[goal + 1 :]
        if accept(key(ground, start, rows, cols)):
            return Puzzle(rows, cols, ground, start, descend(to_goal, start, rows, cols))
    raise ValueError(
        f"no maze within {difficulty} in {_MAX_TRIES} tries; widen the range of plans or enlarge the board"
    )


def _carve(difficulty: Difficulty, draw: Draw) -> bytes:
    """Grows a tree of corridors, then flips some cells.

    The growth goes depth first from a random cell: a wall becomes floor if exactly one cell beside it is floor.
    """
    beside = around(difficulty.rows, difficulty.cols)
    ground = bytearray([WALL]) * len(beside)
    stack = [pick(draw, range(len(beside)))]
    ground[stack[0]] = FLOOR
    while stack:
        ways = [cell for cell in beside[stack[-1]] if ground[cell] == WALL and _is_tip(cell, ground, beside)]
        if not ways:
            stack.pop()
            continue
        stack.append(pick(draw, ways))
        ground[stack[-1]] = FLOOR
    return bytes((FLOOR if label == WALL else WALL) if draw() < difficulty.flips else label for label in ground)


def _is_tip(cell: int, ground: bytearray, beside: tuple[tuple[int, ...], ...]) -> bool:
    """Whether exactly one of the cells beside it is floor."""
    return sum(ground[other] == FLOOR for other in beside[cell]) == 1
