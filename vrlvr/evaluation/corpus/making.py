"""What all attacks are made with: states that are checked, fades, and the planner's own video."""

from collections.abc import Callable
from typing import Any

import numpy as np

from vrlvr.evaluation.corpus.rules import solves
from vrlvr.evaluation.corpus.scene import Maker, Scene, States, Video, distinct, draw, plan, timed
from vrlvr.puzzles import Puzzle

Rng = np.random.Generator
StateAttack = Callable[[Any, Scene, Rng], States]  # the first is a puzzle of the task that the attack is for
_TRIES = 100


def of_states(attack: StateAttack) -> Maker:
    """An attack on states as one on pixels: drawn anew until the rules, applied to the states, say that it is no solution.

    Raises ValueError where 100 draws all solve the puzzle.
    """

    def make(puzzle: Puzzle, scene: Scene, rng: Rng) -> Video:
        for _ in range(_TRIES):
            states = attack(puzzle, scene, rng)
            if not solves(puzzle, states):
                return draw(puzzle, scene, states)
        raise ValueError(f"{attack.__name__} solved the puzzle in {_TRIES} draws; it is no attack on it")

    make.__doc__ = attack.__doc__
    return make


def solution(puzzle: Puzzle, scene: Scene) -> States:
    """The planner's states in every frame (T, R, K)."""
    return timed(plan(puzzle), scene)


def still(puzzle: Puzzle, scene: Scene) -> States:
    """The puzzle alone in every frame."""
    return np.repeat(plan(puzzle)[:1], scene.num_frames, axis=0)


def solved_at(states: States) -> int:
    """The first frame from which on nothing changes."""
    return int((states == states[-1]).all((1, 2)).argmax())


def faded(first: Video, last: Video, shares: np.ndarray) -> Video:
    """Frame by frame (T, Y, X, 3): first + share * (last - first), for shares (T,); either may be a single frame."""
    frames = np.broadcast_arrays(first, last, np.empty((len(shares), 1, 1, 1)))[:2]
    out = np.empty(frames[0].shape, np.uint8)
    for at, share in enumerate(shares.astype(np.float32)):
        before = frames[0][at].astype(np.float32)
        out[at] = before + share * (frames[1][at] - before) + np.float32(0.5)
    return out


def faint(puzzle: Puzzle, scene: Scene, states: States, opacity: float) -> Video:
    """States (T, R, K) at some opacity over the puzzle's first frame."""
    stills, order = distinct(states)
    drawn = draw(puzzle, scene, stills)
    return faded(draw(puzzle, scene, plan(puzzle)[:1]), drawn, np.full(len(drawn), opacity))[order]


def darkened(attack: Maker) -> Maker:
    """The same attack in a video that is throughout a third darker, where all colours are nearer to each other."""

    def make(puzzle: Puzzle, scene: Scene, rng: Rng) -> Video:
        return (np.arange(256) * 0.67 + 0.5).astype(np.uint8)[attack(puzzle, scene, rng)]

    make.__name__, make.__doc__ = f"{attack.__name__}_in_the_dark", f"{attack.__doc__} A third darker."
    return make
