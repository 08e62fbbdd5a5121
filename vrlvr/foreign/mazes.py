"""Mazes as text with walls as cells: what `str(maze)` of the package `mazelib` gives, and ours.

`#` is a wall, a space or `.` floor, `S` the start, `E` or `G` the goal, `+` floor on the solution's path. Blank lines part
several mazes of a file. An entrance on the outer wall, as mazelib has them, becomes a cell of the board's edge.
"""

from vrlvr.foreign.level import Level, blocks, padded
from vrlvr.puzzles import grid
from vrlvr.puzzles.maze import Puzzle
from vrlvr.puzzles.maze.solve import descend

levels = blocks
_OURS = str.maketrans({" ": ".", "E": "G"})


def puzzle_of(level: Level) -> Puzzle:
    """The maze, solved along its `+` cells if it has any, else by the planner. Raises ValueError for no solvable maze."""
    rows, cols, cells = grid.join([row.translate(_OURS) for row in padded(level.rows)], "#.SG+")
    for mark, name in (("S", "start S"), ("G", "goal E or G")):
        if cells.count(mark) != 1:
            raise ValueError(f"the maze has {cells.count(mark)} cells marked as {name}; it must have exactly one")
    way = "SG+" if "+" in cells else ".SG"
    start = cells.index("S")
    to_goal = grid.distances_from(cells.index("G"), bytes(mark in way for mark in cells), rows, cols)
    if start not in to_goal:
        raise ValueError(
            "the cells marked + do not join start and goal; mark all of a path or none"
            if "+" in cells
            else "walls part start and goal, so that the maze has no solution"
        )
    board = grid.split(cells.replace("+", "."), cols)
    return Puzzle.from_json({"task": "maze", "board": board, "solution": descend(to_goal, start, rows, cols)})
