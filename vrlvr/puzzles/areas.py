"""The mean colours of cells over all their pixels, fast enough for full-size videos.

A lattice of points is quicker, but what is painted between its points goes unseen. So the rows of large cells are averaged
first, 2 or 4 to a band, in bytes (SIMD does 32 at a time); what is left is weighted by matrix products. These are small on
purpose, one a band: numerical libraries share larger ones among threads, which then cost ten times what they help.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


def area_means(
    video: NDArray[np.uint8],
    tops: NDArray[np.int64],
    lefts: NDArray[np.int64],
    height: int,
    width: int,
    margin: float,
    border: int = 0,
) -> NDArray[np.float32]:
    """Mean colours of rim, core and the ring between them, of each cell in each frame: (frames * R * K, 3, 3).

    video: uint8 (..., Y, X, 3). tops (R,), lefts (K,): first pixel row and column of the cells, which are height x width
    pixels each. margin: pixels nearer than this to the edge of the core, in units of a cell's side, are the ring's. border:
    so many pixels along each side of a cell count for nothing. The means are right to about half a level.
    """
    rows, cols = len(tops), len(lefts)
    band = 4 if height >= 32 else 2 if height >= 16 else 1
    weights, counts = _weights(height, width, band, margin, border)
    bands, skipped = len(weights), height % band // 2
    ys = (tops[:, None] + skipped + np.arange(bands * band)).reshape(-1, band)
    xs = (lefts[:, None] + np.arange(width)).ravel()
    touching = int(xs[-1] - xs[0]) == len(xs) - 1  # else cells lie a pixel apart, or overlap by one
    frames = video.reshape(-1, *video.shape[-3:])
    means = np.empty((len(frames), rows, cols, 9), np.float32)
    chosen = [_stepped(ys[:, line]) for line in range(band)]
    # Scratch: memory fresh from the system would cost more than the arithmetic.
    half, *pairs = np.empty((3, rows * bands, len(xs) * 3), np.uint8)
    parts = np.empty((rows, bands, cols, 3 * width), np.float32)
    sums = np.empty((rows, bands, cols, 9), np.float32)
    for frame, mean in zip(frames, means, strict=True):
        board = (frame[:, xs[0] : xs[-1] + 1] if touching else frame[:, xs]).reshape(len(frame), -1)
        lines = [board[which] for which in chosen]
        for line in range(0, band - 1, 2):
            _average(lines[line], lines[line + 1], half, pairs[line // 2], up=False)
        if band == 4:
            _average(pairs[0], pairs[1], half, pairs[0], up=True)
        rows_left = pairs[0] if band > 1 else lines[0]
        parts[:] = rows_left.reshape(parts.shape)
        np.matmul(parts, weights, out=sums)
        sums.sum(1, out=mean)
    return (means / counts).reshape(-1, 3, 3)


def _stepped(places: NDArray[np.int64]) -> slice | NDArray[np.int64]:
    """The places as a slice, which makes a view, if they lie evenly."""
    step = int(places[1] - places[0])
    even = (np.diff(places) == step).all()
    return slice(int(places[0]), int(places[-1]) + 1, step) if even else places


def _average(
    a: NDArray[np.uint8], b: NDArray[np.uint8], scratch: NDArray[np.uint8], out: NDArray[np.uint8], up: bool
) -> None:
    """out = (a + b) / 2 in bytes, rounded up or down (Warren, Hacker's Delight, 2nd ed., 2013, section 2-5)."""
    np.bitwise_xor(a, b, out=scratch)
    np.right_shift(scratch, 1, out=scratch)
    if up:
        np.bitwise_or(a, b, out=out)
        np.subtract(out, scratch, out=out)
    else:
        np.bitwise_and(a, b, out=out)
        np.add(out, scratch, out=out)


@lru_cache(maxsize=64)
def _weights(
    height: int, width: int, band: int, margin: float, border: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """To which sums each byte of a cell's bands adds, 0 or 1 (bands, 3 * width, 9), and how many each has, (9,).

    Tones x channels last.
    """
    bands = height // band
    ys = (2 * (height % band // 2 + np.arange(bands * band)) + 1) / height - 1
    xs = (2 * np.arange(width) + 1) / width - 1
    distance = np.hypot(ys[:, None], xs).reshape(bands, band, width) / 2  # from the middle, in sides of the cell
    inside = (np.abs(ys)[:, None] <= 1 - 2 * border / height) & (np.abs(xs) <= 1 - 2 * border / width)
    rim, core = (distance > 0.35 + margin).all(1), (distance <= 0.35 - margin).all(1)
    ring = ~(rim | core)
    rim &= inside.reshape(bands, band, width).all(1)
    weights = np.zeros((bands, width, 3, 3, 3), np.float32)
    for tone, mask in enumerate((rim, core, ring)):
        for channel in range(3):
            weights[:, :, channel, tone, channel] = mask
    return weights.reshape(bands, 3 * width, 9), weights.sum((0, 1, 2)).ravel()
