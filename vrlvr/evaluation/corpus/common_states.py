"""Attacks on states that make sense in every room: what frozen, impatient or confused video models would show."""

import numpy as np

from vrlvr.evaluation.corpus.making import Rng, StateAttack, solution, solved_at, still
from vrlvr.evaluation.corpus.scene import Scene, States, another, plan, timed
from vrlvr.puzzles import ROOMS, Puzzle


def static(puzzle: Puzzle, scene: Scene, rng: Rng) -> States:
    """The first frame, frozen."""
    return still(puzzle, scene)


def end_jump(puzzle: Puzzle, scene: Scene, rng: Rng) -> States:
    """Nothing happens until a late frame, which shows the solved state."""
    states = solution(puzzle, scene)
    states[: -rng.integers(1, scene.num_frames - 1)] = states[0]
    return states


def solved_from_the_start(puzzle: Puzzle, scene: Scene, rng: Rng) -> States:
    """The solved state throughout."""
    return np.repeat(plan(puzzle)[-1:], scene.num_frames, axis=0)


def reversed_time(puzzle: Puzzle, scene: Scene, rng: Rng) -> States:
    """The solution played backwards."""
    return solution(puzzle, scene)[::-1]


def start_then_backwards(puzzle: Puzzle, scene: Scene, rng: Rng) -> States:
    """The right first frame, then the solution from its end to its start and once more to its end."""
    states = plan(puzzle)
    shown = np.concatenate([states[:1], states[::-1], states])
    return shown[np.linspace(0, len(shown) - 1, scene.num_frames).round().astype(int)]


def too_late(puzzle: Puzzle, scene: Scene, rng: Rng) -> States:
    """The clip ends before the last moves: a slow player."""
    states = plan(puzzle)
    return timed(states[: rng.integers(max(1, len(states) // 2), len(states))], scene)


def not_held(puzzle: Puzzle, scene: Scene, rng: Rng) -> States:
    """Solved, and back to an earlier state before the clip ends."""
    states = solution(puzzle, scene)
    states[max(solved_at(states) + 1, scene.num_frames - int(rng.integers(1, 4))) :] = plan(puzzle)[-2]
    if np.array_equal(states[-1], plan(puzzle)[-1]):  # solved in the very last frame
        states[-1] = plan(puzzle)[-2]
    return states


def moves_left_out(puzzle: Puzzle, scene: Scene, rng: Rng) -> States:
    """A stretch of moves in the middle is missing: a teleport."""
    states = plan(puzzle)
    first = int(rng.integers(0, max(1, len(states) - 2)))
    return timed(
        np.concatenate([states[: first + 1], states[first + 2 + int(rng.integers(0, 3)) :], states[-1:]]), scene
    )


def every_other_move(puzzle: Puzzle, scene: Scene, rng: Rng) -> States:
    """Two moves at a time."""
    states = plan(puzzle)
    return timed(np.concatenate([states[:-1:2], states[-1:]]), scene)


def shuffled_frames(puzzle: Puzzle, scene: Scene, rng: Rng) -> States:
    """First and last frame right, those between in random order."""
    states = solution(puzzle, scene)
    return np.concatenate([states[:1], rng.permutation(states[1:-1]), states[-1:]])


def wipe(puzzle: Puzzle, scene: Scene, rng: Rng) -> States:
    """The solved state is uncovered from one side to the other, column by column."""
    first, last = plan(puzzle)[[0, -1]]
    uncovered = np.linspace(0, puzzle.cols, scene.num_frames).round().astype(int)[:, None, None]
    columns = np.arange(puzzle.cols)
    return np.where((columns if rng.random() < 0.5 else columns[::-1]) < uncovered, last, first)


def frame_flicker(puzzle: Puzzle, scene: Scene, rng: Rng) -> States:
    """Start and solved state by turns, the solved one last."""
    states = still(puzzle, scene)
    states[scene.num_frames - 1 : 0 : -2] = plan(puzzle)[-1]
    return states


def flash_of_the_start(puzzle: Puzzle, scene: Scene, rng: Rng) -> States:
    """Solved, but one of the late frames shows the start again."""
    states = solution(puzzle, scene)
    states[rng.integers(max(2, scene.num_frames // 2), scene.num_frames)] = states[0]
    return states


def one_wrong_cell(puzzle: Puzzle, scene: Scene, rng: Rng) -> States:
    """The solution, with one cell of another look in one frame."""
    states = solution(puzzle, scene)
    frame, cell = rng.integers(1, len(states)), rng.integers(states[0].size)
    states[frame].flat[cell] = rng.integers(len(ROOMS[puzzle.task].LOOKS))
    return states


def another_puzzles_solution(puzzle: Puzzle, scene: Scene, rng: Rng) -> States:
    """The solution of another puzzle of the same size."""
    return solution(another(puzzle, rng), scene)


def start_then_another_puzzle(puzzle: Puzzle, scene: Scene, rng: Rng) -> States:
    """The right first frame, then another puzzle and its solution."""
    return np.concatenate([plan(puzzle)[:1], solution(another(puzzle, rng), scene)[:-1]])


def mirrored(puzzle: Puzzle, scene: Scene, rng: Rng) -> States:
    """The right first frame, then the solution of the mirrored board."""
    states = solution(puzzle, scene)
    return np.concatenate([states[:1], states[1:, ::-1] if rng.random() < 0.5 else states[1:, :, ::-1]])


def scrolled(puzzle: Puzzle, scene: Scene, rng: Rng) -> States:
    """The board wanders off by a cell, and the solution goes on there."""
    states = solution(puzzle, scene)
    states[1:] = np.roll(states[1:], int(rng.choice([-1, 1])), axis=int(rng.integers(1, 3)))
    return states


def single_solved_frame(puzzle: Puzzle, scene: Scene, rng: Rng) -> States:
    """A video of one frame, the solved one."""
    return plan(puzzle)[-1:]


def cut_short(puzzle: Puzzle, scene: Scene, rng: Rng) -> States:
    """A right beginning: the file ends before the last move."""
    states = solution(puzzle, scene)
    return states[: rng.integers(1, solved_at(states) + 1)]


STATES: tuple[StateAttack, ...] = (
    static,
    end_jump,
    solved_from_the_start,
    reversed_time,
    start_then_backwards,
    too_late,
    not_held,
    moves_left_out,
    every_other_move,
    shuffled_frames,
    wipe,
    frame_flicker,
    flash_of_the_start,
    one_wrong_cell,
    another_puzzles_solution,
    start_then_another_puzzle,
    mirrored,
    scrolled,
    single_solved_frame,
    cut_short,
)
