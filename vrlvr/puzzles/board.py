"""From board states to pixels and back: with `areas.py`, all of the puzzles that touches a pixel.

Every cell of every puzzle is drawn in two tones: a *rim* (the ground: floor, wall, goal, endpoint) and a *core* (a disc on
it: agent, box, colour). A cell's look is therefore a point in six dimensions whatever its size in pixels, which is what lets
one renderer serve 16x16 and 480x832, lets the reader average away compression noise, and lets the tiny codec be exact.

Shapes: B videos, T frames, Y/X pixel rows/columns, C colour channels, R/K board rows/columns.
Drawing is integer arithmetic only, so the same state gives the same bytes on every machine.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from vrlvr.puzzles.areas import area_means
from vrlvr.puzzles.calibration import calibrate

MIN_CELL_PX = 4
BACKGROUND = (20, 20, 26)
# A cell farther than this from every legal look (root mean square over its samples, in levels of 255) is unreadable.
MAX_CELL_RMSE = 45.0
UNREADABLE = -1

_EXACT_CELL_PX = (
    8  # up to this size the reader uses every pixel alike; above it, areas apart from the edges, and a lattice
)
_SCALED_CELL_PX = 15  # the same for cells of scaled videos, which lie up to half a pixel off
_LATTICE = 8
_EDGE_PERCENT = 7  # of a cell's side: so near to the edge of the core, compression and resizing mix the two tones


@dataclass(frozen=True)
class Layout:
    """Where a board of `rows` x `cols` square cells lies in a frame of `height` x `width` pixels: centred."""

    rows: int
    cols: int
    height: int
    width: int
    cell: int
    top: int
    left: int


@lru_cache(maxsize=256)
def layout(rows: int, cols: int, height: int, width: int) -> Layout:
    """The layout of a board in a frame. Raises ValueError if a cell would have fewer than 4 pixels a side.

    The board, and the cells of all but tiny ones, start at even pixels: H.264 stores one colour for each 2x2 of them, and a
    cell that shares it with its neighbour is hard to read.
    """
    cell = min(height // rows, width // cols)
    if cell < MIN_CELL_PX:
        raise ValueError(
            f"a {rows}x{cols} board in a {height}x{width} frame leaves {cell} pixels a cell, at least {MIN_CELL_PX} are "
            f"needed; use a frame of {rows * MIN_CELL_PX}x{cols * MIN_CELL_PX} or more"
        )
    if cell > _EXACT_CELL_PX:
        cell -= cell % 2
    return Layout(rows, cols, height, width, cell, (height - rows * cell) // 4 * 2, (width - cols * cell) // 4 * 2)


def _disc(cell: int, offsets: NDArray[np.int64], margin_percent: int) -> NDArray[np.bool_]:
    """Pixels whose centre lies within 35 % (+ margin) of a cell's side of its middle: shape (len(offsets),) * 2."""
    squared = (2 * offsets + 1 - cell) ** 2  # offsets in half pixels from the middle
    radius = (70 + 2 * margin_percent) * cell
    return 10_000 * (squared[:, None] + squared[None, :]) <= radius * radius


@lru_cache(maxsize=64)
def core_mask(cell: int) -> NDArray[np.bool_]:
    """The pixels of a cell that show its core: bool (cell, cell)."""
    return _disc(cell, np.arange(cell), 0)


def render(labels: NDArray[np.integer], looks: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Draws board states.

    labels: (T, R, K), each an index into looks. looks: uint8 (labels, 2, 3), rim and core colour of each.
    Returns video_TYXC, uint8 RGB.
    """
    frames, rows, cols = labels.shape
    place = layout(rows, cols, height, width)
    sprites = np.where(core_mask(place.cell)[None, :, :, None], looks[:, 1, None, None, :], looks[:, 0, None, None, :])
    cells = sprites[labels]  # (T, R, K, cell, cell, 3)
    board = cells.transpose(0, 1, 3, 2, 4, 5).reshape(frames, rows * place.cell, cols * place.cell, 3)
    video = np.empty((frames, height, width, 3), np.uint8)
    video[:] = np.array(BACKGROUND, np.uint8)
    video[:, place.top : place.top + board.shape[1], place.left : place.left + board.shape[2]] = board
    return video


@lru_cache(maxsize=64)
def _samples(cell: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Pixel offsets read in a cell, and 1 for those of its rim and of its core, else 0: float32 (2, samples, samples)."""
    if cell <= _EXACT_CELL_PX:
        offsets = np.arange(cell)
        core = _disc(cell, offsets, 0)
        rim = ~core
    else:
        offsets = (2 * np.arange(_LATTICE) + 1) * cell // (2 * _LATTICE)
        core = _disc(cell, offsets, -_EDGE_PERCENT)
        rim = ~_disc(cell, offsets, _EDGE_PERCENT)
    return offsets, np.stack([rim, core]).astype(np.float32)


def read(
    video: NDArray[np.uint8],
    looks: NDArray[np.uint8],
    rows: int,
    cols: int,
    size: tuple[int, int] | None = None,
    start: NDArray[np.integer] | None = None,
) -> tuple[NDArray[np.int16], NDArray[np.float32]]:
    """Reads board states off pixels.

    video: uint8 (..., Y, X, 3) with any leading dimensions. looks: uint8 (labels, 2, 3). size: height and width of the frame
    in which the board was laid out, if the video was scaled since; each sample is then the pixel that covers its place.
    start: labels (..., R, K) that frame 0 of each video (..., T, Y, X, 3) must show; its colours are then calibrated by that
    frame, see `calibrate`.
    Returns labels int16 (..., R, K), the nearest look or UNREADABLE, and rmse float32 (..., R, K), the root mean square
    distance in levels between the cell's pixels and that look, its rim and its core counting alike.
    """
    lead, place = video.shape[:-3], layout(rows, cols, *(size or video.shape[-3:-1]))
    means, power = _tones(video, place)
    means, power = means.reshape(-1, rows * cols, 6), power.reshape(-1, rows * cols)  # frame by frame
    labels, rmse = _nearest(means, power, looks.reshape(len(looks), 6).astype(np.float32))
    if start is not None:
        for at, first in enumerate(start.reshape(-1, rows * cols)):
            mine = slice(at * lead[-1], (at + 1) * lead[-1])
            seen, drawn = means[mine][0].reshape(-1, 3), looks[first].reshape(-1, 3)
            if (colours := calibrate(seen, drawn)) is not None:
                mapped = np.clip(looks * colours.gain + colours.offset, 0, 255).astype(np.float32)
                scale = float(colours.gain.mean())  # distances as if seen in the colours drawn: the dark hides nothing
                labels[mine], rmse[mine] = _nearest(means[mine], power[mine], mapped.reshape(len(looks), 6), scale)
    return labels.reshape(*lead, rows, cols), rmse.reshape(*lead, rows, cols)


def _tones(video: NDArray[np.uint8], place: Layout) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Of each cell: mean colours of its rim and its core, (N, 6), and the mean over both of |pixel|^2, (N,).

    All pixels count for the means, save in the smallest cells; how much pixels vary about them is told by a lattice.
    """
    height, width = video.shape[-3:-1]
    means, power = _sampled_tones(video, place)
    tops, lefts = (
        start + place.cell * np.arange(count) for start, count in ((place.top, place.rows), (place.left, place.cols))
    )
    cell_y, cell_x = place.cell * height // place.height, place.cell * width // place.width
    border = int((height, width) != (place.height, place.width))  # scaled cells do not begin at whole pixels
    if min(cell_y, cell_x) > (_SCALED_CELL_PX if border else _EXACT_CELL_PX):
        tops, lefts = tops * height // place.height, lefts * width // place.width
        tones = area_means(video, tops, lefts, cell_y, cell_x, _EDGE_PERCENT / 100, border)
        areas = tones[:, :2].reshape(-1, 6)
        power += (np.square(areas) - np.square(means)).sum(1) / 2
        power[_off_the_mixtures(tones) > MAX_CELL_RMSE] = np.inf  # something is painted around the core
        means = areas
    return means, power


def _off_the_mixtures(tones: NDArray[np.float32]) -> NDArray[np.float32]:
    """How far (rms, in levels) the ring's mean is from all mixtures of the rim's and the core's, (N,). tones: (N, 3, 3)."""
    rim, core, ring = tones[:, 0], tones[:, 1], tones[:, 2]
    way, off = core - rim, ring - rim
    share = np.clip((way * off).sum(1) / np.maximum(np.square(way).sum(1), 1.0), 0, 1)
    return np.sqrt(np.square(off - share[:, None] * way).mean(1))


def _sampled_tones(video: NDArray[np.uint8], place: Layout) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """`_tones` by the lattice alone."""
    *_, height, width, _ = video.shape
    rows, cols = place.rows, place.cols
    offsets, masks = _samples(place.cell)
    n = len(offsets)
    ys = (place.top + place.cell * np.arange(rows)[:, None] + offsets).ravel()
    xs = (place.left + place.cell * np.arange(cols)[:, None] + offsets).ravel()
    ys = (2 * ys + 1) * height // (2 * place.height)  # ys itself where the video was not scaled
    xs = (2 * xs + 1) * width // (2 * place.width)
    if n == place.cell and (height, width) == (rows * n, cols * n) == (place.height, place.width):
        sampled = video
    else:
        sampled = np.take(np.take(video, ys, axis=-3), xs, axis=-2)
    cells = (
        sampled.reshape(-1, rows, n, cols, n, 3).transpose(0, 1, 3, 2, 4, 5).reshape(-1, n * n, 3).astype(np.float32)
    )
    tones = masks.reshape(2, -1)
    counts = tones.sum(1)
    # Sums of whole numbers below 2^24 are exact in float32: a cell in just its colours has no error.
    means = (np.matmul(tones, cells) / counts[:, None]).reshape(-1, 6)
    squares = np.square(cells, out=cells).reshape(len(cells), -1)
    powers = [np.einsum("pk,k->p", squares, tone.repeat(3)) for tone in tones]  # no product, as in `_nearest`
    return means, (powers[0] / counts[0] + powers[1] / counts[1]) / 2


def _nearest(
    means: NDArray[np.float32], power: NDArray[np.float32], looks: NDArray[np.float32], scale: float = 1.0
) -> tuple[NDArray[np.int16], NDArray[np.float32]]:
    """Label and rmse of each cell, (M, N), from its `_tones`, (M, N, 6) and (M, N) of M boards of N cells.

    looks: (labels, 6). scale: levels seen for each level of rmse.
    """
    # Mean over rim and core of |pixel - look|^2. A product a board: one for all would be shared among threads, see areas.py.
    distance = power[..., None] - means @ np.ascontiguousarray(looks.T) + np.square(looks).sum(1) / 2
    nearest = distance.argmin(-1)
    least = np.take_along_axis(distance, nearest[..., None], -1)[..., 0]
    rmse = np.sqrt(np.maximum(least, 0) / 3).astype(np.float32) / np.float32(scale)
    return np.where(rmse <= MAX_CELL_RMSE, nearest, UNREADABLE).astype(np.int16), rmse


def hold(states: NDArray[np.integer], num_frames: int, frames_per_move: int) -> NDArray[np.integer]:
    """Spreads a plan's states (M+1, R, K) over num_frames frames: frame 0 shows the puzzle alone, each move then lasts
    frames_per_move frames (4 aligns them with the video VAE's groups), and the last state is held to the end.

    Raises ValueError if the plan does not fit.
    """
    index = -(-np.arange(num_frames) // frames_per_move)
    if index[-1] < len(states) - 1:
        raise ValueError(
            f"a plan of {len(states) - 1} moves at {frames_per_move} frames a move does not fit {num_frames} frames; "
            f"use at least {1 + frames_per_move * (len(states) - 1)} frames or shorter plans"
        )
    return states[np.minimum(index, len(states) - 1)]
