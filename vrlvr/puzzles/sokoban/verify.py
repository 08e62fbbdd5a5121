"""The rules of Sokoban, applied to what was read off a video."""

from collections.abc import Iterable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from vrlvr.puzzles.grid import around, neighbours
from vrlvr.puzzles.judging import UNREADABLE, UNREADABLE_CELL, frames, reading_error, valid_prefix
from vrlvr.puzzles.sokoban.puzzle import GROUND_OF, Puzzle, State, step
from vrlvr.puzzles.sokoban.render import AGENT, AGENT_ON_TARGET, BOX, BOX_ON_TARGET, TARGET, WALL
from vrlvr.puzzles.sokoban.solve import remaining_moves
from vrlvr.puzzles.verdict import Verdict, overlap

COMPONENTS = ("solved", "progress", "error")

# What bytes.translate maps labels to: the kind of thing that lies on the ground.
_ON_GROUND = {BOX: 1, BOX_ON_TARGET: 1, AGENT: 2, AGENT_ON_TARGET: 2}
_KIND_OF = bytes(_ON_GROUND.get(label, 0) for label in range(256))
_BOX, _AGENT = 1, 2


def judge(puzzle: Puzzle, labels_TRK: NDArray[np.integer], rmse_TRK: NDArray[np.floating]) -> Verdict:
    """Judges a video read by board.read.

    Each frame must show the puzzle's walls and targets, one agent and as many boxes; frame 0 the start; the agent stays
    or moves one cell a frame, onto free floor or into a box that has free floor behind it and goes there; nothing else
    moves. Once every box is on a target no box may move; the agent may. The frames before the first that breaks a rule
    are the valid prefix.

    Components: `solved`, 0 or 1; `progress`, 1 - d / d0, where d0 counts the fewest moves from the start to a solved
    state and d those from the nearest state of the valid prefix: the nearest, not the last, so that cutting a video
    short never pays; `error`, see reading_error.
    Precision and recall compare {(k, from, to) of the k-th push} | {("final", cell) of each box}, empty without a push:
    the planner's, and the video's over its readable frames with one agent and the puzzle's ground and number of boxes,
    where one box that moves one cell from one such frame to the next counts as a push.
    Raises ValueError if the arrays do not have the puzzle's board.
    """
    shown = frames(labels_TRK, rmse_TRK, puzzle.rows, puzzle.cols)
    reading_of = {frame: _read(puzzle, frame) for frame in set(shown)}
    readings = [reading_of[frame] for frame in shown]
    ways = neighbours(puzzle.rows, puzzle.cols)

    def broken_between(before: State, after: State) -> str | None:
        if before[1] == puzzle.targets != after[1]:
            return "solution_left"
        move = next((name for name, way in ways.items() if way[before[0]] == after[0]), None)
        if move is None:
            return "box_moved" if after[0] == before[0] else "teleport"
        return None if step(puzzle, before, move) == after else "box_moved"

    prefix, broken_rule = valid_prefix(readings, (puzzle.agent, puzzle.boxes), broken_between)
    solved = broken_rule is None and prefix[-1][1] == puzzle.targets
    components = {"solved": float(solved), "progress": _progress(puzzle, prefix), "error": reading_error(rmse_TRK)}
    legible = (state[1] for state, broken in readings if broken is None)
    precision, recall = overlap(_trajectory(puzzle, legible), _planned(puzzle))
    if solved:
        return Verdict(True, components, None, None, precision, recall)
    if broken_rule is None:
        return Verdict(False, components, "not_solved", len(shown) - 1, precision, recall)
    return Verdict(False, components, broken_rule, len(prefix), precision, recall)


def _read(puzzle: Puzzle, frame: bytes) -> tuple[State, str | None]:
    """The agent and the boxes in a frame, and the rule it breaks by itself; the state counts only if that is None."""
    kinds = frame.translate(_KIND_OF)
    state = kinds.find(_AGENT), tuple([cell for cell, kind in enumerate(kinds) if kind == _BOX])
    if UNREADABLE in frame:
        return state, UNREADABLE_CELL
    if kinds.count(_AGENT) != 1:
        return state, "two_agents" if _AGENT in kinds else "no_agent"
    ground = frame.translate(GROUND_OF)
    if ground != puzzle.ground:
        return state, _broken_ground(puzzle, state, ground)
    if len(state[1]) != len(puzzle.boxes):
        return state, "box_vanished" if len(state[1]) < len(puzzle.boxes) else "box_added"
    return state, None


def _broken_ground(puzzle: Puzzle, state: State, ground: bytes) -> str:
    """The rule broken by a frame whose walls and targets are not the puzzle's."""
    if puzzle.ground[state[0]] == WALL:
        return "walked_through_wall"
    if any(puzzle.ground[box] == WALL for box in state[1]):
        return "box_in_wall"
    moved = any(TARGET in pair and pair[0] != pair[1] for pair in zip(ground, puzzle.ground, strict=True))
    return "target_moved" if moved else "wall_changed"


def _progress(puzzle: Puzzle, prefix: list[State]) -> float:
    visited = set(prefix) - {(puzzle.agent, puzzle.boxes)}
    if not visited:
        return 0.0  # spares the table, as does the next line
    if any(boxes == puzzle.targets for _, boxes in visited):
        return 1.0
    remaining = remaining_moves(puzzle)
    return 1 - min(map(remaining.of, visited)) / remaining.start


def _trajectory(puzzle: Puzzle, boxes_by_frame: Iterable[tuple[int, ...]]) -> set[tuple]:
    """The pushes and the final boxes of a sequence of box positions; empty without a push."""
    beside = around(puzzle.rows, puzzle.cols)
    pushes: list[tuple[int, int, int]] = []
    boxes = puzzle.boxes
    for after in boxes_by_frame:
        if after != boxes:
            left, entered = set(boxes) - set(after), set(after) - set(boxes)
            if len(left) == 1 and entered <= set(beside[min(left)]):
                pushes.append((len(pushes), left.pop(), entered.pop()))
            boxes = after
    return {*pushes, *(("final", box) for box in boxes)} if pushes else set()


@lru_cache(maxsize=1024)
def _planned(puzzle: Puzzle) -> frozenset[tuple]:
    """The planner's pushes and final boxes."""
    return frozenset(_trajectory(puzzle, (boxes for _, boxes in puzzle.trace(puzzle.solution))))
