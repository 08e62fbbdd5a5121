"""Maze: one agent walks from start to goal without crossing walls."""

from vrlvr.puzzles.maze.generate import Difficulty, generate
from vrlvr.puzzles.maze.puzzle import Puzzle, canonical
from vrlvr.puzzles.maze.render import LOOKS, prompt, states
from vrlvr.puzzles.maze.solve import solve
from vrlvr.puzzles.maze.verify import COMPONENTS, judge

NAME = "maze"

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
