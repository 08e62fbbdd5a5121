"""Random Sokoban levels, played backwards from the solved state so that every one can be solved."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from vrlvr.puzzles import grid
from vrlvr.puzzles.chance import Draw, pick, stable_draws
from vrlvr.puzzles.grid import OPPOSITE, distances_from, neighbours
from vrlvr.puzzles.sokoban.puzzle import Puzzle, State
from vrlvr.puzzles.sokoban.render import FLOOR, TARGET, WALL, labels
from vrlvr.puzzles.sokoban.solve import search

_MAX_TRIES = 20_000
_MAX_STATES = 20_000  # levels harder than this for the planner are passed over


@dataclass(frozen=True)
class Difficulty:
    """Sizes of a level. Raises ValueError where no level could exist.

    min_plan, max_plan: fewest and most moves of the planner's solution. min_pushes: fewest pushes in it.
    wall_density: share of the cells that are walls, on average; the board's edge is closed besides.
    """

    rows: int = 4
    cols: int = 5
    boxes: int = 1
    min_plan: int = 2
    max_plan: int = 4
    min_pushes: int = 1
    wall_density: float = 0.25

    def __post_init__(self) -> None:
        if not (3 <= self.rows <= 255 and 3 <= self.cols <= 255):
            raise ValueError(f"a level of {self.rows}x{self.cols} cells must have 3 to 255 rows and columns")
        if not 1 <= self.boxes <= min(5, self.max_plan):
            raise ValueError(f"boxes={self.boxes} must be from 1 to 5, and at most max_plan={self.max_plan}")
        if not 0 <= self.wall_density <= 0.5:
            raise ValueError(f"wall_density={self.wall_density} must be a share from 0 to 0.5")
        if 2 * self.boxes + 1 > self.rows * self.cols * (1 - self.wall_density) / 2:
            raise ValueError(
                f"{self.boxes} boxes crowd a board of {self.rows}x{self.cols}; use fewer or a larger board"
            )
        if not 1 <= self.min_pushes <= self.min_plan <= self.max_plan:
            raise ValueError(
                f"min_pushes={self.min_pushes}, min_plan={self.min_plan}, max_plan={self.max_plan} must ascend from 1"
            )


def generate(difficulty: Difficulty, rng: np.random.Generator, accept: Callable[[bytes], bool]) -> Puzzle:
    """A level within the difficulty whose canonical key `accept` takes.

    Walls and targets are drawn, boxes put on the targets, and moves taken back at random; then the planner finds the
    shortest way, which is what counts as the plan. Raises ValueError if no level was found in 20,000 tries.
    """
    rows, cols = difficulty.rows, difficulty.cols
    draw = stable_draws(rng)
    for _ in range(_MAX_TRIES):
        ground = _ground(difficulty, draw)
        state = _play_backwards(difficulty, ground, draw)
        if state is None or not accept(grid.canonical(labels(ground, *state), rows, cols)):
            continue
        plan = search(ground, *state, rows, cols, _MAX_STATES)
        if plan is not None and difficulty.min_plan <= len(plan) <= difficulty.max_plan:
            puzzle = Puzzle(rows, cols, ground, *state, plan)
            if _pushes(puzzle) >= difficulty.min_pushes:
                return puzzle
    raise ValueError(f"no level within {difficulty} in {_MAX_TRIES} tries; widen the range of plans or the board")


def _ground(difficulty: Difficulty, draw: Draw) -> bytes:
    """Walls by chance, then targets on free cells, as far as there are any."""
    cells = range(difficulty.rows * difficulty.cols)
    ground = bytearray(WALL if draw() < difficulty.wall_density else FLOOR for _ in cells)
    free = [cell for cell in cells if ground[cell] == FLOOR]
    for _ in range(min(difficulty.boxes, len(free))):
        ground[free.pop(int(draw() * len(free)))] = TARGET
    return bytes(ground)


def _play_backwards(difficulty: Difficulty, ground: bytes, draw: Draw) -> State | None:
    """A state at most `max_plan` moves before the solved one: boxes are pulled at random, then the agent walks off.

    Boxes on targets are pulled first; None if one is left there, for every box to need a push.
    """
    ways = neighbours(difficulty.rows, difficulty.cols)
    backwards = [(way, ways[OPPOSITE[name]]) for name, way in ways.items()]
    boxes = {cell for cell, label in enumerate(ground) if label == TARGET}
    floor = [cell for cell, label in enumerate(ground) if label == FLOOR]
    if len(boxes) < difficulty.boxes or not floor:
        return None
    # The greater of two draws: many ways back turn out to be detours, and this evens out the lengths of the plans.
    fewest = max(difficulty.boxes, difficulty.min_pushes)
    lengths = range(max(fewest, difficulty.min_plan), difficulty.max_plan + 1)
    moves = max(pick(draw, lengths), pick(draw, lengths))
    walks = dict.fromkeys(
        _walks(difficulty, ground, boxes, pick(draw, floor)), 0
    )  # how the agent got here is no matter
    for _ in range(pick(draw, range(fewest, moves + 1))):
        # A pull: the moves left after it, the box, the cell that it comes to, the cell that the agent comes to.
        pulls = [
            (moves - walk - 1, way[stand], stand, back[stand])
            for stand, walk in walks.items()
            if walk < moves
            for way, back in backwards
            if way[stand] in boxes and back[stand] in walks
        ]
        if not pulls:
            break
        moves, box, stand, agent = pick(draw, [pull for pull in pulls if ground[pull[1]] == TARGET] or pulls)
        boxes = boxes - {box} | {stand}
        walks = _walks(difficulty, ground, boxes, agent)
    if any(ground[box] == TARGET for box in boxes):
        return None
    return pick(draw, [cell for cell, walk in walks.items() if walk <= moves]), tuple(sorted(boxes))


def _walks(difficulty: Difficulty, ground: bytes, boxes: set[int], agent: int) -> dict[int, int]:
    """Moves to every cell that the agent can walk to without a push."""
    free = bytearray(ground)
    for box in boxes:
        free[box] = WALL
    return distances_from(agent, free, difficulty.rows, difficulty.cols)


def _pushes(puzzle: Puzzle) -> int:
    """Pushes in the planner's solution."""
    return sum(before[1] != after[1] for before, after in pairwise(puzzle.trace(puzzle.solution)))
