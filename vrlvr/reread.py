"""Cells that a small decoder's frames leave in doubt are read off the full decode of the window around them.

Whether a cell is readable is decided at a limit (`board.MAX_CELL_RMSE`), and a model's cell that is neither one thing nor the
other lies near it: there a small error of the decoder changes the verdict. Such cells are few and together, so decoding just
them in full costs a fraction of a full decode, see `WanDecoder.chunks`.

Shapes: T video frames, R/K board rows/columns, C latent channels, F/H/W latent frames/rows/columns.
"""

from typing import NamedTuple

import numpy as np
from torch import Tensor

from vrlvr.models.codec import WindowDecoder
from vrlvr.models.wan_decode import Window
from vrlvr.puzzles import Puzzle, Reading, board, read


class Box(NamedTuple):
    """Board rows [top, bottom) and columns [left, right)."""

    top: int
    bottom: int
    left: int
    right: int


def doubtful_cells(reading: Reading, doubt: float) -> Box | None:
    """The smallest box around all cells that in some frame are further than `doubt` levels from their look, if there are."""
    rows, columns = np.nonzero(reading.rmse_TRK.max(0) > doubt)
    if not len(rows):
        return None
    return Box(int(rows.min()), int(rows.max()) + 1, int(columns.min()), int(columns.max()) + 1)


def window_around(puzzle: Puzzle, box: Box, size: tuple[int, int], pixels_per_latent: int) -> Window:
    """The latent positions that cover a box of cells. size: height and width of the full frames."""
    place = board.layout(puzzle.rows, puzzle.cols, *size)
    top, bottom = (place.top + place.cell * row for row in (box.top, box.bottom))
    left, right = (place.left + place.cell * column for column in (box.left, box.right))
    side = pixels_per_latent
    return Window(top // side, -(-bottom // side), left // side, -(-right // side))


def reread(
    puzzle: Puzzle,
    reading: Reading,
    box: Box,
    first_latents_1C1HW: Tensor,
    latents_1CFHW: Tensor,
    full: WindowDecoder,
    size: tuple[int, int],
) -> Reading:
    """A small video's reading, with the box's cells as they are read off the full decode.

    size: height and width of the full frames. The whole of the first one is decoded, since colours are calibrated by it.
    """
    side = full.pixels_per_latent
    window = window_around(puzzle, box, size, side)
    first = full.decode_window(
        first_latents_1C1HW, latents_1CFHW[:, :, :0], Window(0, size[0] // side, 0, size[1] // side)
    )
    pixels = full.decode_window(first_latents_1C1HW, latents_1CFHW, window)[0]
    shown = np.zeros((len(pixels), *size, 3), np.uint8)
    shown[0] = first[0, 0]
    shown[:, side * window.top : side * window.bottom, side * window.left : side * window.right] = pixels
    anew, inside = read(puzzle, shown), np.s_[:, box.top : box.bottom, box.left : box.right]
    labels, rmse = reading.labels_TRK.copy(), reading.rmse_TRK.copy()
    labels[inside], rmse[inside] = anew.labels_TRK[inside], anew.rmse_TRK[inside]
    return Reading(labels, rmse)
