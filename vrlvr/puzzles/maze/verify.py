"""The rules of the maze, applied to what was read off a video."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from vrlvr.puzzles.grid import around
from vrlvr.puzzles.judging import UNREADABLE, UNREADABLE_CELL, frames, reading_error, valid_prefix
from vrlvr.puzzles.maze.puzzle import Puzzle
from vrlvr.puzzles.maze.render import AGENT, AGENT_ON_GOAL, FLOOR, GOAL, WALL, trace
from vrlvr.puzzles.maze.solve import moves_to_goal
from vrlvr.puzzles.verdict import Verdict, overlap

COMPONENTS = ("solved", "progress", "error")

NO_CELL = -1

# What bytes.translate maps labels to; a cell that cannot be read stays itself.
_AGENT_AT = bytes(label in (AGENT, AGENT_ON_GOAL) for label in range(256))
_GROUND_OF = bytes([WALL, FLOOR, GOAL, FLOOR, GOAL]) + bytes(range(5, 256))


def judge(puzzle: Puzzle, labels_TRK: NDArray[np.integer], rmse_TRK: NDArray[np.floating]) -> Verdict:
    """Judges a video read by board.read.

    Each frame must show one agent and otherwise exactly the puzzle; frame 0 the start; the agent stays or moves one
    cell a frame, never into a wall, and stays on the goal once there. The frames before the first that breaks a rule
    are the valid prefix.

    Components: `solved`, 0 or 1; `progress`, 1 - d / d0, where d0 counts the fewest moves from the start to the goal
    and d those from the nearest state of the valid prefix: the nearest, not the last, so that cutting a video short
    never pays; `error`, see reading_error.
    Precision and recall compare sets of visited cells, the start excluded: the video's over the readable frames that
    show one agent, the planner's over its path.
    Raises ValueError if the arrays do not have the puzzle's board, or the puzzle has no solution.
    """
    shown = frames(labels_TRK, rmse_TRK, puzzle.rows, puzzle.cols)
    reading_of = {frame: _read(puzzle, frame) for frame in set(shown)}
    beside = around(puzzle.rows, puzzle.cols)

    def broken_between(before: int, after: int) -> str | None:
        if before == puzzle.goal:
            return "goal_left"
        return None if after in beside[before] else "teleport"

    prefix, broken_rule = valid_prefix([reading_of[frame] for frame in shown], puzzle.start, broken_between)
    solved = broken_rule is None and prefix[-1] == puzzle.goal
    distances = moves_to_goal(puzzle)
    nearest = min((distances[cell] for cell in prefix), default=distances[puzzle.start])
    components = {
        "solved": float(solved),
        "progress": 1 - nearest / distances[puzzle.start],
        "error": reading_error(rmse_TRK),
    }
    visited = {cell for cell, _ in reading_of.values()} - {NO_CELL, puzzle.start}
    precision, recall = overlap(visited, planned_cells(puzzle))
    if solved:
        return Verdict(True, components, None, None, precision, recall)
    if broken_rule is None:
        return Verdict(False, components, "not_solved", len(shown) - 1, precision, recall)
    return Verdict(False, components, broken_rule, len(prefix), precision, recall)


def _read(puzzle: Puzzle, frame: bytes) -> tuple[int, str | None]:
    """The agent's cell in a frame (NO_CELL unless it is readable with one agent), and the rule it breaks by itself."""
    if UNREADABLE in frame:
        return NO_CELL, UNREADABLE_CELL
    agents = frame.translate(_AGENT_AT)
    if agents.count(1) != 1:
        return NO_CELL, "two_agents" if 1 in agents else "no_agent"
    cell, ground = agents.index(1), frame.translate(_GROUND_OF)
    if ground == puzzle.ground:
        return cell, None
    if puzzle.ground[cell] == WALL:
        return cell, "walked_through_wall"
    goal_stays = ground.count(GOAL) == 1 and ground[puzzle.goal] == GOAL
    return cell, "wall_changed" if goal_stays else "goal_moved"


@lru_cache(maxsize=1024)
def planned_cells(puzzle: Puzzle) -> frozenset[int]:
    """The cells of the planner's path, the start excluded."""
    return frozenset(trace(puzzle, puzzle.solution)) - {puzzle.start}
