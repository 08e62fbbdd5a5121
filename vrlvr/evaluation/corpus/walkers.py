"""What attacks on the two rooms in which an agent walks (Maze, Sokoban) share: boards from things, and agents in pixels."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vrlvr.evaluation.corpus.making import Rng
from vrlvr.evaluation.corpus.scene import Scene, States, Video, cell_box, place
from vrlvr.puzzles import board, maze, sokoban

Walked = maze.Puzzle | sokoban.Puzzle
WALL, FLOOR, GOAL = 0, 1, 2  # labels of the ground in both rooms; GOAL is a target in Sokoban
AGENT_COLOUR = maze.LOOKS[maze.render.AGENT, 1]
# None nearer than 60 levels (rms over rim and core) to the agent, nor its core to the other discs.
OTHER_COLOURS = ((210, 40, 40), (210, 210, 40), (210, 40, 210), (40, 210, 210), (120, 0, 60), (255, 255, 255))


@dataclass(frozen=True)
class Thing:
    """What lies on the ground at some cells. agent, box: the label on the floor; the next one is that on a goal."""

    ground: NDArray[np.int8]  # (R * K,)
    agents: tuple[int, ...]
    boxes: tuple[int, ...] = ()


def start_of(puzzle: Walked) -> Thing:
    """The puzzle's own first state."""
    ground = np.frombuffer(puzzle.ground, np.int8)
    if isinstance(puzzle, maze.Puzzle):
        return Thing(ground, (puzzle.start,))
    return Thing(ground, (puzzle.agent,), puzzle.boxes)


def path_of(puzzle: Walked) -> list[Thing]:
    """The planner's states as things."""
    ground = np.frombuffer(puzzle.ground, np.int8)
    if isinstance(puzzle, maze.Puzzle):
        return [Thing(ground, (cell,)) for cell in maze.render.trace(puzzle, puzzle.solution)]
    return [Thing(ground, (agent,), boxes) for agent, boxes in puzzle.trace(puzzle.solution)]


def labelled(puzzle: Walked, things: Iterable[Thing]) -> States:
    """Things as labels (T, R, K). Where an agent stands on a box, the agent is seen; things on a wall stand on floor."""
    agent = maze.render.AGENT if puzzle.task == "maze" else sokoban.render.AGENT
    states = []
    for thing in things:
        state = thing.ground.copy()
        for label, cells in ((sokoban.render.BOX, thing.boxes), (agent, thing.agents)):
            for cell in cells:
                state[cell] = label + int(thing.ground[cell] == GOAL)
        states.append(state)
    return np.stack(states).reshape(-1, puzzle.rows, puzzle.cols)


def fitted(states: States, scene: Scene) -> States:
    """States (M, R, K) over the scene's frames, frames_per_move each and the last one held; some are left out where
    there are more than frames."""
    pace = max(1, min(scene.frames_per_move, (scene.num_frames - 1) // max(1, len(states) - 1)))
    if len(states) > scene.num_frames:
        states = states[np.linspace(0, len(states) - 1, scene.num_frames).round().astype(int)]
    return board.hold(states, scene.num_frames, pace).astype(np.int8)


def beeline(puzzle: Walked, a: int, b: int, rng: Rng) -> list[int]:
    """Cells from a to b, first along one side and then along the other, whatever stands there; a excluded."""
    (row, col), (to_row, to_col) = divmod(a, puzzle.cols), divmod(b, puzzle.cols)
    cells = []
    ways = [(int(np.sign(to_row - row)), 0)] * abs(to_row - row) + [(0, int(np.sign(to_col - col)))] * abs(to_col - col)
    for down, right in ways if rng.random() < 0.5 else ways[::-1]:
        row, col = row + down, col + right
        cells.append(row * puzzle.cols + col)
    return cells


def a_wall(puzzle: Walked, rng: Rng) -> int:
    """One of the puzzle's walls."""
    return int(rng.choice(np.flatnonzero(np.frombuffer(puzzle.ground, np.int8) == WALL)))


def a_floor(puzzle: Walked, rng: Rng) -> int:
    """A floor cell with nothing on it at the start."""
    thing = start_of(puzzle)
    free = np.flatnonzero(thing.ground == FLOOR)
    return int(rng.choice(free[~np.isin(free, thing.agents + thing.boxes)]))


def with_ground(thing: Thing, cells: Sequence[int], label: int) -> Thing:
    """The same things on another ground."""
    ground = thing.ground.copy()
    ground[list(cells)] = label
    return Thing(ground, thing.agents, thing.boxes)


def discs(
    puzzle: Walked, scene: Scene, video: Video, centres: NDArray[np.float64], colour: Sequence[int], percent: float
) -> Video:
    """The video with a disc drawn in each frame that has one.

    centres: (T, 2), pixel row and column, NaN for none. percent: the radius, of a cell's side (35: the agent's own).
    """
    radius = place(puzzle, scene).cell * percent / 100
    ys, xs = np.arange(scene.height)[:, None] + 0.5, np.arange(scene.width) + 0.5
    for frame, (y, x) in enumerate(centres):
        if not np.isnan(y):
            video[frame][(ys - y) ** 2 + (xs - x) ** 2 <= radius**2] = colour
    return video


def middle(puzzle: Walked, scene: Scene, cell: int) -> tuple[float, float]:
    """The pixel row and column of a cell's centre."""
    rows, columns = cell_box(puzzle, scene, cell)
    return (rows.start + rows.stop) / 2, (columns.start + columns.stop) / 2


def slide(puzzle: Walked, scene: Scene, cells: Sequence[int]) -> NDArray[np.float64]:
    """Centres (T, 2) of a disc that slides evenly over the cells' middles, from the second frame on."""
    corners = np.array([middle(puzzle, scene, cell) for cell in cells])
    at = np.linspace(0, len(cells) - 1, scene.num_frames)
    return np.stack([np.interp(at, np.arange(len(cells)), corners[:, axis]) for axis in (0, 1)], 1)
