"""FlowFree: connect each pair of endpoints by a path of its colour; paths never overlap and together fill the grid."""

from vrlvr.puzzles.flow_free.generate import Difficulty, generate
from vrlvr.puzzles.flow_free.puzzle import Puzzle, canonical
from vrlvr.puzzles.flow_free.render import LOOKS, prompt, states
from vrlvr.puzzles.flow_free.solve import solve
from vrlvr.puzzles.flow_free.verify import COMPONENTS, judge

NAME = Puzzle.task

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
