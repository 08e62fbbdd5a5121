"""Maze: one agent walks from start to goal without crossing walls."""

from vrlvr.puzzles.maze.generate import Difficulty, generate
from vrlvr.puzzles.maze.puzzle import Puzzle, canonical
from vrlvr.puzzles.maze.render import LOOKS, prompt, states
from vrlvr.puzzles.maze.solve import solve
from vrlvr.puzzles.maze.verify import COMPONENTS, judge
from vrlvr.puzzles.maze.walk import judge_moves

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
    "judge_moves",
    "prompt",
    "solve",
    "states",
]
