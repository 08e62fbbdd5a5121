"""The rules of the maze, applied to what was read off a video."""

import numpy as np
from numpy.typing import NDArray

from vrlvr.puzzles.grid import around, frames, reading_error
from vrlvr.puzzles.maze.puzzle import Puzzle
from vrlvr.puzzles.maze.render import AGENT, AGENT_ON_GOAL, FLOOR, GOAL, WALL, trace
from vrlvr.puzzles.maze.solve import to_goal
from vrlvr.puzzles.verdict import Verdict, overlap

COMPONENTS = ("solved", "progress", "error")

_UNREADABLE = 255
_AGENT_AT = bytes([label in (AGENT, AGENT_ON_GOAL) for label in range(256)])
_GROUND = bytes([WALL, FLOOR, GOAL, FLOOR, GOAL]) + bytes(range(5, 256))  # of each label; unreadable stays itself


def judge(puzzle: Puzzle, labels_TRK: NDArray[np.integer], rmse_TRK: NDArray[np.floating]) -> Verdict:
    """Judges a video read by board.read.

    Each frame must show one agent and else exactly the puzzle; frame 0 the start; the agent stays or moves one cell a frame
    over free cells, and stays on the goal once there. The frames before the first that breaks a rule are the valid prefix.

    Components: `solved` (0 or 1); `progress`, 1 - (fewest moves to the goal from the nearest state of the valid prefix) /
    (from the start): the nearest, not the last, so that cutting a video short can never pay; `error`, see reading_error.
    Precision and recall compare the sets of cells visited, the start excluded: the video's over all frames that are readable
    and show one agent, the planner's over its whole path.

    Raises ValueError if the arrays do not have the puzzle's board.
    """
    shown = frames(labels_TRK, rmse_TRK, puzzle.rows, puzzle.cols)
    prefix, broken_rule = _valid_prefix(puzzle, shown)
    solved = broken_rule is None and prefix[-1] == puzzle.goal
    if broken_rule is None and not solved:
        broken_rule, frame = "not_solved", len(shown) - 1
    else:
        frame = len(prefix)
    distances = to_goal(puzzle)
    nearest = min((distances[cell] for cell in prefix), default=distances[puzzle.start])
    precision, recall = overlap(_visited(puzzle, shown), set(trace(puzzle, puzzle.solution)) - {puzzle.start})
    return Verdict(
        solved,
        {
            "solved": float(solved),
            "progress": 1 - nearest / distances[puzzle.start],
            "error": reading_error(rmse_TRK),
        },
        broken_rule,
        None if solved else frame,
        precision,
        recall,
    )


def _valid_prefix(puzzle: Puzzle, shown: list[bytes]) -> tuple[list[int], str | None]:
    """The agent's cell in each frame before the first that breaks a rule, and that rule (None if all are legal)."""
    beside = around(puzzle.rows, puzzle.cols)
    prefix: list[int] = []
    last = b""
    for frame in shown:
        if frame != last or not prefix:
            rule = _broken_in(puzzle, frame)
            cell = frame.translate(_AGENT_AT).find(1)
            if not prefix:
                if rule != "unreadable_cell" and (rule or cell != puzzle.start):
                    rule = "start_changed"
            elif not rule and cell != prefix[-1]:
                if prefix[-1] == puzzle.goal:
                    rule = "goal_left"
                elif cell not in beside[prefix[-1]]:
                    rule = "teleport"
            if rule:
                return prefix, rule
            last = frame
        prefix.append(cell)
    return prefix, None


def _broken_in(puzzle: Puzzle, frame: bytes) -> str | None:
    """The rule that a frame breaks by itself."""
    if _UNREADABLE in frame:
        return "unreadable_cell"
    agents = frame.translate(_AGENT_AT)
    if agents.count(1) != 1:
        return "two_agents" if 1 in agents else "no_agent"
    ground = frame.translate(_GROUND)
    if ground == puzzle.ground:
        return None
    if puzzle.ground[agents.find(1)] == WALL:
        return "walked_through_wall"
    goal_stays = ground.count(GOAL) == 1 and ground[puzzle.goal] == GOAL
    return "wall_changed" if goal_stays else "goal_moved"


def _visited(puzzle: Puzzle, shown: list[bytes]) -> set[int]:
    """Cells other than the start that the agent stands on in the readable frames with one agent."""
    agents = (frame.translate(_AGENT_AT) for frame in set(shown) if _UNREADABLE not in frame)
    return {mask.find(1) for mask in agents if mask.count(1) == 1} - {puzzle.start}
