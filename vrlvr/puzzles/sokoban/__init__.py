"""Sokoban: one agent pushes every box onto a target."""

from vrlvr.puzzles.sokoban.generate import Difficulty, generate
from vrlvr.puzzles.sokoban.puzzle import Puzzle, canonical
from vrlvr.puzzles.sokoban.render import LOOKS, prompt, states
from vrlvr.puzzles.sokoban.solve import solve
from vrlvr.puzzles.sokoban.verify import COMPONENTS, judge

NAME = "sokoban"

__all__ = [
    "COMPONENTS",
    "LOOKS",
    "NAME",
    "Difficulty",
    "Puzzle",
    "canonical",
    "generate",
    "judge",
    "prompt",
    "solve",
    "states",
]
