"""Attacks on both rooms in which an agent walks: agents that double, blink or change, walls and goals that come and go."""

import numpy as np
from numpy.typing import NDArray

from vrlvr.evaluation.corpus.making import Rng, StateAttack, darkened, faded, solution
from vrlvr.evaluation.corpus.scene import Maker, Scene, States, Video, draw, place
from vrlvr.evaluation.corpus.walkers import (
    AGENT_COLOUR,
    FLOOR,
    GOAL,
    OTHER_COLOURS,
    WALL,
    Thing,
    Walked,
    a_wall,
    discs,
    fitted,
    labelled,
    middle,
    path_of,
    start_of,
    with_ground,
)
from vrlvr.puzzles import board


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


def second_agent_as_a_ring(puzzle: Walked, scene: Scene, rng: Rng) -> Video:
    """The solution, while a ring of the agent's colour lies where the agent began or where it will end."""
    video = draw(puzzle, scene, solution(puzzle, scene))
    cell = start_of(puzzle).agents[0] if rng.random() < 0.5 else path_of(puzzle)[-1].agents[0]
    (y, x), side = middle(puzzle, scene, cell), place(puzzle, scene).cell
    distance = np.hypot(np.arange(scene.height)[:, None] + 0.5 - y, np.arange(scene.width) + 0.5 - x) / side
    video[1:, (distance > 0.25) & (distance < 0.45)] = AGENT_COLOUR
    return video


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
    second_agent_as_a_ring,
)
