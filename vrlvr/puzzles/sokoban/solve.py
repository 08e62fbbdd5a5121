"""The planner of Sokoban, and how far any state is from being solved."""

import heapq
from functools import lru_cache
from itertools import permutations

from vrlvr.puzzles.grid import OFF_BOARD, neighbours
from vrlvr.puzzles.sokoban.puzzle import Puzzle, State
from vrlvr.puzzles.sokoban.render import TARGET, WALL

_DEAD = 1 << 20  # more pushes than any plan: the box can never reach the target


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

    The bound on the pushes left is the cheapest matching of boxes to targets where each box is pushed as if alone; a box
    that can reach no target (a corner, a dead wall) makes it infinite, which prunes dead states.
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


@lru_cache(maxsize=4096)
def lone_pushes(ground: bytes, rows: int, cols: int) -> tuple[tuple[int, ...], ...]:
    """For every cell: the fewest pushes that take a lone box from it to each target, _DEAD where none do.

    The agent is taken to stand wherever a push needs it, which makes these lower bounds.
    """
    ways = tuple(neighbours(rows, cols).values())
    backwards = {way: ways[number ^ 1] for number, way in enumerate(ways)}  # U and D, L and R are each other's inverse
    tables = []
    for target in (cell for cell, label in enumerate(ground) if label == TARGET):
        table = [_DEAD] * len(ground)
        table[target] = 0
        queue = [target]
        for box in queue:  # grows while it is walked
            for way in ways:
                before = backwards[way][box]
                agent = OFF_BOARD if before == OFF_BOARD else backwards[way][before]
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


@lru_cache(maxsize=1024)
def moves_left(puzzle: Puzzle) -> dict[State, int]:
    """Fewest moves to a solved state, for every state that needs fewer than the start, and for the start.

    Breadth first and backwards from all solved states until the start is met: states that are absent need as many moves as
    the start or more, or are dead.
    """
    ground = puzzle.ground
    ways = tuple(neighbours(puzzle.rows, puzzle.cols).values())
    start = (puzzle.agent, puzzle.boxes)
    free = [cell for cell, label in enumerate(ground) if label != WALL and cell not in puzzle.targets]
    layer: list[State] = [(agent, puzzle.targets) for agent in (*free,)]
    left = dict.fromkeys(layer, 0)
    moves = 0
    while start not in left:
        moves += 1
        before: list[State] = []
        for agent, boxes in layer:
            for number, way in enumerate(ways):
                stood = ways[number ^ 1][agent]  # U and D, L and R are each other's inverse
                if stood == OFF_BOARD or ground[stood] == WALL or stood in boxes:
                    continue
                candidates: list[State] = [(stood, boxes)]
                pushed = way[agent]
                if pushed in boxes:
                    candidates.append((stood, tuple(sorted(agent if box == pushed else box for box in boxes))))
                for state in candidates:
                    if state not in left:
                        left[state] = moves
                        before.append(state)
        if not before:
            raise ValueError("the level has no solution: no sequence of pushes puts every box on a target")
        layer = before
    return left
