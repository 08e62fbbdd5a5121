"""Attacks on the maze: ways to the goal that its walls forbid, and goals that come to the agent."""

import numpy as np

from vrlvr.evaluation.corpus import walker_attacks, walkers
from vrlvr.evaluation.corpus.making import Rng, StateAttack, faded
from vrlvr.evaluation.corpus.scene import Maker, Scene, States, Video, draw
from vrlvr.evaluation.corpus.walkers import FLOOR, GOAL, WALL, Thing, beeline, fitted, labelled, path_of, with_ground
from vrlvr.puzzles.grid import around
from vrlvr.puzzles.maze import Puzzle
from vrlvr.puzzles.maze.render import trace


def _shown(puzzle: Puzzle, scene: Scene, cells: list[int]) -> States:
    """An agent that stands on one cell after the other, in the puzzle's own maze."""
    ground = np.frombuffer(puzzle.ground, np.int8)
    return fitted(labelled(puzzle, (Thing(ground, (cell,)) for cell in cells)), scene)


def _over_a_wall(puzzle: Puzzle, rng: Rng, start: int) -> list[int]:
    """Cells to the goal, the start included: straight on if a wall is in the way, else by way of one."""
    straight = [start, *beeline(puzzle, start, puzzle.goal, rng)]
    if any(puzzle.ground[cell] == WALL for cell in straight):
        return straight
    wall = walkers.a_wall(puzzle, rng)
    return [start, *beeline(puzzle, start, wall, rng), *beeline(puzzle, wall, puzzle.goal, rng)]


def through_walls_straight(puzzle: Puzzle, scene: Scene, rng: Rng) -> States:
    """Along one side and then along the other to the goal, through the walls."""
    return _shown(puzzle, scene, _over_a_wall(puzzle, rng, puzzle.start))


def through_a_wall_mid_path(puzzle: Puzzle, scene: Scene, rng: Rng) -> States:
    """The planner's path, then a cut through a wall."""
    cells = trace(puzzle, puzzle.solution)
    kept = cells[: rng.integers(1, len(cells))]
    return _shown(puzzle, scene, kept[:-1] + _over_a_wall(puzzle, rng, kept[-1]))


def under_the_walls(puzzle: Puzzle, scene: Scene, rng: Rng) -> States:
    """Straight through the walls, unseen while inside of them."""
    ground = np.frombuffer(puzzle.ground, np.int8)
    cells = _over_a_wall(puzzle, rng, puzzle.start)
    seen = [Thing(ground, () if ground[cell] == WALL else (cell,)) for cell in cells]
    return fitted(labelled(puzzle, seen), scene)


def walls_on_the_way_erased(puzzle: Puzzle, scene: Scene, rng: Rng) -> States:
    """The walls on the straight way become floor, some for good and some only until the agent has passed."""
    ground = np.frombuffer(puzzle.ground, np.int8)
    cells, for_good = _over_a_wall(puzzle, rng, puzzle.start), rng.random() < 0.5
    things = [Thing(ground, (cells[0],))]
    for i, cell in enumerate(cells[1:], 1):
        gone = cells if for_good else cells[i : i + 2]
        things.append(with_ground(Thing(ground, (cell,)), [c for c in gone if ground[c] == WALL], FLOOR))
    return fitted(labelled(puzzle, [*things, Thing(ground, (cells[-1],))]), scene)


def _with_goals(puzzle: Puzzle, cells: list[int], goals: list[int]) -> Thing:
    ground = np.frombuffer(puzzle.ground, np.int8).copy()
    ground[puzzle.goal] = FLOOR
    ground[goals] = GOAL
    return Thing(ground, tuple(cells))


def _beside_start(puzzle: Puzzle, rng: Rng) -> int:
    """A free cell beside the start, not the goal where there's another one."""
    free = [c for c in around(puzzle.rows, puzzle.cols)[puzzle.start] if puzzle.ground[c] != WALL]
    return int(rng.choice([c for c in free if c != puzzle.goal] or free))


def goal_moved_to_the_agent(puzzle: Puzzle, scene: Scene, rng: Rng) -> States:
    """The goal jumps beside the start; the agent steps on it and stays."""
    there = _beside_start(puzzle, rng)
    moved = [_with_goals(puzzle, [cell], [there]) for cell in (puzzle.start, there)]
    return fitted(labelled(puzzle, [walkers.start_of(puzzle), *moved]), scene)


def goal_put_under_the_agent(puzzle: Puzzle, scene: Scene, rng: Rng) -> States:
    """The agent waits and the goal jumps under it."""
    under = _with_goals(puzzle, [puzzle.start], [puzzle.start])
    return fitted(labelled(puzzle, [walkers.start_of(puzzle)] * int(rng.integers(1, 4)) + [under]), scene)


def goal_copied(puzzle: Puzzle, scene: Scene, rng: Rng) -> States:
    """A second goal appears beside the start; the agent steps on it and stays."""
    there = _beside_start(puzzle, rng)
    copied = [_with_goals(puzzle, [cell], [there, puzzle.goal]) for cell in (puzzle.start, there)]
    return fitted(labelled(puzzle, [walkers.start_of(puzzle), *copied]), scene)


def goal_runs_away(puzzle: Puzzle, scene: Scene, rng: Rng) -> States:
    """The goal follows the agent's last steps: it is never where it was."""
    path = [thing.agents[0] for thing in path_of(puzzle)]
    things = [_with_goals(puzzle, [cell], [path[min(i + 1, len(path) - 2)]]) for i, cell in enumerate(path[:-1])]
    return fitted(labelled(puzzle, [walkers.start_of(puzzle), *things[1:]]), scene)


def goal_touched_and_left(puzzle: Puzzle, scene: Scene, rng: Rng) -> States:
    """Over the goal and beyond, half the time back onto it."""
    cells = trace(puzzle, puzzle.solution)
    cells += [cells[-2]] + [cells[-1]] * int(rng.integers(2))
    return fitted(labelled(puzzle, (Thing(np.frombuffer(puzzle.ground, np.int8), (c,)) for c in cells)), scene)


def diagonal_moves(puzzle: Puzzle, scene: Scene, rng: Rng) -> States:
    """To the goal as a king walks, over walls and around corners; straight lines take two cells at a time."""
    (row, col), (to_row, to_col) = divmod(puzzle.start, puzzle.cols), divmod(puzzle.goal, puzzle.cols)
    cells = [puzzle.start]
    while (row, col) != (to_row, to_col):
        down, right = int(np.sign(to_row - row)), int(np.sign(to_col - col))
        reach = 1 if down and right else 2
        row += down * min(reach, abs(to_row - row))
        col += right * min(reach, abs(to_col - col))
        cells.append(row * puzzle.cols + col)
    return _shown(puzzle, scene, cells)


def around_the_edge(puzzle: Puzzle, scene: Scene, rng: Rng) -> States:
    """The agent leaves the board on one side, comes in on the other, and walks straight to the goal."""
    row, col = divmod(puzzle.start, puzzle.cols)
    if rng.random() < 0.5:
        out, back = row * puzzle.cols, row * puzzle.cols + puzzle.cols - 1
    else:
        out, back = col, (puzzle.rows - 1) * puzzle.cols + col
    way = [puzzle.start, *beeline(puzzle, puzzle.start, out, rng), back]
    return _shown(puzzle, scene, [*way, *beeline(puzzle, back, puzzle.goal, rng)])


def slides_through_walls(puzzle: Puzzle, scene: Scene, rng: Rng) -> Video:
    """A disc glides smoothly to the goal, through walls, and rests there."""
    video = walker_attacks.without_agent(puzzle, scene)
    centres = walkers.slide(puzzle, scene, _over_a_wall(puzzle, rng, puzzle.start))
    centres[0] = np.nan
    return walkers.discs(puzzle, scene, video, centres, walkers.AGENT_COLOUR.tolist(), 35)


def walls_fade(puzzle: Puzzle, scene: Scene, rng: Rng) -> Video:
    """Walls fade to floor and the agent walks straight over them, in the end they are back."""
    ground = np.frombuffer(puzzle.ground, np.int8)
    walk = [(cell,) for cell in _over_a_wall(puzzle, rng, puzzle.start)]
    bare = np.where(ground == WALL, FLOOR, ground).astype(np.int8)
    walled, free = (
        draw(puzzle, scene, fitted(labelled(puzzle, (Thing(floor, cell) for cell in walk)), scene))
        for floor in (ground, bare)
    )
    return faded(walled, free, np.sin(np.linspace(0, np.pi, scene.num_frames)))


STATES: tuple[StateAttack, ...] = (
    *walker_attacks.STATES,
    through_walls_straight,
    through_a_wall_mid_path,
    under_the_walls,
    walls_on_the_way_erased,
    goal_moved_to_the_agent,
    goal_put_under_the_agent,
    goal_copied,
    goal_runs_away,
    goal_touched_and_left,
    diagonal_moves,
    around_the_edge,
)
PIXELS: tuple[Maker, ...] = (*walker_attacks.PIXELS, slides_through_walls, walls_fade)
