"""The replay of solutions: other code than the judges', the same answer."""

import random

import numpy as np
import pytest

from vrlvr.evaluation.replay import is_solution
from vrlvr.puzzles import ROOMS, flow_free, generate, maze, room_of, sokoban, verify
from vrlvr.puzzles.board import hold, render

DIFFICULTIES = {
    "maze": maze.Difficulty(),
    "flowfree": flow_free.Difficulty(cells_per_move=2, mixes=((3, 8), (4, 6))),
    "sokoban": sokoban.Difficulty(boxes=2, max_plan=6),
}


def planned(task, index):
    puzzle = generate(task, DIFFICULTIES[task], 3, "val", index)
    states = room_of(puzzle).states(puzzle, puzzle.solution)
    return puzzle, hold(states, 2 * len(states), 2).copy()


@pytest.mark.parametrize("task", ROOMS)
def test_planners_solutions_are_solutions(task):
    for index in range(30):
        puzzle, states = planned(task, index)
        assert is_solution(puzzle, states)
        assert not is_solution(puzzle, states[:1])
        assert not is_solution(puzzle, states[1:][states[1:].any(axis=(1, 2))][-1:])
        assert not is_solution(puzzle, states[::-1])


def spoil(states, looks, rng):
    """Up to two changes: a cell's look, two cells exchanged, two frames exchanged, a frame cut out, one shown twice."""
    for _ in range(rng.choice([0, 1, 1, 2])):
        frame, other = rng.randrange(len(states)), rng.randrange(len(states))
        cell, place = rng.randrange(states[0].size), rng.randrange(states[0].size)
        match rng.randrange(6):
            case 0:
                states[frame].flat[cell] = rng.randrange(looks)
            case 1:
                states[frame].flat[[cell, place]] = states[frame].flat[[place, cell]]
            case 2:
                states[[frame, other]] = states[[other, frame]]
            case 3:
                states = np.delete(states, frame, axis=0) if len(states) > 1 else states
            case 4:
                states = np.insert(states, frame, states[frame], axis=0)
            case 5:
                states = np.concatenate([states, states[-1:]])
                states[-1].flat[[cell, place]] = states[-1].flat[[place, cell]]
    return states


@pytest.mark.parametrize("task", ROOMS)
def test_it_agrees_with_the_judge_on_spoiled_solutions(task):
    rng, solved = random.Random(5), 0
    for index in range(300):
        puzzle, states = planned(task, index % 30)
        states = spoil(states, len(ROOMS[task].LOOKS), rng)
        verdict = verify(puzzle, render(states, ROOMS[task].LOOKS, 16, 20))
        assert is_solution(puzzle, states) == verdict.solved, (index, verdict)
        solved += verdict.solved
    assert 75 < solved < 225


def test_a_path_that_runs_along_itself_may_have_been_drawn_in_several_orders():
    """On a 2x3 board of one colour, from one corner to the one below it, two cells at a time."""
    puzzle = flow_free.Puzzle.from_paths(2, 3, [[0, 1, 2, 5, 4, 3]], cells_per_move=2)
    start, end = (flow_free.states(puzzle, puzzle.solution)[at] for at in (0, -1))
    for cells, legal in (
        ([1, 4], True),
        ([1, 2], True),
        ([4, 5], True),
        ([1, 5], False),
        ([2, 5], False),
        ([1, 2, 4], False),
    ):
        middle = start.copy()
        middle.flat[cells] = flow_free.render.path_label(0)
        assert is_solution(puzzle, np.stack([start, middle, end])) == legal, cells
