"""The planner of mazes: breadth-first search."""

from functools import lru_cache

from vrlvr.puzzles.grid import distances_from, neighbours
from vrlvr.puzzles.maze.puzzle import Puzzle


def descend(to_goal: dict[int, int], start: int, rows: int, cols: int) -> str:
    """A shortest path from start, given the distances to its end; ties go to the first of U, D, L, R."""
    ways = neighbours(rows, cols)
    moves, cell = [], start
    while to_goal[cell]:
        move = next(name for name in ways if to_goal.get(ways[name][cell], -1) == to_goal[cell] - 1)
        moves.append(move)
        cell = ways[move][cell]
    return "".join(moves)


@lru_cache(maxsize=1024)
def moves_to_goal(puzzle: Puzzle) -> dict[int, int]:
    """Fewest moves from every cell to the goal, for the cells that have a way there.

    Raises ValueError if the start has none.
    """
    moves = distances_from(puzzle.goal, puzzle.ground, puzzle.rows, puzzle.cols)
    if puzzle.start not in moves:
        raise ValueError("the maze has no solution: walls part start and goal")
    return moves


def solve(puzzle: Puzzle) -> str:
    """A shortest path from start to goal as moves U, D, L, R. Raises ValueError if walls part them."""
    return descend(moves_to_goal(puzzle), puzzle.start, puzzle.rows, puzzle.cols)
