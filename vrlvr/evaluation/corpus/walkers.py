"""What attacks on the two rooms in which an agent walks (Maze, Sokoban) share: boards from things, and agents in pixels."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vrlvr.evaluation.corpus.common import Rng, StateAttack, darkened, faded, solution
from vrlvr.evaluation.corpus.scene import Maker, Scene, States, Video, cell_box, draw, place
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


# ------------------------------------------------------------------------------------ attacks on either room, in states


def agent_doubled(puzzle: Walked, scene: Scene, rng: Rng) -> States:
    """One agent stays at the start, another one walks the solution."""
    start, path = start_of(puzzle), path_of(puzzle)
    return fitted(labelled(puzzle, (Thing(t.ground, start.agents + t.agents, t.boxes) for t in path)), scene)


def agent_trail(puzzle: Walked, scene: Scene, rng: Rng) -> States:
    """The agent stays on every cell where it was; half the time the trail vanishes at the end."""
    path = path_of(puzzle)
    trail = [
        Thing(t.ground, tuple({c for u in path[: i + 1] for c in u.agents} - set(t.boxes)), t.boxes)
        for i, t in enumerate(path)
    ]
    return fitted(labelled(puzzle, trail + path[-1:] * int(rng.integers(2))), scene)


def agent_blinks(puzzle: Walked, scene: Scene, rng: Rng) -> States:
    """The agent is nowhere for a while, and back where the plan has it in the end."""
    states = solution(puzzle, scene)
    bare = labelled(puzzle, (Thing(t.ground, (), t.boxes) for t in path_of(puzzle)))
    first = int(rng.integers(1, scene.num_frames - 1))
    states[first : first + int(rng.integers(1, 1 + scene.num_frames // 3))] = fitted(bare, scene)[first]
    return states


def agent_gone(puzzle: Walked, scene: Scene, rng: Rng) -> States:
    """No agent after the first frame, but for the last one."""
    states = solution(puzzle, scene)
    states[1:-1] = fitted(labelled(puzzle, (Thing(t.ground, (), t.boxes) for t in path_of(puzzle))), scene)[1:-1]
    return states


def walls_moved(puzzle: Walked, scene: Scene, rng: Rng) -> States:
    """A wall becomes floor and a floor becomes a wall, while the solution is played."""
    path, wall = path_of(puzzle), a_wall(puzzle, rng)
    used = {cell for t in path for cell in t.agents + t.boxes}
    moved = [with_ground(t, [wall], FLOOR) for t in path]
    if spare := sorted(set(np.flatnonzero(path[0].ground == FLOOR).tolist()) - used):
        moved = [with_ground(t, [int(rng.choice(spare))], WALL) for t in moved]
    return fitted(labelled(puzzle, path[:1] + moved[1:]), scene)


def walls_erased(puzzle: Walked, scene: Scene, rng: Rng) -> States:
    """All walls become floor after the first frame."""
    path = path_of(puzzle)
    bare = np.where(path[0].ground == WALL, FLOOR, path[0].ground).astype(np.int8)
    return fitted(labelled(puzzle, path[:1] + [Thing(bare, t.agents, t.boxes) for t in path[1:]]), scene)


def goals_erased(puzzle: Walked, scene: Scene, rng: Rng) -> States:
    """What is to be reached vanishes while the solution is played."""
    path = path_of(puzzle)
    bare = np.where(path[0].ground == GOAL, FLOOR, path[0].ground).astype(np.int8)
    first = int(rng.integers(1, len(path)))
    return fitted(labelled(puzzle, path[:first] + [Thing(bare, t.agents, t.boxes) for t in path[first:]]), scene)


def goals_everywhere(puzzle: Walked, scene: Scene, rng: Rng) -> States:
    """All floor becomes goal."""
    path = path_of(puzzle)
    all_goals = np.where(path[0].ground == FLOOR, GOAL, path[0].ground).astype(np.int8)
    return fitted(labelled(puzzle, path[:1] + [Thing(all_goals, t.agents, t.boxes) for t in path[:]]), scene)


# ------------------------------------------------------------------------------------ and in pixels


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


def without_agent(puzzle: Walked, scene: Scene) -> Video:
    """The planner's video with nobody in it, after the right first frame."""
    bare = fitted(labelled(puzzle, (Thing(t.ground, (), t.boxes) for t in path_of(puzzle))), scene)
    bare[0] = solution(puzzle, scene)[0]
    return draw(puzzle, scene, bare)


def agent_centres(puzzle: Walked, scene: Scene) -> NDArray[np.float64]:
    """Centres (T, 2) of the planner's agent, none in the first frame."""
    agents = board.hold(np.array([t.agents[0] for t in path_of(puzzle)]), scene.num_frames, _pace(puzzle, scene))
    centres = np.array([middle(puzzle, scene, int(cell)) for cell in agents])
    centres[0] = np.nan
    return centres


def _pace(puzzle: Walked, scene: Scene) -> int:
    moves = len(puzzle.solution)
    return max(1, min(scene.frames_per_move, (scene.num_frames - 1) // moves))


def agent_recoloured(puzzle: Walked, scene: Scene, rng: Rng) -> Video:
    """The solution, with an agent of another colour from some frame on."""
    video, centres = draw(puzzle, scene, solution(puzzle, scene)), agent_centres(puzzle, scene)
    centres[: rng.integers(1, 1 + scene.num_frames // 2)] = np.nan
    return discs(puzzle, scene, video, centres, OTHER_COLOURS[rng.integers(len(OTHER_COLOURS))], 35)


def tiny_agent(puzzle: Walked, scene: Scene, rng: Rng) -> Video:
    """The solution, played by an agent of a third of its size."""
    return discs(puzzle, scene, without_agent(puzzle, scene), agent_centres(puzzle, scene), AGENT_COLOUR.tolist(), 11)


def huge_agent(puzzle: Walked, scene: Scene, rng: Rng) -> Video:
    """The solution, played by an agent of three times its size."""
    return discs(puzzle, scene, without_agent(puzzle, scene), agent_centres(puzzle, scene), AGENT_COLOUR.tolist(), 105)


def agent_fades_through_walls(puzzle: Walked, scene: Scene, rng: Rng) -> Video:
    """The agent fades slowly from an early cell to where the plan ends; boxes too."""
    states = solution(puzzle, scene)
    two = int(rng.integers(0, max(1, len(path_of(puzzle)) - 2)))
    before, after = draw(puzzle, scene, labelled(puzzle, [path_of(puzzle)[two], path_of(puzzle)[-1]]))
    first = int((states == labelled(puzzle, [path_of(puzzle)[two]])).all((1, 2)).argmax())
    video = draw(puzzle, scene, states)
    video[first:] = faded(before, after, np.linspace(0, 1, scene.num_frames - first))
    return video


STATES: tuple[StateAttack, ...] = (
    agent_doubled,
    agent_trail,
    agent_blinks,
    agent_gone,
    walls_moved,
    walls_erased,
    goals_erased,
    goals_everywhere,
)
PIXELS: tuple[Maker, ...] = (
    agent_recoloured,
    tiny_agent,
    huge_agent,
    agent_fades_through_walls,
    darkened(agent_recoloured),
)
