"""What each pixel of a frame belongs to: a cell, an area of it, and a tile of it.

A cell has four areas: rim and core, and where tones meet, and blurring mixes them, the disc's edge and the cell's border. Its
4 x 4 tiles cut across them. Cells of few pixels have neither edge nor border and are one tile.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from vrlvr.puzzles import board

RIM, CORE, EDGE, BORDER = range(4)
AREAS = 4

_EXACT_CELL_PX = 8  # up to this size
_TILES = 4  # along a cell's side


@dataclass(frozen=True)
class Areas:
    """ys, xs: the pixel rows and columns that show the board. bins: intp, each pixel's (cell * tiles + tile) * 4 + area.

    sizes: pixels of each bin (R, K, tiles, 4). banded: whether there are edges and borders.
    """

    ys: slice
    xs: slice
    bins: NDArray[np.intp]
    sizes: NDArray[np.intp]
    banded: bool


def _band(cell_px: float) -> float:
    """Half the width of edges and borders, as a share of a cell's side: 3.1 pixels of 64, 1.4 of 16; 0 in tiny cells."""
    return min(0.09, 1.5 / cell_px + 0.025) if cell_px > _EXACT_CELL_PX else 0.0


@lru_cache(maxsize=32)
def areas_of(place: board.Layout, height: int, width: int) -> Areas:
    """The areas in frames of height x width, which may not be the size that the board was laid out in.

    A pixel belongs to where its middle lies; in tiny cells, to the pixel of the layout that covers it. Raises ValueError where
    cells have no pixel left.
    """
    band = _band(place.cell * min(height / place.height, width / place.width))
    tiles = _TILES if band else 1

    def along(pixels: int, laid_out: int, first: int, count: int) -> tuple[slice, NDArray, NDArray]:
        """Pixels that show the board, the cell of each, and its place in it, in [0, 1)."""
        at = (np.arange(pixels) + 0.5) * laid_out / pixels - first
        inside = np.flatnonzero((at >= 0) & (at < count * place.cell))
        cell, offset = np.divmod(at[inside] if band else np.floor(at[inside]) + 0.5, place.cell)
        return slice(inside[0], inside[-1] + 1), cell.astype(np.intp), offset / place.cell

    ys, row, down = along(height, place.height, place.top, place.rows)
    xs, col, right = along(width, place.width, place.left, place.cols)
    radius = np.hypot(down[:, None] - 0.5, right[None, :] - 0.5)
    to_border = np.minimum(np.minimum(down, 1 - down)[:, None], np.minimum(right, 1 - right)[None, :])
    area = np.where(radius <= 0.35, CORE, RIM)
    area = np.where(np.abs(radius - 0.35) < band, EDGE, area)
    area = np.where(to_border < band, BORDER, area)
    tile = (down * tiles).astype(np.intp)[:, None] * tiles + (right * tiles).astype(np.intp)
    cell = row[:, None] * place.cols + col
    bins = (cell * tiles**2 + tile) * AREAS + area
    sizes = np.bincount(bins.ravel(), minlength=place.rows * place.cols * tiles**2 * AREAS)
    sizes = sizes.reshape(place.rows, place.cols, tiles**2, AREAS)
    if not sizes.sum(2)[..., [RIM, CORE]].all():
        raise ValueError(f"{place.rows}x{place.cols} cells cannot be read in frames of {height}x{width}; enlarge them")
    return Areas(ys, xs, bins, sizes, band > 0)
