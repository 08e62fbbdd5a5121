"""The planner of Sokoban, and how far any state is from being solved."""

import heapq
from collections.abc import Iterable
from functools import lru_cache
from itertools import permutations
from typing import NamedTuple

from vrlvr.puzzles.grid import OFF_BOARD, OPPOSITE, neighbours
from vrlvr.puzzles.sokoban.puzzle import Puzzle, State
from vrlvr.puzzles.sokoban.render import TARGET, WALL

_DEAD = 1 << 20  # more pushes than any plan: the box can never reach the target
_MAX_TABLE = 20_000


def solve(puzzle: Puzzle) -> str:
    """The plan of fewest pushes, among those the one of fewest moves, as moves U, D, L, R of the agent.

    Raises ValueError if there is none.
    """
    plan = search(puzzle.ground, puzzle.agent, puzzle.boxes, puzzle.rows, puzzle.cols)
    if plan is None:
        raise ValueError("the level has no solution: no sequence of pushes puts every box on a target")
    return plan


def search(
    ground: bytes, agent: int, boxes: tuple[int, ...], rows: int, cols: int, max_states: int | None = None
) -> str | None:
    """A* over (agent, boxes) with costs ordered by pushes, then moves (see `solve`).

    The bound on the pushes left is the cheapest matching of boxes to targets, each box pushed as if alone; a box that
    can reach no target (in a corner, along a dead wall) makes it infinite, which prunes dead states.
    Returns None if there is no plan, or none found before `max_states` states were expanded.
    """
    ways = neighbours(rows, cols)
    pushes_to = lone_pushes(ground, rows, cols)
    bounds: dict[tuple[int, ...], int] = {}

    def bound(of: tuple[int, ...]) -> int:
        if of not in bounds:
            bounds[of] = _cheapest_matching([pushes_to[box] for box in of])
        return bounds[of]

    start: State = (agent, boxes)
    least = bound(boxes)
    if least >= _DEAD:
        return None
    # (pushes made + pushes left at least, moves made + moves left at least, moves made, state)
    queue = [(least, least, 0, start)]
    cost = {start: (least, 0)}
    came_from: dict[State, tuple[State, str]] = {}
    expanded = 0
    while queue:
        total, _, moves, state = heapq.heappop(queue)
        if cost[state] < (total, moves):
            continue  # reached again by a cheaper way since
        at, lying = state
        if not bound(lying):
            return _moves_to(state, came_from)
        expanded += 1
        if max_states is not None and expanded > max_states:
            return None
        for name, way in ways.items():
            to = way[at]
            if to == OFF_BOARD or ground[to] == WALL:
                continue
            then, after = total, lying
            if to in lying:
                behind = way[to]
                if behind == OFF_BOARD or ground[behind] == WALL or behind in lying:
                    continue
                after = tuple(sorted(behind if box == to else box for box in lying))
                left = bound(after)
                if left >= _DEAD:
                    continue
                then = total - bound(lying) + 1 + left
            reached = (to, after)
            if reached not in cost or (then, moves + 1) < cost[reached]:
                cost[reached] = (then, moves + 1)
                came_from[reached] = (state, name)
                heapq.heappush(queue, (then, moves + 1 + bound(after), moves + 1, reached))
    return None


@lru_cache(maxsize=256)
def lone_pushes(ground: bytes, rows: int, cols: int) -> tuple[tuple[int, ...], ...]:
    """For every cell: the fewest pushes that take a lone box from it to each target, _DEAD where none do.

    The agent is taken to stand wherever a push needs it, which makes these lower bounds.
    """
    ways = neighbours(rows, cols)
    backwards = [ways[OPPOSITE[name]] for name in ways]
    tables = []
    for target in (cell for cell, label in enumerate(ground) if label == TARGET):
        table = [_DEAD] * len(ground)
        table[target] = 0
        queue = [target]
        for box in queue:  # grows while it is walked
            for back in backwards:
                before = back[box]
                agent = OFF_BOARD if before == OFF_BOARD else back[before]
                if agent != OFF_BOARD and WALL not in (ground[before], ground[agent]) and table[before] == _DEAD:
                    table[before] = table[box] + 1
                    queue.append(before)
        tables.append(table)
    return tuple(zip(*tables, strict=True))


def _cheapest_matching(pushes: list[tuple[int, ...]]) -> int:
    """The least sum that takes each row in another column; meant for a handful of boxes."""
    if len(pushes) == 1:
        return pushes[0][0]
    if min(map(min, pushes)) >= _DEAD:
        return _DEAD
    return min(
        sum(row[column] for row, column in zip(pushes, order, strict=True))
        for order in permutations(range(len(pushes)))
    )


def _moves_to(state: State, came_from: dict[State, tuple[State, str]]) -> str:
    moves = []
    while state in came_from:
        state, move = came_from[state]
        moves.append(move)
    return "".join(reversed(moves))


class Remaining(NamedTuple):
    """How far states are from being solved.

    moves: by (agent's cell, mask of the boxes' cells), the fewest moves to a solved state, for all states that are at
    most `start` moves away. start: those of the puzzle's own start.
    """

    moves: dict[tuple[int, int], int]
    start: int

    def of(self, state: State) -> int:
        """Fewest moves from a state to a solved one; no more than the start's, dead states included."""
        return self.moves.get((state[0], _mask(state[1])), self.start)


@lru_cache(maxsize=64)
def remaining_moves(puzzle: Puzzle) -> Remaining:
    """Searches breadth first and backwards from all solved states until it meets the start.

    It stops at 20,000 unsolved states, for judging to stay fast: all that lies beyond then counts as being as far as
    the start.
    Raises ValueError if the level has no solution.
    """
    ground, ways = puzzle.ground, neighbours(puzzle.rows, puzzle.cols)
    start, goal = (puzzle.agent, _mask(puzzle.boxes)), _mask(puzzle.targets)
    free = [cell for cell, label in enumerate(ground) if label != WALL]
    # For every cell of the agent: the cells that it may have come from, each with the cell of a box it may have pushed.
    before: dict[int, list[tuple[int, int]]] = {
        cell: [
            (origin, 0 if pushed == OFF_BOARD else 1 << pushed)
            for name, way in ways.items()
            if (origin := ways[OPPOSITE[name]][cell]) != OFF_BOARD and ground[origin] != WALL
            for pushed in [way[cell]]
        ]
        for cell in free
    }
    layer = [(agent, goal) for agent in free if not goal >> agent & 1]
    moves = dict.fromkeys(layer, 0)
    distance = 0
    while start not in moves and len(moves) < _MAX_TABLE + len(free):
        distance += 1
        earlier = []
        for agent, boxes in layer:
            for origin, pushed in before[agent]:
                if boxes >> origin & 1:
                    continue
                state = (origin, boxes)
                if state not in moves:
                    moves[state] = distance
                    earlier.append(state)
                if boxes & pushed:
                    state = (origin, boxes ^ pushed | 1 << agent)
                    if state not in moves:
                        moves[state] = distance
                        earlier.append(state)
        if not earlier:
            raise ValueError("the level has no solution: no sequence of pushes puts every box on a target")
        layer = earlier
    return Remaining(moves, distance)


def _mask(cells: Iterable[int]) -> int:
    return sum(1 << cell for cell in cells)
