"""Lawful ways to solve a puzzle, frame by frame: the planner's, and others that the rules allow just as well."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from vrlvr.evaluation.corpus.making import Rng, solution
from vrlvr.evaluation.corpus.rules import solves
from vrlvr.evaluation.corpus.scene import Scene, States, plan
from vrlvr.evaluation.corpus.walkers import Thing, Walked, labelled, path_of
from vrlvr.puzzles import Puzzle, flow_free
from vrlvr.puzzles.flow_free.render import path_label
from vrlvr.puzzles.grid import around

Play = Callable[[Puzzle, Scene, Rng], States]


def _spread(states: States, durations: NDArray[np.int64], scene: Scene) -> States:
    """State i for durations[i] frames, the last one to the end of the scene."""
    return np.concatenate([np.repeat(states, durations, axis=0), np.repeat(states[-1:], scene.num_frames, axis=0)])[
        : scene.num_frames
    ]


def _slack(states: States, scene: Scene) -> int:
    """Frames that are left if every state is shown once; negative where they do not fit."""
    return scene.num_frames - len(states)


def planner(puzzle: Puzzle, scene: Scene, rng: Rng) -> States:
    """The plan at the scene's pace."""
    return solution(puzzle, scene)


def waits_at_the_start(puzzle: Puzzle, scene: Scene, rng: Rng) -> States:
    """Nothing happens for a while; then the plan, faster if it must be."""
    states = plan(puzzle)
    pause = int(rng.integers(0, _slack(states, scene) + 1))
    pace = max(1, min(scene.frames_per_move, (_slack(states, scene) - pause) // len(states) + 1))
    return _spread(states, np.array([1 + pause] + [pace] * (len(states) - 1)), scene)


def slow(puzzle: Puzzle, scene: Scene, rng: Rng) -> States:
    """As slowly as the scene allows: solved only shortly before its end."""
    states = plan(puzzle)
    return _spread(states, np.full(len(states), scene.num_frames // len(states)), scene)


def fast(puzzle: Puzzle, scene: Scene, rng: Rng) -> States:
    """A move a frame."""
    states = plan(puzzle)
    return _spread(states, np.ones(len(states), int), scene)


def uneven(puzzle: Puzzle, scene: Scene, rng: Rng) -> States:
    """Every state as long as chance will have it."""
    return _unevenly(plan(puzzle), scene, rng)


def _unevenly(states: States, scene: Scene, rng: Rng) -> States:
    extra = rng.multinomial(rng.integers(0, _slack(states, scene) + 1), np.full(len(states), 1 / len(states)))
    return _spread(states, 1 + extra, scene)


def another_way(puzzle: Puzzle, scene: Scene, rng: Rng) -> States:
    """A lawful solution which is not the planner's, where the frames suffice for one."""
    states = _other_growth(puzzle, rng) if isinstance(puzzle, flow_free.Puzzle) else _with_detours(puzzle, scene, rng)
    return _unevenly(states, scene, rng) if _slack(states, scene) >= 0 else solution(puzzle, scene)


def _with_detours(puzzle: Walked, scene: Scene, rng: Rng) -> States:
    """The plan with steps aside and back, where the agent pushes nothing; in Sokoban it may also walk on in the end."""
    things, spare = path_of(puzzle), scene.num_frames - 1 - (len(path_of(puzzle)) - 1)
    shown = [things[0]]
    for thing in things[1:]:
        if spare >= 2 and rng.random() < 0.6 and (aside := _aside(puzzle, shown[-1], rng)):
            shown += [aside, shown[-1]]
            spare -= 2
        shown.append(thing)
    if puzzle.task == "sokoban" and spare >= 1 and (aside := _aside(puzzle, shown[-1], rng)):
        shown.append(aside)
    return labelled(puzzle, shown)


def _aside(puzzle: Walked, thing: Thing, rng: Rng) -> Thing | None:
    """The agent a step further on plain floor."""
    free = [
        c for c in around(puzzle.rows, puzzle.cols)[thing.agents[0]] if thing.ground[c] == 1 and c not in thing.boxes
    ]
    return Thing(thing.ground, (int(rng.choice(free)),), thing.boxes) if free else None


def _other_growth(puzzle: flow_free.Puzzle, rng: Rng) -> States:
    """Each path from either end or from both by turns, and colours begin one after the other or all at once."""
    step, states = puzzle.cells_per_move, [plan(puzzle)[0].copy()]
    queues = []
    for path in puzzle.solution:
        cells, both = list(path[1:-1]), rng.random() < 0.5
        if rng.random() < 0.5:
            cells.reverse()
        queues.append([cells.pop(0 if not both or i % 2 else -1) for i in range(len(cells))])
    one_by_one = rng.random() < 0.5
    while any(queues):
        state = states[-1].copy()
        for colour, queue in enumerate(queues):
            if queue and not (one_by_one and any(queues[:colour])):
                for cell in queue[:step]:
                    state.flat[cell] = path_label(colour)
                del queue[:step]
        states.append(state)
    return np.stack(states)


PLAYS: tuple[Play, ...] = (planner, waits_at_the_start, slow, fast, uneven, another_way)


def any_play(puzzle: Puzzle, scene: Scene, rng: Rng) -> States:
    """One of PLAYS."""
    return PLAYS[rng.integers(len(PLAYS))](puzzle, scene, rng)


def checked(puzzle: Puzzle, states: States) -> States:
    """The states, which must solve the puzzle by the rules. Raises ValueError if they do not."""
    if not solves(puzzle, states):
        raise ValueError(f"a {puzzle.task} play of {len(states)} frames is no solution; mend the corpus")
    return states
