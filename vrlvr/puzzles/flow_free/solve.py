"""The planner: fills the whole grid with disjoint paths that join the endpoints, and counts all ways to do so.

Cells are decided in reading order. What the decided part means for the rest is only which path ends cross its border
(the frontier) and whom they belong to, so partial boards with equal frontiers are one state of a dynamic programme
("plug" or frontier-based search: Knuth's Simpath, TAOCP 4A, 7.1.4; for this puzzle Yoshinaka et al., "Finding all
solutions and instances of numberlink and slitherlink by ZDDs", Algorithms 5(2), 2012). It is exact, prunes dead
ends and lost connections by construction, and its cost depends on the board's width, not on how deceptive it is.
"""

from collections.abc import Sequence

from vrlvr.puzzles.flow_free.puzzle import Path, Puzzle

# A frontier holds one plug per column (a path that comes down into the next row) and one that comes from the left:
# 0 none, c > 0 a path that starts at an endpoint of colour c - 1, and -i both ends of the i-th path without endpoint.
Frontier = tuple[int, ...]
RIGHT, DOWN = 1, 2


def solve(puzzle: Puzzle) -> tuple[Path, ...]:
    """A solution: a path per colour. Raises ValueError if there is none."""
    count, paths = count_solutions(puzzle.rows, puzzle.cols, puzzle.endpoints)
    if count == 0:
        raise ValueError(f"no paths fill the {puzzle.rows}x{puzzle.cols} board; change its endpoints")
    return paths


def count_solutions(rows: int, cols: int, endpoints: Sequence[Sequence[int]]) -> tuple[int, tuple[Path, ...]]:
    """How many sets of paths solve the board, and one of them (empty if there is none).

    endpoints: (first, ..., last) cell of each colour. Two solutions count as different if any path differs, even
    where they colour the cells alike.
    """
    colour_at = {cell: colour for colour, ends in enumerate(endpoints, 1) for cell in (ends[0], ends[-1])}
    layer: dict[Frontier, int] = {(0,) * (cols + 1): 1}
    history: list[dict[Frontier, tuple[Frontier, int]]] = []
    for cell in range(rows * cols):
        col = cell % cols
        open_right, open_down = col < cols - 1, cell < (rows - 1) * cols
        colour = colour_at.get(cell, 0)
        following: dict[Frontier, int] = {}
        came_from: dict[Frontier, tuple[Frontier, int]] = {}
        for frontier, count in layer.items():
            for child, edges in _decide(frontier, col, colour, open_right, open_down):
                if child in following:
                    following[child] += count
                else:
                    following[child] = count
                    came_from[child] = (frontier, edges)
        layer = following
        history.append(came_from)
    done = (0,) * (cols + 1)
    if done not in layer:
        return 0, ()
    return layer[done], _paths(rows, cols, endpoints, history)


def _decide(frontier: Frontier, col: int, colour: int, open_right: bool, open_down: bool) -> list[tuple[Frontier, int]]:
    """All frontiers after one more cell, each with the edges that leave the cell. colour: 0 where no endpoint is."""
    up, left = frontier[col], frontier[-1]
    base = list(frontier)
    base[col] = base[-1] = 0
    if up and left:  # the cell joins two paths
        if colour or not _join(base, up, left):
            return []
        return [(_normal(base), 0)]
    plug = up or left
    if plug and colour:  # a path ends at this endpoint
        return [(_normal(base), 0)] if _join(base, plug, colour) else []
    if plug or colour:  # one path goes on, or starts
        plug = plug or colour
        children = []
        if open_right:
            base[-1] = plug
            children.append((_normal(base), RIGHT))
            base[-1] = 0
        if open_down:
            base[col] = plug
            children.append((_normal(base), DOWN))
        return children
    if open_right and open_down:  # a new piece of path turns here
        base[col] = base[-1] = -len(frontier)  # a name that no other plug has
        return [(_normal(base), RIGHT | DOWN)]
    return []


def _join(base: list[int], a: int, b: int) -> bool:
    """Connects two path ends and renames what hangs on them; False if that closes a loop or mixes two colours."""
    if a > 0 and b > 0:
        return a == b
    if a == b:
        return False
    old, new = (a, b) if a < 0 else (b, a)
    base[base.index(old)] = new
    return True


def _normal(base: list[int]) -> Frontier:
    """Names the paths without endpoint -1, -2, ... by their first plug, so that equal frontiers compare equal."""
    if min(base) >= 0:
        return tuple(base)
    names: dict[int, int] = {}
    return tuple(plug if plug >= 0 else names.setdefault(plug, -1 - len(names)) for plug in base)


def _paths(
    rows: int, cols: int, endpoints: Sequence[Sequence[int]], history: list[dict[Frontier, tuple[Frontier, int]]]
) -> tuple[Path, ...]:
    """Follows the decisions back from the finished board, then each path from its first endpoint."""
    linked: list[list[int]] = [[] for _ in range(rows * cols)]
    frontier: Frontier = (0,) * (cols + 1)
    for cell in reversed(range(rows * cols)):
        frontier, edges = history[cell][frontier]
        for bit, other in ((RIGHT, cell + 1), (DOWN, cell + cols)):
            if edges & bit:
                linked[cell].append(other)
                linked[other].append(cell)
    paths = []
    for ends in endpoints:
        path = [ends[0]]
        while path[-1] != ends[-1]:
            path.append(next(cell for cell in linked[path[-1]] if len(path) < 2 or cell != path[-2]))
        paths.append(tuple(path))
    return tuple(paths)
