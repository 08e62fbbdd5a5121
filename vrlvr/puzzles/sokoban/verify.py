"""The rules of Sokoban, applied to what was read off a video."""

import numpy as np
from numpy.typing import NDArray

from vrlvr.puzzles.grid import MOVES, around, frames, reading_error
from vrlvr.puzzles.sokoban.puzzle import GROUND_OF, Puzzle, State, step
from vrlvr.puzzles.sokoban.render import AGENT, AGENT_ON_TARGET, BOX, BOX_ON_TARGET, TARGET, WALL
from vrlvr.puzzles.sokoban.solve import moves_left
from vrlvr.puzzles.verdict import Verdict, overlap

COMPONENTS = ("solved", "progress", "error")

_UNREADABLE = 255
_KIND = bytes(
    {BOX: 1, BOX_ON_TARGET: 1, AGENT: 2, AGENT_ON_TARGET: 2}.get(label, 0) for label in range(256)
)  # what lies on the ground: nothing, a box, the agent
_BOX, _AGENT = 1, 2


def judge(puzzle: Puzzle, labels_TRK: NDArray[np.integer], rmse_TRK: NDArray[np.floating]) -> Verdict:
    """Judges a video read by board.read.

    Each frame must show the puzzle's walls and targets, one agent and as many boxes; frame 0 the start; the agent stays or
    moves one cell a frame, over free cells or into a box that has a free cell behind it and goes there; nothing else moves.
    Once every box is on a target no box may move; the agent may. The frames before the first that breaks a rule are the
    valid prefix.

    Components: `solved` (0 or 1); `progress`, 1 - (fewest moves to a solved state from the nearest state of the valid
    prefix) / (from the start): the nearest, not the last, so that cutting a video short can never pay; `error`, see
    reading_error. Precision and recall compare {(k, from, to) of the k-th push} | {("final", cell) of each box}: the
    planner's, and those of the video's readable frames with one agent, the right ground and the right number of boxes, where
    one box moving one cell between two such frames counts as a push. A video without a push has an empty set.

    Raises ValueError if the arrays do not have the puzzle's board.
    """
    shown = frames(labels_TRK, rmse_TRK, puzzle.rows, puzzle.cols)
    prefix, broken_rule = _valid_prefix(puzzle, shown)
    solved = broken_rule is None and prefix[-1][1] == puzzle.targets
    if broken_rule is None and not solved:
        broken_rule, frame = "not_solved", len(shown) - 1
    else:
        frame = len(prefix)
    precision, recall = overlap(
        _trajectory(puzzle, [state for state in _readable(puzzle, shown)]),
        _trajectory(puzzle, puzzle.trace(puzzle.solution)),
    )
    return Verdict(
        solved,
        {"solved": float(solved), "progress": _progress(puzzle, prefix), "error": reading_error(rmse_TRK)},
        broken_rule,
        None if solved else frame,
        precision,
        recall,
    )


def _progress(puzzle: Puzzle, prefix: list[State]) -> float:
    if any(boxes == puzzle.targets for _, boxes in prefix):
        return 1.0
    start = (puzzle.agent, puzzle.boxes)
    visited = set(prefix) - {start}
    if not visited:
        return 0.0  # spares the table
    left = moves_left(puzzle)
    return 1 - min(left.get(state, left[start]) for state in visited) / left[start]


def _valid_prefix(puzzle: Puzzle, shown: list[bytes]) -> tuple[list[State], str | None]:
    """The state of each frame before the first that breaks a rule, and that rule (None if all are legal)."""
    prefix: list[State] = []
    last = b""
    for frame in shown:
        if frame != last or not prefix:
            rule = _broken_in(puzzle, frame)
            state = _state(frame)
            if not prefix:
                if rule != "unreadable_cell" and (rule or state != (puzzle.agent, puzzle.boxes)):
                    rule = "start_changed"
            elif not rule:
                rule = _broken_between(puzzle, prefix[-1], state)
            if rule:
                return prefix, rule
            last = frame
        prefix.append(state)
    return prefix, None


def _state(frame: bytes) -> State:
    kinds = frame.translate(_KIND)
    return kinds.find(_AGENT), tuple([cell for cell, kind in enumerate(kinds) if kind == _BOX])


def _broken_in(puzzle: Puzzle, frame: bytes) -> str | None:
    """The rule that a frame breaks by itself."""
    if _UNREADABLE in frame:
        return "unreadable_cell"
    kinds = frame.translate(_KIND)
    if kinds.count(_AGENT) != 1:
        return "two_agents" if _AGENT in kinds else "no_agent"
    ground = frame.translate(GROUND_OF)
    if ground != puzzle.ground:
        if puzzle.ground[kinds.find(_AGENT)] == WALL:
            return "walked_through_wall"
        changed = [cell for cell, label in enumerate(puzzle.ground) if ground[cell] != label]
        if any(puzzle.ground[cell] == WALL and kinds[cell] == _BOX for cell in changed):
            return "box_in_wall"
        return (
            "target_moved" if any(TARGET in (ground[cell], puzzle.ground[cell]) for cell in changed) else "wall_changed"
        )
    boxes = kinds.count(_BOX)
    if boxes != len(puzzle.boxes):
        return "box_vanished" if boxes < len(puzzle.boxes) else "box_added"
    return None


def _broken_between(puzzle: Puzzle, before: State, after: State) -> str | None:
    """The rule that two frames break, each legal by itself."""
    if after == before:
        return None
    if after[1] != before[1] and before[1] == puzzle.targets:
        return "solution_left"
    if any(step(puzzle, before, move) == after for move in MOVES):
        return None
    if after[0] != before[0] and after[0] not in around(puzzle.rows, puzzle.cols)[before[0]]:
        return "teleport"
    return "box_moved"


def _readable(puzzle: Puzzle, shown: list[bytes]) -> list[State]:
    return [_state(frame) for frame in shown if _broken_in(puzzle, frame) is None]


def _trajectory(puzzle: Puzzle, states: list[State]) -> set[tuple]:
    """The pushes and the final boxes of a sequence of states."""
    beside = around(puzzle.rows, puzzle.cols)
    pushes: list[tuple[int, int, int]] = []
    boxes = puzzle.boxes
    for _, after in states:
        if after != boxes:
            left, entered = set(boxes) - set(after), set(after) - set(boxes)
            if len(left) == 1 and entered <= set(beside[min(left)]):
                pushes.append((len(pushes), left.pop(), entered.pop()))
            boxes = after
    return {*pushes, *(("final", box) for box in boxes)} if pushes else set()
