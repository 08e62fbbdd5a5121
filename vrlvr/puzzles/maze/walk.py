"""The rules of the maze, applied to an answer in moves instead of a video."""

from vrlvr.puzzles.grid import OFF_BOARD, neighbours
from vrlvr.puzzles.maze.puzzle import Puzzle
from vrlvr.puzzles.maze.render import WALL
from vrlvr.puzzles.maze.solve import moves_to_goal
from vrlvr.puzzles.maze.verify import planned_cells
from vrlvr.puzzles.verdict import Verdict, overlap


def judge_moves(puzzle: Puzzle, moves: str) -> Verdict:
    """Judges a walk of moves U, D, L, R from the start, as `judge` would judge a video of it.

    The walk counts up to the first move that breaks a rule: off the board, into a wall, or on from the goal. It solves the maze
    if it breaks none and ends on the goal. `frame` is the number of the offending move, from 1; of the last one where the walk
    merely ends elsewhere. Components, precision and recall are those of `judge`; an answer in moves has no reading error.
    Raises ValueError for other letters, and for a puzzle without a solution.
    """
    if unknown := set(moves) - set("UDLR"):
        raise ValueError(f"move {min(unknown)!r} is unknown; a move is U, D, L or R")
    cells, broken_rule = _walk(puzzle, moves)
    distances = moves_to_goal(puzzle)
    nearest = min(distances[cell] for cell in cells)
    solved = broken_rule is None and cells[-1] == puzzle.goal
    components = {"solved": float(solved), "progress": 1 - nearest / distances[puzzle.start], "error": 0.0}
    precision, recall = overlap(set(cells) - {puzzle.start}, planned_cells(puzzle))
    if solved:
        return Verdict(True, components, None, None, precision, recall)
    frame = len(moves) if broken_rule is None else len(cells)
    return Verdict(False, components, broken_rule or "not_solved", frame, precision, recall)


def _walk(puzzle: Puzzle, moves: str) -> tuple[list[int], str | None]:
    """The cells of the legal part, start first, and the rule that the move after it breaks."""
    ways = neighbours(puzzle.rows, puzzle.cols)
    cells = [puzzle.start]
    for move in moves:
        cell = ways[move][cells[-1]]
        if cells[-1] == puzzle.goal:
            return cells, "goal_left"
        if cell == OFF_BOARD:
            return cells, "left_board"
        if puzzle.ground[cell] == WALL:
            return cells, "walked_through_wall"
        cells.append(cell)
    return cells, None
