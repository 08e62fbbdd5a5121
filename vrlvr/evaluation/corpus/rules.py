"""The rules once more, as sets of legal next states: what tells an attack from a solution before any pixel is drawn.

Nothing of the verifiers is used here, and nothing is fast: states are arrays of labels (R, K), and a video's states are
lawful if each is the one before or among the next ones that the rules list.
"""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from vrlvr.evaluation.corpus.scene import States, plan
from vrlvr.puzzles import Puzzle, flow_free, maze, sokoban

_WAYS = ((-1, 0), (1, 0), (0, -1), (0, 1))
_WALL, _FLOOR = 0, 1  # of both walking rooms; label 2 is the goal or a target


def solves(puzzle: Puzzle, states: States) -> bool:
    """Whether states (T, R, K) start at the puzzle, obey its rules throughout and end solved."""
    if not np.array_equal(states[0], plan(puzzle)[0]):
        return False
    if isinstance(puzzle, flow_free.Puzzle):
        return _solves_flow(puzzle, states)
    done = False
    for before, after in pairwise(states):
        done = done or _finished(puzzle, before)
        if np.array_equal(before, after):
            continue
        if not any(np.array_equal(after, legal) for legal in _next(puzzle, before)):
            return False
        if done and (puzzle.task == "maze" or not _finished(puzzle, after)):
            return False
    return _finished(puzzle, states[-1])


def _finished(puzzle: Puzzle, state: NDArray[np.int8]) -> bool:
    if puzzle.task == "maze":
        return bool((state == maze.render.AGENT_ON_GOAL).any())
    return not (state == sokoban.render.BOX).any()


def _next(puzzle: Puzzle, state: NDArray[np.int8]) -> Iterator[NDArray[np.int8]]:
    """All states one move of the agent later. In both walking rooms things come in pairs of labels: on floor, on target."""
    agent = maze.render.AGENT if puzzle.task == "maze" else sokoban.render.AGENT
    box = None if puzzle.task == "maze" else sokoban.render.BOX
    found = np.argwhere((state == agent) | (state == agent + 1))
    if len(found) != 1:
        return
    (row, col) = found[0]

    def ground(label: int) -> int:
        return label if label <= 2 else _FLOOR + int(label in (agent + 1, (box or agent) + 1))

    for down, right in _WAYS:
        to, behind = (row + down, col + right), (row + 2 * down, col + 2 * right)
        if not _inside(state, to) or state[to] == _WALL:
            continue
        after = state.copy()
        if box is not None and state[to] in (box, box + 1):
            if not _inside(state, behind) or state[behind] not in (_FLOOR, 2):
                continue
            after[behind] = box + int(ground(state[behind]) == 2)
        after[row, col] = ground(state[row, col])
        after[to] = agent + int(ground(state[to]) == 2)
        yield after


def _inside(state: NDArray[np.int8], at: tuple[int, int]) -> bool:
    return 0 <= at[0] < state.shape[0] and 0 <= at[1] < state.shape[1]


def _solves_flow(puzzle: flow_free.Puzzle, states: States) -> bool:
    """Cells stay as they were coloured, no colour takes more cells a frame than it may, each frame's cells of a colour hang
    on its endpoints, and at last every colour is one simple path between its endpoints that leaves no cell empty.

    That each frame's cells can be the two ends of that very path is not asked: what this calls unlawful, the rules do too.
    """
    for before, after in pairwise(states):
        taken = before != flow_free.render.EMPTY
        if not np.array_equal(before[taken], after[taken]):
            return False
        for colour, ends in enumerate(puzzle.endpoints):
            grown = (after == flow_free.render.path_label(colour)) & ~taken
            if grown.sum() > puzzle.cells_per_move:
                return False
            own = np.isin(after, (flow_free.render.path_label(colour), flow_free.render.endpoint_label(colour)))
            if not _hangs_on(own, [divmod(end, puzzle.cols) for end in ends]):
                return False
        if not np.array_equal(after % 2 == 1, states[0] % 2 == 1):  # the odd labels are endpoints
            return False
    last = states[-1]
    if (last == flow_free.render.EMPTY).any() or last.max() > flow_free.render.path_label(len(puzzle.endpoints) - 1):
        return False
    return all(_is_path(last, colour, ends, puzzle.cols) for colour, ends in enumerate(puzzle.endpoints))


def _hangs_on(own: NDArray[np.bool_], ends: list[tuple[int, int]]) -> bool:
    """Whether each cell of `own` is reached from the ends through `own`."""
    seen, queue = set(ends), list(ends)
    for at in queue:  # grows while it is walked
        for to in _beside(own, at):
            if to not in seen:
                seen.add(to)
                queue.append(to)
    return len(seen) == own.sum()


def _beside(own: NDArray[np.bool_], at: tuple[int, int]) -> list[tuple[int, int]]:
    around = [(at[0] + down, at[1] + right) for down, right in _WAYS]
    return [to for to in around if 0 <= to[0] < own.shape[0] and 0 <= to[1] < own.shape[1] and own[to]]


def _is_path(last: NDArray[np.int8], colour: int, ends: tuple[int, int], cols: int) -> bool:
    """Whether a simple path through all cells of a colour joins its ends: depth first, boards being small."""
    own = np.isin(last, (flow_free.render.path_label(colour), flow_free.render.endpoint_label(colour)))
    goal, size = divmod(ends[1], cols), int(own.sum())

    def walk(at: tuple[int, int], seen: frozenset[tuple[int, int]]) -> bool:
        if at == goal:
            return len(seen) == size
        return any(walk(to, seen | {to}) for to in _beside(own, at) if to not in seen)

    return walk(divmod(ends[0], cols), frozenset([divmod(ends[0], cols)]))
