"""Sokoban's rules by simulation: a frame must look like a state that one of the four moves, or none, leads to."""

from collections.abc import Iterable, Iterator
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from vrlvr.puzzles.second.palette import game_of
from vrlvr.puzzles.second.verdict import NOT_SOLVED, SecondVerdict, broken_by
from vrlvr.puzzles.sokoban.puzzle import Puzzle
from vrlvr.puzzles.sokoban.render import AGENT, AGENT_ON_TARGET, BOX, BOX_ON_TARGET, FLOOR, LOOKS, TARGET, WALL

Cell = tuple[int, int]  # row, column
State = tuple[Cell, frozenset[Cell]]  # the agent, the boxes

_ON_FLOOR, _ON_TARGET = (FLOOR, BOX, AGENT), (TARGET, BOX_ON_TARGET, AGENT_ON_TARGET)
GAME = game_of(LOOKS, [*combinations(_ON_FLOOR, 2), *combinations(_ON_TARGET, 2)])

_MAX_SEARCHED = 20_000  # states, when counting the moves that are left


class _Level:
    """A puzzle as sets of cells."""

    def __init__(self, puzzle: Puzzle) -> None:
        ground = np.frombuffer(puzzle.ground, np.int8).reshape(puzzle.rows, puzzle.cols)
        self.floor = {(int(r), int(c)) for r, c in zip(*np.nonzero(ground != WALL), strict=True)}
        self.targets = frozenset((int(r), int(c)) for r, c in zip(*np.nonzero(ground == TARGET), strict=True))
        self.start: State = (
            divmod(puzzle.agent, puzzle.cols),
            frozenset(divmod(box, puzzle.cols) for box in puzzle.boxes),
        )
        self._ground = ground.astype(np.int16)

    def after(self, state: State) -> Iterator[State]:
        """The states that one move leads to."""
        (row, col), boxes = state
        for down, right in ((-1, 0), (1, 0), (0, -1), (0, 1)):
            ahead, beyond = (row + down, col + right), (row + 2 * down, col + 2 * right)
            if ahead not in self.floor:
                continue
            if ahead not in boxes:
                yield ahead, boxes
            elif beyond in self.floor and beyond not in boxes and boxes != self.targets:  # what is solved stays
                yield ahead, boxes - {ahead} | {beyond}

    def picture(self, state: State) -> bytes:
        """The labels of a state, as bytes of int16."""
        labels = self._ground.copy()
        for box in state[1]:
            labels[box] = BOX_ON_TARGET if box in self.targets else BOX
        labels[state[0]] = AGENT_ON_TARGET if state[0] in self.targets else AGENT
        return labels.tobytes()

    def moves_left(self, states: Iterable[State]) -> float:
        """Fewest moves from any of the states to a solved one; inf if none of the first 20,000 states met is solved."""
        layer = list(states)
        met, moves = set(layer), 0
        while layer and len(met) <= _MAX_SEARCHED:
            if any(boxes == self.targets for _, boxes in layer):
                return moves
            layer = list({new for state in layer for new in self.after(state)} - met)
            met.update(layer)
            moves += 1
        return np.inf


def judge(puzzle: Puzzle, labels_TRK: NDArray[np.int16]) -> SecondVerdict:
    """Judges what `reading.read` gave.

    From one frame to the next the agent stays or makes one of its legal moves; once every box is on a target no box moves.
    progress: 1 - d / d0, moves still to go from the nearest state reached, and from the start; 0 where the search for d0 gives
    up.
    """
    level = _Level(puzzle)
    state, reached = level.start, {level.start}
    for frame, labels in enumerate(labels_TRK):
        shown = labels.tobytes()
        if shown == level.picture(state):
            continue
        new = next((new for new in level.after(state) if frame and level.picture(new) == shown), None)
        if new is None:
            possible = _is_possible(puzzle, level, labels)
            return SecondVerdict(False, _progress(level, reached), broken_by(frame, labels.ravel(), possible), frame)
        state = new
        reached.add(state)
    if state[1] == level.targets:
        return SecondVerdict(True, 1.0, None, None)
    return SecondVerdict(False, _progress(level, reached), NOT_SOLVED, len(labels_TRK) - 1)


def _is_possible(puzzle: Puzzle, level: _Level, labels_RK: NDArray[np.int16]) -> bool:
    """Whether a frame shows the level's ground with one agent and all boxes."""
    agents = np.argwhere(np.isin(labels_RK, (AGENT, AGENT_ON_TARGET))).tolist()
    boxes = frozenset((r, c) for r, c in np.argwhere(np.isin(labels_RK, (BOX, BOX_ON_TARGET))).tolist())
    if len(agents) != 1 or len(boxes) != len(puzzle.boxes):
        return False
    return level.picture(((agents[0][0], agents[0][1]), boxes)) == labels_RK.tobytes()


def _progress(level: _Level, reached: set[State]) -> float:
    if len(reached) == 1:
        return 0.0  # spares the search
    total, left = level.moves_left([level.start]), level.moves_left(reached)
    return 1 - left / total if left < total < np.inf else 0.0
