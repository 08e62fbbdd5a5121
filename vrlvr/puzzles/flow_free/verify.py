"""The rules of FlowFree, held against what was read off a video.

Every frame becomes one bit mask per colour (bit = cell). Colours are judged one by one, each up to its own first broken
rule. A colour's cells are legal if they can be the beginning and the end of one path that joins its endpoints, grown
cell by cell: so the judge carries all pairs of path ends ("heads") that explain the frames so far, starting from the
two endpoints. More than one pair remains where a path runs along itself and the order of its cells is open.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from vrlvr.puzzles import board
from vrlvr.puzzles.flow_free.puzzle import Puzzle, neighbours
from vrlvr.puzzles.flow_free.render import EMPTY, states
from vrlvr.puzzles.verdict import Verdict

COMPONENTS = ("solved", "progress", "filled", "process", "error")
RULES = (
    "unreadable_cell",
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


@dataclass(frozen=True)
class _Facts:
    """What the judge needs of a puzzle, computed once."""

    start: NDArray[np.int8]  # (R*K,)
    near: tuple[tuple[int, ...], ...]
    near_masks: tuple[int, ...]
    endpoints: int  # mask of all endpoint cells
    pairs: tuple[int, ...]  # mask of each colour's endpoints
    solution: tuple[int, ...]  # mask of each colour's cells between its endpoints
    num_free: int  # cells that are no endpoint


@dataclass
class _Growth:
    """What one colour achieved up to its first broken rule."""

    broken: tuple[int, int] | None  # frame, index into RULES
    connected: bool  # was joined end to end at some frame
    covered: bool  # has grown at all
    consistent: int  # most cells at any frame with exactly two neighbours of their colour
    complete: bool  # is joined end to end at the last frame


def judge(puzzle: Puzzle, labels_TRK: NDArray[np.integer], rmse_TRK: NDArray[np.floating]) -> Verdict:
    """Judges board states read off a video: labels (T, R, K) into LOOKS or UNREADABLE, and their rmse.

    Components, all in [0, 1]. The prefix ends before the first unreadable cell, a colour's own before its own first broken
    rule; everything but `error` is 0 unless frame 0 is the puzzle.
      solved    1 if no rule is broken in any frame and in the last one every colour's cells are a path that joins its
                endpoints and no cell is empty. Cells never vanish, so what is solved stays so.
      progress  share of colours that were joined end to end within their prefix.
      filled    share of the cells that are no endpoint, coloured within the prefix, with exactly two neighbours of
                their colour (at the frame of the prefix that is best for the colour). 1 if solved, where a path
                that runs along itself has cells with more.
      process   share of colours that have grown and broke no rule through all frames of the video.
      error     mean over frames and cells of rmse / MAX_CELL_RMSE, at most 1 each. The only one that is bad.
    Precision and recall compare (cell, colour) pairs off the endpoints in the last frame without unreadable cell with
    the planner's solution.
    """
    facts = _facts(puzzle)
    num_frames = len(labels_TRK)
    labels = labels_TRK.reshape(num_frames, -1)
    error = float(np.minimum(rmse_TRK / board.MAX_CELL_RMSE, 1).mean())
    readable = (labels != board.UNREADABLE).all(1)
    valid = num_frames if readable.all() else int(readable.argmin())
    precision, recall = _overlap(facts, labels, readable)

    def verdict(
        broken: tuple[int, int] | None, progress: float = 0.0, filled: float = 0.0, process: float = 0.0
    ) -> Verdict:
        solved = broken is None
        components = {"solved": float(solved), "progress": progress, "filled": filled, "process": process}
        components["error"] = error
        frame, rule = (None, None) if broken is None else (broken[0], RULES[broken[1]])
        return Verdict(solved, components, rule, frame, precision, recall)

    if not valid:
        return verdict((0, RULES.index("unreadable_cell")))
    if not np.array_equal(labels[0], facts.start):
        return verdict((0, RULES.index("start_changed")))

    num_colours = len(facts.pairs)
    masks = _masks(labels[:valid], 2 * num_colours + 1)
    growths = [_grow(puzzle, facts, masks, colour) for colour in range(num_colours)]
    broken = [growth.broken for growth in growths if growth.broken]
    if valid < num_frames:
        broken.append((valid, RULES.index("unreadable_cell")))
    unknown = (labels[:valid] > 2 * num_colours).any(1)
    if unknown.any():
        broken.append((int(unknown.argmax()), RULES.index("unknown_colour")))
    if not broken:
        if all(growth.complete for growth in growths) and (labels[-1] != EMPTY).all():
            return verdict(None, 1.0, 1.0, 1.0)
        broken.append((num_frames - 1, RULES.index("not_solved")))
    legal = sum(growth.covered and growth.broken is None for growth in growths) if valid == num_frames else 0
    return verdict(
        min(broken),
        sum(growth.connected for growth in growths) / num_colours,
        sum(growth.consistent for growth in growths) / facts.num_free,
        legal / num_colours,
    )


@lru_cache(maxsize=65536)
def _facts(puzzle: Puzzle) -> _Facts:
    near = neighbours(puzzle.rows, puzzle.cols)
    pairs = tuple((1 << a) | (1 << b) for a, b in puzzle.endpoints)
    return _Facts(
        start=states(puzzle, puzzle.solution)[0].ravel(),
        near=near,
        near_masks=tuple(sum(1 << other for other in others) for others in near),
        endpoints=sum(pairs),
        pairs=pairs,
        solution=tuple(sum(1 << cell for cell in path[1:-1]) for path in puzzle.solution),
        num_free=max(1, puzzle.rows * puzzle.cols - 2 * len(pairs)),
    )


def _masks(labels: NDArray[np.integer], num_labels: int) -> list[list[int]]:
    """Bit masks [label][frame] of the cells that show a label. labels: (T, cells)."""
    shown = labels[None] == np.arange(num_labels, dtype=labels.dtype)[:, None, None]
    packed = np.packbits(shown, axis=-1, bitorder="little")
    size = packed.shape[-1]
    data = packed.tobytes()
    masks = [int.from_bytes(data[i : i + size], "little") for i in range(0, len(data), size)]
    return [masks[i : i + len(labels)] for i in range(0, len(masks), len(labels))]


def _overlap(facts: _Facts, labels: NDArray[np.integer], readable: NDArray[np.bool_]) -> tuple[float, float]:
    """Precision and recall of the coloured cells off the endpoints, in the last readable frame."""
    if not readable.any():
        return 0.0, 0.0
    last = len(labels) - 1 - int(readable[::-1].argmax())
    masks = _masks(labels[last : last + 1], 2 * len(facts.pairs) + 1)
    free = ~facts.endpoints
    covered = (((1 << labels.shape[1]) - 1) & ~masks[EMPTY][0] & free).bit_count()  # of any colour, known or not
    common = sum((masks[2 + 2 * c][0] & cells & free).bit_count() for c, cells in enumerate(facts.solution))
    reference = sum(cells.bit_count() for cells in facts.solution)
    return common / covered if covered else 0.0, common / reference if reference else 0.0


def _grow(puzzle: Puzzle, facts: _Facts, masks: list[list[int]], colour: int) -> _Growth:
    """Follows one colour through the readable frames up to its first broken rule."""
    empty, ends, path = masks[EMPTY], masks[1 + 2 * colour], masks[2 + 2 * colour]
    heads: Heads = frozenset([puzzle.endpoints[colour]])
    cells = consistent = 0
    connected = False
    complete = puzzle.endpoints[colour][1] in facts.near[puzzle.endpoints[colour][0]]
    broken = None
    for frame in range(1, len(path)):
        now = path[frame]
        if ends[frame] != facts.pairs[colour]:
            broken = (frame, RULES.index("endpoint_changed"))
            break
        if now == cells:
            continue
        lost, new = cells & ~now, now & ~cells
        if lost & ~empty[frame] or new & ~empty[frame - 1]:
            broken = (frame, RULES.index("colour_changed"))
            break
        if lost:
            broken = (frame, RULES.index("cell_vanished"))
            break
        grown = _extend(facts.near, heads, new, puzzle.cells_per_move)
        if not grown:
            few = new.bit_count() <= 2 * puzzle.cells_per_move
            slow = few and not _extend(facts.near, heads, new, new.bit_count())
            broken = (frame, RULES.index("disconnected" if slow else "grew_too_fast"))
            break
        cells, heads = now, grown
        complete = any(b in facts.near[a] for a, b in heads)
        connected = connected or complete
        consistent = max(consistent, _consistent(facts.near_masks, cells, cells | facts.pairs[colour]))
    return _Growth(broken, connected, cells != 0, consistent, complete)


def _consistent(near_masks: tuple[int, ...], cells: int, same: int) -> int:
    """How many of the cells have exactly two neighbours in `same`. Both are masks."""
    count = 0
    while cells:
        low = cells & -cells
        count += (near_masks[low.bit_length() - 1] & same).bit_count() == 2
        cells ^= low
    return count


def _extend(near: tuple[tuple[int, ...], ...], heads: Heads, new: int, limit: int) -> Heads:
    """All pairs of heads after both ends together took exactly the new cells, at most `limit` each; empty if none."""
    if new.bit_count() > 2 * limit:
        return frozenset()
    return frozenset(
        (first, second)
        for a, b in heads
        for first, rest in _strolls(near, a, new, limit)
        for second, left in _strolls(near, b, rest, limit)
        if not left
    )


def _strolls(near: tuple[tuple[int, ...], ...], head: int, new: int, limit: int) -> list[tuple[int, int]]:
    """All (last cell, cells not taken) of simple paths from a head through at most `limit` of the new cells."""
    found = [(head, new)]
    if limit:
        for cell in near[head]:
            if new >> cell & 1:
                found += _strolls(near, cell, new & ~(1 << cell), limit - 1)
    return found
