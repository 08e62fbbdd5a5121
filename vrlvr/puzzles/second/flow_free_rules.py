"""FlowFree's rules by laying cells: when each cell took its colour, and whether two strands can have brought it there."""

import numpy as np
from numpy.typing import NDArray

from vrlvr.puzzles.flow_free.puzzle import MAX_COLOURS, Puzzle
from vrlvr.puzzles.flow_free.render import EMPTY, LOOKS, endpoint_label, path_label
from vrlvr.puzzles.second.palette import game_of
from vrlvr.puzzles.second.reading import UNCLEAR
from vrlvr.puzzles.second.verdict import (
    ILLEGAL_MOVE,
    IMPOSSIBLE_BOARD,
    NOT_SOLVED,
    START_CHANGED,
    UNREADABLE,
    SecondVerdict,
)

GAME = game_of(LOOKS, [(EMPTY, path_label(colour)) for colour in range(MAX_COLOURS)])

Groups = list[tuple[int, frozenset[int]]]  # (frame, the cells that took the colour in it)


def judge(puzzle: Puzzle, labels_TRK: NDArray[np.int16]) -> SecondVerdict:
    """Judges what `reading.read` gave.

    Endpoints stay. A cell takes a colour once, from empty, and keeps it. A colour's cells must lie on two strands, laid cell by
    cell from its two endpoints in the order in which the frames show them, at most cells_per_move a frame; where the strands'
    ends meet, the colour is joined. Solved: all joined, no cell empty, no rule broken.
    progress: the share of colours that were joined before they broke a rule.
    """
    shown = labels_TRK.reshape(len(labels_TRK), -1)
    start = np.full(shown.shape[1], EMPTY)
    for colour, ends in enumerate(puzzle.endpoints):
        start[list(ends)] = endpoint_label(colour)
    legible = (shown != UNCLEAR).all(1)
    breaks = [] if legible.all() else [(int(legible.argmin()), UNREADABLE)]
    if breaks and breaks[0][0] == 0:
        return SecondVerdict(False, 0.0, UNREADABLE, 0)
    if (shown[0] != start).any():
        return SecondVerdict(False, 0.0, START_CHANGED, 0)
    lawful = shown[: breaks[0][0] if breaks else len(shown)]

    strange = (lawful >= endpoint_label(len(puzzle.endpoints))).any(1)
    if strange.any():
        breaks.append((int(strange.argmax()), IMPOSSIBLE_BOARD))
    joined_once = joined_last = 0
    for colour, ends in enumerate(puzzle.endpoints):
        groups, broken = _growth(puzzle, lawful, colour)
        laid, joined = _lay(ends, [cells for _, cells in groups], puzzle.cols)
        if laid < len(groups):
            broken = (groups[laid][0], ILLEGAL_MOVE)
        if broken is not None:
            breaks.append(broken)
        joined_once += any(joined[1:])
        joined_last += joined[len(groups)] if laid == len(groups) else False
    if not breaks and joined_last == len(puzzle.endpoints) and (shown[-1] != EMPTY).all():
        return SecondVerdict(True, 1.0, None, None)
    frame, rule = min(breaks, default=(len(shown) - 1, NOT_SOLVED))
    return SecondVerdict(False, joined_once / len(puzzle.endpoints), rule, frame)


def _growth(puzzle: Puzzle, lawful: NDArray[np.int16], colour: int) -> tuple[Groups, tuple[int, str] | None]:
    """The cells that took a colour, by frame, up to the first frame that breaks a rule whatever their order; and that."""
    ends = np.zeros(lawful.shape[1], bool)
    ends[list(puzzle.endpoints[colour])] = True
    own = lawful == path_label(colour)
    new = own[1:] & ~own[:-1]
    wrong_ends = ((lawful[1:] == endpoint_label(colour)) != ends).any(1)
    wrong_moves = (own[:-1] & ~own[1:]).any(1) | (new & (lawful[:-1] != EMPTY)).any(1)
    wrong_moves |= new.sum(1) > puzzle.cells_per_move
    wrong = wrong_ends | wrong_moves
    end = int(wrong.argmax()) if wrong.any() else len(new)
    groups = [(t + 1, frozenset(np.flatnonzero(new[t]).tolist())) for t in range(end) if new[t].any()]
    broken = (end + 1, IMPOSSIBLE_BOARD if wrong_ends[end] else ILLEGAL_MOVE) if wrong.any() else None
    return groups, broken


def _lay(ends: tuple[int, int], groups: list[frozenset[int]], cols: int) -> tuple[int, list[bool]]:
    """Lays groups of cells, one group after the other, on strands from both ends, in every way there is.

    Returns how many groups can be laid, and for each number of groups whether the strands can then meet.
    """
    joined = [False] * (len(groups) + 1)
    stack = [(0, frozenset[int](), *ends)]
    met = set(stack)
    deepest = 0
    while stack:
        laid, left, a, b = stack.pop()
        if not left:
            deepest = max(deepest, laid)
            joined[laid] |= _touch(a, b, cols)
            if laid == len(groups):
                continue
            laid, left = laid + 1, groups[laid]
        for cell in left:
            ways = [(cell, b)] * _touch(a, cell, cols) + [(a, cell)] * _touch(b, cell, cols)
            for heads in ways:
                state = (laid, left - {cell}, *heads)
                if state not in met:
                    met.add(state)
                    stack.append(state)
    return deepest, joined


def _touch(a: int, b: int, cols: int) -> bool:
    """Whether two cells share a side."""
    return abs(a // cols - b // cols) + abs(a % cols - b % cols) == 1
