"""A Sokoban level: its state, its moves, and the state as JSON."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from vrlvr.puzzles import grid
from vrlvr.puzzles.sokoban.render import AGENT, AGENT_ON_TARGET, BOX, BOX_ON_TARGET, FLOOR, TARGET, WALL, labels

# The usual notation of levels (XSB), in the order of the labels.
_XSB = "# .$*@+"
_BOXES, _AGENTS = (BOX, BOX_ON_TARGET), (AGENT, AGENT_ON_TARGET)
GROUND_OF = bytes([WALL, FLOOR, TARGET, FLOOR, TARGET, FLOOR, TARGET]) + bytes(range(7, 256))

State = tuple[int, tuple[int, ...]]  # the agent's cell, the boxes' cells in ascending order


@dataclass(frozen=True)
class Puzzle:
    """ground: one label (WALL, FLOOR, TARGET) a cell, row by row. agent: its cell. boxes: their cells, ascending.

    solution: moves U, D, L, R of the agent; a move into a box pushes it.
    """

    task: ClassVar[str] = "sokoban"
    rows: int
    cols: int
    ground: bytes
    agent: int
    boxes: tuple[int, ...]
    solution: str

    @cached_property
    def targets(self) -> tuple[int, ...]:
        """The cells to push the boxes to, ascending."""
        return tuple(cell for cell, label in enumerate(self.ground) if label == TARGET)

    def trace(self, solution: str) -> list[State]:
        """The states that a sequence of moves goes through, the start first. Raises ValueError at an illegal move."""
        states = [(self.agent, self.boxes)]
        for number, move in enumerate(solution, 1):
            after = step(self, states[-1], move)
            if after is None:
                raise ValueError(
                    f"move {number} of {solution!r:.60} is illegal; a move is U, D, L or R onto a free cell, or "
                    "into a box with a free cell behind it"
                )
            states.append(after)
        return states

    def to_json(self) -> dict[str, Any]:
        """`board` has a string a row in XSB: `#` wall, ` ` floor, `.` target, `$` box, `@` agent, `*+` on a target."""
        cells = "".join(_XSB[label] for label in labels(self.ground, self.agent, self.boxes))
        return {"task": self.task, "board": grid.split(cells, self.cols), "solution": self.solution}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Puzzle":
        """The inverse of to_json.

        Raises ValueError if `data` is no level with a legal solution, KeyError if it lacks a key.
        """
        if data["task"] != cls.task:
            raise ValueError(f"task is {data['task']!r:.40}, a Sokoban level has {cls.task!r}")
        rows, cols, cells = grid.join(data["board"], _XSB)
        marks = bytes(_XSB.index(mark) for mark in cells)
        agents = [cell for cell, label in enumerate(marks) if label in _AGENTS]
        boxes = tuple(cell for cell, label in enumerate(marks) if label in _BOXES)
        if len(agents) != 1:
            raise ValueError(f"the board has {len(agents)} agents (@ or +); a level has exactly one")
        puzzle = cls(rows, cols, marks.translate(GROUND_OF), agents[0], boxes, data["solution"])
        if not boxes or len(boxes) != len(puzzle.targets):
            raise ValueError(
                f"the board has {len(boxes)} boxes and {len(puzzle.targets)} targets; it needs as many, at least 1"
            )
        if not isinstance(puzzle.solution, str):
            raise ValueError(f"solution is {puzzle.solution!r:.60}; it must be a string of U, D, L, R")
        if boxes == puzzle.targets:
            raise ValueError("every box is on a target already; a level has something to push")
        if puzzle.trace(puzzle.solution)[-1][1] != puzzle.targets:
            raise ValueError(f"solution {puzzle.solution!r:.60} does not end with every box on a target")
        return puzzle


def step(puzzle: Puzzle, state: State, move: str) -> State | None:
    """The state after a move; None if it is illegal: off the board, into a wall, or into a box that cannot move."""
    way = grid.neighbours(puzzle.rows, puzzle.cols).get(move)
    if way is None:
        return None
    agent, boxes = way[state[0]], state[1]
    if agent == grid.OFF_BOARD or puzzle.ground[agent] == WALL:
        return None
    if agent not in boxes:
        return agent, boxes
    behind = way[agent]
    if behind == grid.OFF_BOARD or puzzle.ground[behind] == WALL or behind in boxes:
        return None
    return agent, tuple(sorted(behind if box == agent else box for box in boxes))


def canonical(puzzle: Puzzle) -> bytes:
    """Equal for all rotated and mirrored copies of a level; the solution has no part in it."""
    return grid.canonical(labels(puzzle.ground, puzzle.agent, puzzle.boxes), puzzle.rows, puzzle.cols)
