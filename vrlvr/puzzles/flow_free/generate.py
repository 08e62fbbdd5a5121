"""FlowFree boards by rule: a random walk over partitions of the grid into paths, until one makes a good puzzle."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from vrlvr.puzzles.chance import Draw, pick, stable_draws
from vrlvr.puzzles.flow_free.puzzle import MAX_CELLS_PER_MOVE, MAX_COLOURS, MAX_SIDE, Puzzle, canonical_key
from vrlvr.puzzles.flow_free.render import num_moves
from vrlvr.puzzles.flow_free.solve import count_solutions
from vrlvr.puzzles.grid import around

# Proposed moves of the walk per cell: before the first candidate, and between candidates.
_MIXING, _SPACING = 6, 1
_MAX_CANDIDATES = 20_000


@dataclass(frozen=True)
class Difficulty:
    """What boards to make.

    mixes: (number of colours, longest path in cells) pairs, one of which is drawn for each board.
    min_path: shortest path in cells, both endpoints included. max_moves: longest plan.
    cells_per_move: cells that a colour grows in one move, at both ends together. No board is made whose every path is
    drawn in a single move: a video that jumps from the first frame to the last one would solve it.
    alongside: probability with which the walk lets a path touch itself, per contact. At 1 all partitions of the grid
    are alike, as small boards want for variety. From 6x6 on few of them have a single solution; 0.1 makes it likely.
    unique_cells: boards of up to this many cells are made to have exactly one solution; larger ones may have several.
    """

    rows: int = 4
    cols: int = 5
    mixes: tuple[tuple[int, int], ...] = ((4, 6), (5, 5))
    min_path: int = 3
    max_moves: int = 4
    cells_per_move: int = 1
    alongside: float = 1.0
    unique_cells: int = 64

    def __post_init__(self) -> None:
        """Raises ValueError if no board can fit."""
        cells = self.rows * self.cols
        if not 2 <= min(self.rows, self.cols) <= max(self.rows, self.cols) <= MAX_SIDE:
            raise ValueError(f"a board of {self.rows}x{self.cols} must have 2 to {MAX_SIDE} cells a side")
        if self.min_path < 3:
            raise ValueError(f"min_path={self.min_path} must be 3 or more, both endpoints included")
        if not 1 <= self.cells_per_move <= MAX_CELLS_PER_MOVE:
            raise ValueError(f"cells_per_move={self.cells_per_move} must lie within 1 to {MAX_CELLS_PER_MOVE}")
        if not 0 < self.alongside <= 1:
            raise ValueError(f"alongside={self.alongside} must be above 0 and at most 1")
        if not self.mixes:
            raise ValueError("mixes is empty; give at least one (number of colours, longest path) pair")
        for colours, longest in self.mixes:
            if not 1 <= colours <= MAX_COLOURS:
                raise ValueError(f"{colours} colours in mixes must lie within 1 to {MAX_COLOURS}")
            if not colours * self.min_path <= cells <= colours * longest:
                raise ValueError(
                    f"{colours} paths of {self.min_path} to {longest} cells cannot fill {cells} cells; change mixes, "
                    "min_path or the board"
                )
            if num_moves(longest, self.cells_per_move) > self.max_moves:
                raise ValueError(
                    f"a path of {longest} cells takes {num_moves(longest, self.cells_per_move)} moves at "
                    f"{self.cells_per_move} cells a move, more than max_moves={self.max_moves}; shorten it in mixes"
                )
            possible = min(longest, cells - (colours - 1) * self.min_path)
            if num_moves(possible, self.cells_per_move) < 2:
                raise ValueError(
                    f"{colours} paths of at most {possible} cells are all drawn in one move of cells_per_move="
                    f"{self.cells_per_move} cells; lower it, or lengthen paths in mixes"
                )


def generate(difficulty: Difficulty, rng: np.random.Generator, accept: Callable[[bytes], bool]) -> Puzzle:
    """A puzzle within the difficulty whose canonical key is accepted, with exactly one solution up to unique_cells.

    Raises ValueError if none is met among 20,000 candidates.
    """
    rows, cols = difficulty.rows, difficulty.cols
    draw = stable_draws(rng)
    colours, longest = pick(draw, difficulty.mixes)
    walk = _Walk(difficulty, colours, longest, draw)
    walk.run(_MIXING * rows * cols)
    for _ in range(_MAX_CANDIDATES):
        walk.run(_SPACING * rows * cols)
        lengths = [len(path) for path in walk.paths]
        if not difficulty.min_path <= min(lengths) <= max(lengths) <= longest:
            continue
        if num_moves(max(lengths), difficulty.cells_per_move) < 2:
            continue
        if not accept(canonical_key(rows, cols, walk.paths)):
            continue
        if rows * cols <= difficulty.unique_cells and count_solutions(rows, cols, walk.paths)[0] != 1:
            continue
        return Puzzle.from_paths(rows, cols, walk.paths, difficulty.cells_per_move)
    raise ValueError(f"{_MAX_CANDIDATES} candidates held no accepted puzzle; widen {difficulty}")


class _Walk:
    """A random walk over partitions of the grid into a fixed number of paths, from a snake cut into equal lengths."""

    def __init__(self, difficulty: Difficulty, colours: int, longest: int, draw: Draw) -> None:
        rows, cols = difficulty.rows, difficulty.cols
        snake = [row * cols + (cols - 1 - col if row % 2 else col) for row in range(rows) for col in range(cols)]
        cuts = [len(snake) * i // colours for i in range(colours + 1)]
        self.paths = [snake[a:b] for a, b in pairwise(cuts)]
        self._owner = {cell: i for i, path in enumerate(self.paths) for cell in path}
        self._beside = around(rows, cols)
        self._alongside = difficulty.alongside
        self._draw = draw
        # Where the lengths are all but fixed, no cell could change hands: the walk may pass through other lengths.
        spare_above = colours * longest - len(snake) >= colours
        spare_below = len(snake) - colours * difficulty.min_path >= colours
        self._longest = longest if spare_above else longest + 1
        self._shortest = difficulty.min_path if spare_below else difficulty.min_path - 1

    def run(self, proposals: int) -> None:
        """Proposes random moves: the end of a path reaches for a cell y beside it.

        In its own path, the loop is cut open before y ("backbite"); in another, it takes over that path's part from y
        to one of its ends.
        """
        draw, paths, owner = self._draw, self.paths, self._owner
        for _ in range(proposals):
            i = int(draw() * len(paths))
            path = paths[i]
            if draw() < 0.5:
                path.reverse()
            y = pick(draw, self._beside[path[-1]])
            j = owner[y]
            other = paths[j]
            at = other.index(y)
            if i == j:
                path[at + 1 :] = path[:at:-1]
                continue
            if draw() < 0.5:
                taken, left = other[at:], other[:at]
            else:
                taken, left = other[at::-1], other[at + 1 :]
            if len(left) < self._shortest or len(path) + len(taken) > self._longest:
                continue
            joined = path + taken
            if self._alongside < 1:
                more = self._contacts(joined) + self._contacts(left) - self._contacts(path) - self._contacts(other)
                if more > 0 and draw() > self._alongside**more:
                    continue
            paths[i], paths[j] = joined, left
            for cell in taken:
                owner[cell] = i

    def _contacts(self, path: list[int]) -> int:
        """Pairs of cells of a path that are neighbours on the grid but not along it."""
        cells = set(path)
        return sum(other in cells for cell in path for other in self._beside[cell]) // 2 - (len(path) - 1)
