"""Whether labels read off a video show a legal solution: the rules once more, played through in the plainest way.

It shares no code with the judges of vrlvr.puzzles and takes no shortcuts, so it is for small boards. What it is for: a video
that a search found and that a judge calls solved is either a solution or a hole in that judge.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from vrlvr.puzzles import Puzzle, flow_free, maze, sokoban
from vrlvr.puzzles.flow_free.render import endpoint_label, path_label
from vrlvr.puzzles.maze import render as maze_looks
from vrlvr.puzzles.sokoban import render as sokoban_looks

Cell = tuple[int, int]
STEPS = ((-1, 0), (1, 0), (0, -1), (0, 1))


def is_solution(puzzle: Puzzle, labels_TRK: NDArray[np.integer]) -> bool:
    """Whether every frame is a state of the puzzle, each follows from the one before by the rules, and the last is solved."""
    if isinstance(puzzle, maze.Puzzle):
        return _solves_maze(puzzle, labels_TRK)
    if isinstance(puzzle, sokoban.Puzzle):
        return _solves_sokoban(puzzle, labels_TRK)
    return _solves_flow_free(puzzle, labels_TRK)


def _solves_maze(puzzle: maze.Puzzle, labels_TRK: NDArray[np.integer]) -> bool:
    ground = np.frombuffer(puzzle.ground, np.uint8).reshape(puzzle.rows, puzzle.cols)
    floor_below = {maze_looks.AGENT: maze_looks.FLOOR, maze_looks.AGENT_ON_GOAL: maze_looks.GOAL}
    at: Cell = divmod(puzzle.start, puzzle.cols)
    goal: Cell = divmod(puzzle.goal, puzzle.cols)
    for number, labels in enumerate(labels_TRK):
        agents = [cell for cell in np.ndindex(labels.shape) if labels[cell] in floor_below]
        if len(agents) != 1:
            return False
        below = labels.copy()
        below[agents[0]] = floor_below[int(labels[agents[0]])]
        if (below != ground).any() or (number == 0 and agents[0] != at):
            return False
        if agents[0] != at and (at == goal or agents[0] not in [_moved(at, step) for step in STEPS]):
            return False
        at = agents[0]
    return at == goal


def _solves_sokoban(puzzle: sokoban.Puzzle, labels_TRK: NDArray[np.integer]) -> bool:
    ground = np.frombuffer(puzzle.ground, np.uint8).reshape(puzzle.rows, puzzle.cols)
    free = {cell for cell in np.ndindex(ground.shape) if ground[cell] != sokoban_looks.WALL}
    targets = {cell for cell in free if ground[cell] == sokoban_looks.TARGET}
    agent: Cell = divmod(puzzle.agent, puzzle.cols)
    boxes: set[Cell] = {divmod(box, puzzle.cols) for box in puzzle.boxes}
    for number, labels in enumerate(labels_TRK):
        options = [(agent, boxes)]
        for step in STEPS if number else ():
            to, pushed = _moved(agent, step), _moved(_moved(agent, step), step)
            after = (boxes - {to}) | {pushed} if to in boxes else boxes
            if to in free and after <= free and len(after) == len(boxes) and not (boxes == targets != after):
                options.append((to, after))
        for agent, boxes in options:
            drawn = ground.copy()
            for box in boxes:
                drawn[box] += sokoban_looks.BOX - sokoban_looks.FLOOR
            drawn[agent] += sokoban_looks.AGENT - sokoban_looks.FLOOR
            if (drawn == labels).all():
                break
        else:
            return False
    return boxes == targets


def _solves_flow_free(puzzle: flow_free.Puzzle, labels_TRK: NDArray[np.integer]) -> bool:
    """For every colour some path over all cells of its last frame must explain all frames, as a part at each of its ends."""
    drawn = np.zeros(labels_TRK.shape, int)
    last = labels_TRK[-1]
    for colour, ends in enumerate(puzzle.endpoints):
        first, second = (divmod(end, puzzle.cols) for end in ends)
        cells = {cell for cell in np.ndindex(last.shape) if last[cell] == path_label(colour)}
        shown = [{cell for cell in cells if labels[cell] == path_label(colour)} for labels in labels_TRK]
        if not any(_explains(path, shown, puzzle.cells_per_move) for path in _paths(first, second, cells)):
            return False
        drawn[:, *first] = drawn[:, *second] = endpoint_label(colour)
        for frame, of_frame in enumerate(shown):
            for cell in of_frame:
                drawn[frame, *cell] = path_label(colour)
    return bool((drawn == labels_TRK).all()) and not (last == flow_free.render.EMPTY).any()


def _paths(at: Cell, end: Cell, cells: set[Cell]) -> Iterator[list[Cell]]:
    """Every order in which a path can take all the cells between two that it does not list."""
    beside = [_moved(at, step) for step in STEPS]
    if not cells and end in beside:
        yield []
    for cell in beside:
        if cell in cells:
            for rest in _paths(cell, end, cells - {cell}):
                yield [cell, *rest]


def _explains(path: list[Cell], shown: list[set[Cell]], limit: int) -> bool:
    """Whether the cells shown, none at first, are always a part from the path's one end and a part from its other, which
    grow by at most `limit` cells together. Where all parts meet, how they are split no longer matters."""
    grown = 0, 0
    if shown[0]:
        return False
    for cells in shown:
        front = next((number for number, cell in enumerate(path) if cell not in cells), len(path))
        back = next((number for number, cell in enumerate(reversed(path)) if cell not in cells), len(path))
        if front < len(path) and front + back != len(cells):
            return False
        new = len(cells) - sum(grown)
        if not 0 <= new <= limit or (front < len(path) and (front < grown[0] or back < grown[1])):
            return False
        grown = (front, back) if front < len(path) else (len(path), 0)
    return True


def _moved(cell: Cell, step: Cell) -> Cell:
    return cell[0] + step[0], cell[1] + step[1]
