"""A maze: its state, and the state as JSON."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from vrlvr.puzzles import grid
from vrlvr.puzzles.maze.render import AGENT, FLOOR, GOAL, WALL, trace

_GROUND = {"#": WALL, ".": FLOOR, "S": FLOOR, "G": GOAL}


@dataclass(frozen=True)
class Puzzle:
    """ground: one label (WALL, FLOOR, GOAL) a cell, row by row. start: the agent's cell. solution: moves U, D, L, R."""

    task: ClassVar[str] = "maze"
    rows: int
    cols: int
    ground: bytes
    start: int
    solution: str

    @cached_property
    def goal(self) -> int:
        """The goal's cell."""
        return self.ground.index(GOAL)

    def to_json(self) -> dict[str, Any]:
        """`board` holds a string a row: `#` wall, `.` floor, `S` start, `G` goal."""
        cells = "".join("#.G"[label] for label in self.ground)
        cells = cells[: self.start] + "S" + cells[self.start + 1 :]
        return {"task": self.task, "board": grid.split(cells, self.cols), "solution": self.solution}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Puzzle":
        """The inverse of to_json.

        Raises ValueError if `data` is no maze with a legal solution, KeyError if it lacks a key.
        """
        if data["task"] != cls.task:
            raise ValueError(f"task is {data['task']!r:.40}, a maze has {cls.task!r}")
        rows, cols, cells = grid.join(data["board"], "#.SG")
        for mark, name in (("S", "start"), ("G", "goal")):
            if cells.count(mark) != 1:
                raise ValueError(f"the board has {cells.count(mark)} {mark} cells; a maze has exactly one {name}")
        puzzle = cls(rows, cols, bytes(_GROUND[mark] for mark in cells), cells.index("S"), data["solution"])
        if not isinstance(puzzle.solution, str):
            raise ValueError(f"solution is {puzzle.solution!r:.60}; it must be a string of U, D, L, R")
        if puzzle.start not in grid.distances_from(puzzle.goal, puzzle.ground, rows, cols):
            raise ValueError("walls part start and goal, so that the maze has no solution")
        if trace(puzzle, puzzle.solution)[-1] != puzzle.goal:
            raise ValueError(f"solution {puzzle.solution!r:.60} does not end on the goal")
        return puzzle


def canonical(puzzle: Puzzle) -> bytes:
    """Equal for all rotated and mirrored copies of a maze; the solution has no part in it."""
    return key(puzzle.ground, puzzle.start, puzzle.rows, puzzle.cols)


def key(ground: bytes, start: int, rows: int, cols: int) -> bytes:
    """`canonical` of a maze that is not solved yet."""
    return grid.canonical(ground[:start] + bytes([AGENT]) + ground[start + 1 :], rows, cols)
