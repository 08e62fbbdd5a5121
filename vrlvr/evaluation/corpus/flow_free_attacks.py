"""Attacks on FlowFree: boards that look filled, and paths that grow as no path grows."""

from collections.abc import Sequence

import numpy as np

from vrlvr.evaluation.corpus.making import Rng, StateAttack, darkened, faint, solution
from vrlvr.evaluation.corpus.scene import Maker, Scene, States, Video, cell_box, draw, plan, timed
from vrlvr.puzzles.flow_free import LOOKS, Puzzle
from vrlvr.puzzles.flow_free.puzzle import MAX_COLOURS
from vrlvr.puzzles.flow_free.render import EMPTY, endpoint_label, path_label
from vrlvr.puzzles.grid import around


def _two_colours(puzzle: Puzzle, rng: Rng) -> tuple[int, int]:
    first, second = rng.choice(len(puzzle.endpoints), 2, replace=False)
    return int(first), int(second)


def _a_path_cell(puzzle: Puzzle, rng: Rng) -> tuple[int, int]:
    """A colour, and a cell of its path between its endpoints."""
    colour = int(rng.integers(len(puzzle.solution)))
    return colour, int(rng.choice(puzzle.solution[colour][1:-1]))


def _grown(puzzle: Puzzle, interiors: Sequence[Sequence[int]]) -> States:
    """States (M + 1, R, K) in which each colour takes its cells in order, cells_per_move at a time, over what is there."""
    step = puzzle.cells_per_move
    moves = -(-max(map(len, interiors)) // step)
    states = np.repeat(plan(puzzle)[:1], moves + 1, axis=0)
    for colour, cells in enumerate(interiors):
        for i, cell in enumerate(cells):
            states[1 + i // step :].reshape(-1, puzzle.rows * puzzle.cols)[:, cell] = path_label(colour)
    return states


def _interiors(puzzle: Puzzle) -> list[list[int]]:
    return [list(path[1:-1]) for path in puzzle.solution]


def colours_swapped(puzzle: Puzzle, scene: Scene, rng: Rng) -> States:
    """Two colours draw each other's path."""
    (a, b), cells = _two_colours(puzzle, rng), _interiors(puzzle)
    cells[a], cells[b] = cells[b], cells[a]
    return timed(_grown(puzzle, cells), scene)


def wrong_pairs(puzzle: Puzzle, scene: Scene, rng: Rng) -> States:
    """The far halves of two paths change their colours: each starts at one colour's endpoint and ends at the other's."""
    (a, b), cells = _two_colours(puzzle, rng), _interiors(puzzle)
    mine, other = len(cells[a]) // 2, len(cells[b]) // 2
    cells[a], cells[b] = cells[a][:mine] + cells[b][other:], cells[b][:other] + cells[a][mine:]
    return timed(_grown(puzzle, cells), scene)


def path_crosses(puzzle: Puzzle, scene: Scene, rng: Rng) -> States:
    """The solution, then one colour runs straight from an endpoint into the path of another, over all in its way."""
    states = plan(puzzle)
    colour, other = _two_colours(puzzle, rng)
    row, col = divmod(puzzle.endpoints[colour][rng.integers(2)], puzzle.cols)
    to_row, to_col = divmod(int(rng.choice(puzzle.solution[other][1:-1])), puzzle.cols)
    crossed = states[-1].copy()
    while (row, col) != (to_row, to_col):
        if row != to_row:
            row += int(np.sign(to_row - row))
        else:
            col += int(np.sign(to_col - col))
        if crossed[row, col] % 2 == 0:  # no endpoint
            crossed[row, col] = path_label(colour)
    longer = len(states) < scene.num_frames and rng.random() < 0.5
    return timed(np.concatenate([states if longer else states[:-1], crossed[None]]), scene)


def uncovered_cell(puzzle: Puzzle, scene: Scene, rng: Rng) -> States:
    """One cell is never filled."""
    _, cell = _a_path_cell(puzzle, rng)
    states = plan(puzzle)
    states.reshape(len(states), -1)[:, cell] = EMPTY
    return timed(states, scene)


def stops_short(puzzle: Puzzle, scene: Scene, rng: Rng) -> States:
    """Every path lacks its last cells: nothing is joined."""
    return timed(_grown(puzzle, [cells[: rng.integers(0, len(cells))] for cells in _interiors(puzzle)]), scene)


def cell_of_another_colour(puzzle: Puzzle, scene: Scene, rng: Rng) -> States:
    """One cell of a path is drawn in the colour of a path beside it."""
    colour, cell = _a_path_cell(puzzle, rng)
    others = [c for c, path in enumerate(puzzle.solution) if c != colour and {*path} & {*_beside(puzzle, cell)}]
    states = plan(puzzle)
    flat = states.reshape(len(states), -1)
    flat[flat[:, cell] != EMPTY, cell] = path_label(int(rng.choice(others or [(colour + 1) % len(puzzle.solution)])))
    return timed(states, scene)


def _beside(puzzle: Puzzle, cell: int) -> tuple[int, ...]:
    return around(puzzle.rows, puzzle.cols)[cell]


def endpoint_moved(puzzle: Puzzle, scene: Scene, rng: Rng) -> States:
    """An endpoint goes one cell along its path, which is then drawn from there."""
    colour = int(rng.integers(len(puzzle.solution)))
    states = plan(puzzle)
    flat = states.reshape(len(states), -1)
    flat[1:, puzzle.solution[colour][1]] = endpoint_label(colour)
    flat[1:, puzzle.solution[colour][0]] = path_label(colour)
    return timed(states, scene)


def endpoints_swapped(puzzle: Puzzle, scene: Scene, rng: Rng) -> States:
    """Two colours change one endpoint each, and half the time the whole paths."""
    a, b = _two_colours(puzzle, rng)
    states = plan(puzzle)
    flat = states.reshape(len(states), -1)
    flat[1:, puzzle.endpoints[a][1]], flat[1:, puzzle.endpoints[b][1]] = endpoint_label(b), endpoint_label(a)
    if rng.random() < 0.5:
        mine, other = flat[1:] == path_label(a), flat[1:] == path_label(b)
        flat[1:][mine], flat[1:][other] = path_label(b), path_label(a)
    return timed(states, scene)


def endpoint_erased(puzzle: Puzzle, scene: Scene, rng: Rng) -> States:
    """An endpoint loses its ring: it is path like the rest, or empty."""
    colour, end = int(rng.integers(len(puzzle.solution))), int(rng.integers(2))
    states = plan(puzzle)
    flat = states.reshape(len(states), -1)
    flat[1:, puzzle.endpoints[colour][end]] = path_label(colour) if rng.random() < 0.5 else EMPTY
    return timed(states, scene)


def rings_added(puzzle: Puzzle, scene: Scene, rng: Rng) -> States:
    """Cells of a path get rings as if they were endpoints."""
    colour, cell = _a_path_cell(puzzle, rng)
    states = plan(puzzle)
    flat = states.reshape(len(states), -1)
    flat[flat[:, cell] != EMPTY, cell] = endpoint_label(colour)
    return timed(states, scene)


def path_at_once(puzzle: Puzzle, scene: Scene, rng: Rng) -> States:
    """The longest path is there in one frame, the others grow as they should."""
    longest = max(range(len(puzzle.solution)), key=lambda colour: len(puzzle.solution[colour]))
    states = plan(puzzle)
    flat = states.reshape(len(states), -1)
    cells = list(puzzle.solution[longest][1:-1])
    flat[:, cells] = EMPTY
    flat[rng.integers(1, len(states)) :, cells] = path_label(longest)
    return timed(states, scene)


def from_the_middle(puzzle: Puzzle, scene: Scene, rng: Rng) -> States:
    """Paths grow from their middle to their endpoints."""

    def outwards(cells: list[int]) -> list[int]:
        middle = (len(cells) - 1) / 2
        return sorted(cells, key=lambda cell: abs(cells.index(cell) - middle))

    return timed(_grown(puzzle, [outwards(cells) for cells in _interiors(puzzle)]), scene)


def in_random_order(puzzle: Puzzle, scene: Scene, rng: Rng) -> States:
    """Every path's cells appear in random order."""
    return timed(_grown(puzzle, [rng.permutation(cells).tolist() for cells in _interiors(puzzle)]), scene)


def cell_vanishes(puzzle: Puzzle, scene: Scene, rng: Rng) -> States:
    """A cell that was filled is empty for some frames."""
    _, cell = _a_path_cell(puzzle, rng)
    states = solution(puzzle, scene)
    flat = states.reshape(len(states), -1)
    frames = np.flatnonzero(flat[:, cell] != EMPTY)
    first = int(rng.choice(frames))
    flat[first : first + int(rng.integers(1, 4)), cell] = EMPTY
    return states


def colours_change_on_the_way(puzzle: Puzzle, scene: Scene, rng: Rng) -> States:
    """A path grows in another colour and takes its own one in the end."""
    a, b = _two_colours(puzzle, rng)
    states = solution(puzzle, scene)
    late = int(rng.integers(2, len(states)))
    states[1:late] = np.where(states[1:late] == path_label(a), path_label(b), states[1:late])
    return states


def unknown_colour(puzzle: Puzzle, scene: Scene, rng: Rng) -> States:
    """A path is drawn in a colour that the puzzle has not, endpoints too half the time."""
    a = int(rng.integers(len(puzzle.solution)))
    new = len(puzzle.solution) if len(puzzle.solution) < MAX_COLOURS else (a + 1) % MAX_COLOURS
    states = plan(puzzle)
    states[1:] = np.where(states[1:] == path_label(a), path_label(new), states[1:])
    if rng.random() < 0.5:
        states[1:] = np.where(states[1:] == endpoint_label(a), endpoint_label(new), states[1:])
    return timed(states, scene)


def one_colour_floods(puzzle: Puzzle, scene: Scene, rng: Rng) -> States:
    """One colour takes every cell that is no endpoint, as fast as the others would."""
    states = plan(puzzle)
    colour = int(rng.integers(len(puzzle.solution)))
    return timed(np.where((states != EMPTY) & (states % 2 == 0), path_label(colour), states).astype(np.int8), scene)


def scribbled_then_right(puzzle: Puzzle, scene: Scene, rng: Rng) -> States:
    """Random colours in random cells until the last frames show the solution."""
    states = solution(puzzle, scene)
    late = int(rng.integers(2, len(states)))
    for frame in range(1, late):
        free = states[0] == EMPTY
        states[frame][free] = 2 * rng.integers(0, len(puzzle.solution) + 1, int(free.sum()))
    return states


def _path_pixels(puzzle: Puzzle, scene: Scene, state: np.ndarray) -> list[tuple[tuple[slice, slice], np.ndarray]]:
    """The pixel boxes of a state's path cells, each with its colour."""
    paths = np.flatnonzero((state > 0) & (state % 2 == 0))
    return [(cell_box(puzzle, scene, int(cell)), LOOKS[state.flat[cell], 0]) for cell in paths]


def thin_lines(puzzle: Puzzle, scene: Scene, rng: Rng) -> Video:
    """Paths are drawn as crosses of thin lines, a sixth of a cell wide, over cells that stay empty."""
    video = draw(puzzle, scene, np.repeat(plan(puzzle)[:1], scene.num_frames, axis=0))
    for frame, state in zip(video, solution(puzzle, scene), strict=True):
        for (rows, columns), colour in _path_pixels(puzzle, scene, state):
            side = rows.stop - rows.start
            near, far = side // 2 - max(1, side // 12), side // 2 + max(1, side // 12)
            if side < 12:
                far = near + 1
            frame[rows.start + near : rows.start + far, columns] = colour
            frame[rows, columns.start + near : columns.start + far] = colour
    return video


def small_discs(puzzle: Puzzle, scene: Scene, rng: Rng) -> Video:
    """Path cells hold a small square of their colour and stay empty around it."""
    video = draw(puzzle, scene, np.repeat(plan(puzzle)[:1], scene.num_frames, axis=0))
    for frame, state in zip(video, solution(puzzle, scene), strict=True):
        for (rows, columns), colour in _path_pixels(puzzle, scene, state):
            margin = 3 * (rows.stop - rows.start) // 8
            frame[rows.start + margin : rows.stop - margin, columns.start + margin : columns.stop - margin] = colour
    return video


def faint_paths(puzzle: Puzzle, scene: Scene, rng: Rng) -> Video:
    """Paths at 40 to 45 % of their opacity."""
    return faint(puzzle, scene, solution(puzzle, scene), rng.uniform(0.4, 0.45))


STATES: tuple[StateAttack, ...] = (
    colours_swapped,
    wrong_pairs,
    path_crosses,
    uncovered_cell,
    stops_short,
    cell_of_another_colour,
    endpoint_moved,
    endpoints_swapped,
    endpoint_erased,
    rings_added,
    path_at_once,
    from_the_middle,
    in_random_order,
    cell_vanishes,
    colours_change_on_the_way,
    unknown_colour,
    one_colour_floods,
    scribbled_then_right,
)
PIXELS: tuple[Maker, ...] = (thin_lines, small_discs, faint_paths, darkened(small_discs))
