"""The rules of FlowFree, held against what was read off a video.

Every frame becomes one bit mask per label (bit = cell). Colours are judged one by one, each up to its own first broken
rule. A colour's cells are legal if they can be the beginning and the end of one path that joins its endpoints, grown
cell by cell: so the judge carries all pairs of path ends ("heads") that explain the frames so far, starting from the
two endpoints. More than one pair remains where a path runs along itself and the order of its cells is open.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from vrlvr.puzzles.flow_free.puzzle import Puzzle
from vrlvr.puzzles.flow_free.render import EMPTY, LOOKS, endpoint_label, path_label, states
from vrlvr.puzzles.grid import around
from vrlvr.puzzles.judging import UNREADABLE, UNREADABLE_CELL, frames, reading_error
from vrlvr.puzzles.verdict import Verdict, overlap

COMPONENTS = ("solved", "progress", "filled", "process", "error")
# Of the rules that one frame breaks, the first of this list is reported.
RULES = (
    UNREADABLE_CELL,
    "start_changed",
    "unknown_colour",
    "endpoint_changed",
    "colour_changed",
    "cell_vanished",
    "grew_too_fast",
    "disconnected",
    "not_solved",
)

Heads = frozenset[tuple[int, int]]
Around = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class _Facts:
    """What the judge needs of a puzzle, computed once. Masks have bit i for cell i."""

    start: bytes
    beside: Around
    beside_masks: tuple[int, ...]
    pairs: tuple[int, ...]  # mask of each colour's two endpoints
    free: tuple[int, ...]  # the cells that are no endpoint
    reference: set[tuple[int, int]]  # (cell, label) of each of them in the planner's solution


@dataclass
class _Growth:
    """One colour up to its first broken rule."""

    heads: Heads  # all pairs of path ends that explain its cells
    joined: bool  # its endpoints are joined now
    broken: str | None = None
    cells: int = 0  # mask of its cells between the endpoints
    ever_joined: bool = False
    consistent: int = 0  # most cells at any time that had exactly two neighbours of this colour


def judge(puzzle: Puzzle, labels_TRK: NDArray[np.integer], rmse_TRK: NDArray[np.floating]) -> Verdict:
    """Judges board states read off a video: labels (T, R, K) into LOOKS or UNREADABLE, and their rmse.

    Components, all in [0, 1]. The valid prefix ends before the first unreadable cell, a colour's own before its own
    first broken rule; everything but `error` is 0 unless frame 0 is the puzzle.
      solved    1 if no rule is broken in any frame and in the last one every colour's cells are a path that joins its
                endpoints and no cell is empty. Cells never vanish, so what is solved stays so.
      progress  share of colours that were joined end to end within their prefix.
      filled    share of the cells that are no endpoint, coloured within the prefix, with exactly two neighbours of
                their colour (at the moment of the prefix that is best for the colour). 1 if solved, where a path
                that runs along itself has cells with more.
      process   share of colours that have grown and broke no rule through all frames of the video.
      error     see reading_error. The only one that is bad.
    Precision and recall compare (cell, colour) pairs off the endpoints in the last frame without unreadable cell with
    the planner's solution.

    Raises ValueError if the arrays do not have the puzzle's board.
    """
    facts = _facts(puzzle)
    shown = frames(labels_TRK, rmse_TRK, puzzle.rows, puzzle.cols)
    growths, broken = _follow(puzzle, facts, shown)
    solved = False
    if not broken:
        solved = EMPTY not in shown[-1] and all(growth.joined for growth in growths)
        if not solved:
            broken.append((len(shown) - 1, "not_solved"))
    frame, rule = min(broken, key=lambda case: (case[0], RULES.index(case[1])), default=(None, None))
    whole = all(UNREADABLE not in cells for cells in shown)
    legal = sum(growth.cells != 0 and growth.broken is None for growth in growths) if whole else 0
    consistent = sum(growth.consistent for growth in growths)
    components = {
        "solved": float(solved),
        "progress": 1.0 if solved else sum(growth.ever_joined for growth in growths) / len(facts.pairs),
        "filled": 1.0 if solved else consistent / max(1, len(facts.free)),
        "process": 1.0 if solved else legal / len(facts.pairs),
        "error": reading_error(rmse_TRK),
    }
    return Verdict(solved, components, rule, frame, *_overlap(facts, shown))


@lru_cache(maxsize=65536)
def _facts(puzzle: Puzzle) -> _Facts:
    beside = around(puzzle.rows, puzzle.cols)
    start, *_, end = states(puzzle, puzzle.solution).astype(np.uint8)
    free = tuple(np.flatnonzero(start == EMPTY).tolist())
    return _Facts(
        start=start.tobytes(),
        beside=beside,
        beside_masks=tuple(sum(1 << other for other in others) for others in beside),
        pairs=tuple((1 << a) | (1 << b) for a, b in puzzle.endpoints),
        free=free,
        reference={(cell, int(end.flat[cell])) for cell in free},
    )


def _overlap(facts: _Facts, shown: list[bytes]) -> tuple[float, float]:
    """Precision and recall of the cells coloured in the last readable frame; 0 if there is none."""
    last = next((cells for cells in reversed(shown) if UNREADABLE not in cells), facts.start)
    return overlap({(cell, last[cell]) for cell in facts.free if last[cell] != EMPTY}, facts.reference)


def _follow(puzzle: Puzzle, facts: _Facts, shown: list[bytes]) -> tuple[list[_Growth], list[tuple[int, str]]]:
    """All colours through the valid prefix, and the (frame, rule) of each first breach; no colours without a start."""
    if UNREADABLE in shown[0]:
        return [], [(0, UNREADABLE_CELL)]
    if shown[0] != facts.start:
        return [], [(0, "start_changed")]
    growths = [_Growth(frozenset([pair]), pair[1] in facts.beside[pair[0]]) for pair in puzzle.endpoints]
    broken: dict[str | int, tuple[int, str]] = {}  # by colour, or by rule where no colour is to blame
    known = endpoint_label(len(growths))
    last, before = shown[0], _masks(shown[0])
    for frame, cells in enumerate(shown):
        if cells == last:
            continue
        if UNREADABLE in cells:
            broken[UNREADABLE_CELL] = (frame, UNREADABLE_CELL)
            break
        now = _masks(cells)
        if any(now[known:]):
            broken.setdefault("unknown_colour", (frame, "unknown_colour"))
        for colour, growth in enumerate(growths):
            if growth.broken is None:
                _grow(facts, growth, colour, before, now, puzzle.cells_per_move)
                if growth.broken is not None:
                    broken[colour] = (frame, growth.broken)
        last, before = cells, now
    return growths, list(broken.values())


def _masks(cells: bytes) -> list[int]:
    """For each label the mask of the cells that show it."""
    masks = [0] * len(LOOKS)
    bit = 1
    for label in cells:
        masks[label] |= bit
        bit <<= 1
    return masks


def _grow(facts: _Facts, growth: _Growth, colour: int, before: list[int], now: list[int], limit: int) -> None:
    """Takes one colour from one frame to the next, or notes the rule that it breaks. Masks are per label."""
    if now[endpoint_label(colour)] != facts.pairs[colour]:
        growth.broken = "endpoint_changed"
        return
    cells = now[path_label(colour)]
    if cells == growth.cells:
        return
    lost, new = growth.cells & ~cells, cells & ~growth.cells
    if lost & ~now[EMPTY] or new & ~before[EMPTY]:
        growth.broken = "colour_changed"
    elif lost:
        growth.broken = "cell_vanished"
    elif heads := _extend(facts.beside, growth.heads, new, limit):
        growth.cells, growth.heads = cells, heads
        growth.joined = any(b in facts.beside[a] for a, b in heads)
        growth.ever_joined |= growth.joined
        growth.consistent = max(growth.consistent, _consistent(facts, cells, cells | facts.pairs[colour]))
    elif new.bit_count() > limit:
        growth.broken = "grew_too_fast"
    else:
        growth.broken = "disconnected"


def _consistent(facts: _Facts, cells: int, same: int) -> int:
    """How many of the cells have exactly two neighbours in `same`. Both are masks."""
    masks = facts.beside_masks
    return sum(cells >> cell & 1 and (masks[cell] & same).bit_count() == 2 for cell in facts.free)


def _extend(beside: Around, heads: Heads, new: int, limit: int) -> Heads:
    """All pairs of heads after both ends together took exactly the new cells, at most `limit` of them; empty if none."""
    if new.bit_count() > limit:
        return frozenset()
    return frozenset(
        (first, second)
        for a, b in heads
        for first, rest in _strolls(beside, a, new)
        for second, left in _strolls(beside, b, rest)
        if not left
    )


def _strolls(beside: Around, head: int, new: int) -> list[tuple[int, int]]:
    """All (last cell, cells not taken) of simple paths from a head through new cells: exponential, so for a few only."""
    found = [(head, new)]
    for cell in beside[head]:
        if new >> cell & 1:
            found += _strolls(beside, cell, new & ~(1 << cell))
    return found
