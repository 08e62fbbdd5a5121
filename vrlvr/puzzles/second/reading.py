"""Boards off a video by votes: every pixel of the board is classified, and each cell counts the votes of its areas.

A pixel votes for the nearest tone of the task's looks, whatever its brightness within 20 %, or is foreign. Two areas of a cell,
its rim and its core, must each be won by one tone with few votes against it; where two tones meet, blurring mixes them, so the
bands along edges may show all that lies between the tones beside them, but no third one.

Shapes: T frames, Y/X pixel rows/columns, R/K board rows/columns, L labels, N tones.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from vrlvr.puzzles import board

UNCLEAR = -1

_RIM, _CORE, _EDGE, _BORDER = range(4)  # areas: ground, disc, the disc's edge, the cell's own border
_AREAS = 4
_EXACT_CELL_PX = 8  # up to this size there are no bands: cells have no pixel to spare, and are not compressed
_GAIN = (0.8, 1.2)
_SAME_TONE = 60.0  # tones nearer than this (levels, Euclidean) count as one; no two looks differ by them alone
_FOREIGN = 75.0  # a pixel farther than this from every tone is foreign
_PURE = 30.0  # one nearer than this is no mixture
_WON = 0.75  # the share of its pixels by which a tone wins an area
_WON_EXACT = 0.6  # the same in cells without bands: 3 of the 4 pixels of the smallest core
_INTRUDERS = 0.1  # the share of a won area's pixels that may purely be of other tones
_PAINTED = 0.2  # the share of a band's pixels that may purely be of a tone that does not belong there


@dataclass(frozen=True)
class Palette:
    """The tones of a task's looks, and every colour's vote.

    looks: int (L, 2), the tones of each label's rim and core. vote: intp (2^15,), by 5 bits a channel, what a pixel votes for:
    n, tone n or a mixture near it; N + n, tone n without doubt; 2N, none. mixes: bool (N, N, N), whether tone [2] lies between
    tones [0] and [1]. background: the tone nearest to what surrounds the board.
    """

    looks: NDArray[np.intp]
    vote: NDArray[np.intp]
    mixes: NDArray[np.bool_]
    background: int

    @property
    def tones(self) -> int:
        return len(self.mixes)


def palette_of(looks: NDArray[np.uint8]) -> Palette:
    """The palette of looks uint8 (L, 2, 3)."""
    return _palette(looks.tobytes(), len(looks))


@lru_cache(maxsize=16)
def _palette(raw: bytes, labels: int) -> Palette:
    colours = np.frombuffer(raw, np.uint8).reshape(labels * 2, 3).astype(float)
    seen, tone_of = [colours[0]], []
    for colour in colours:
        distances = [float(np.linalg.norm(colour - other)) for other in seen]
        if min(distances) >= _SAME_TONE:
            seen.append(colour)
            distances.append(0.0)
        tone_of.append(int(np.argmin(distances)))
    members = np.array(tone_of)
    tones = len(seen)
    levels = np.arange(32) * 8 + 3.5
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    far = np.stack(
        [np.min([_distance(grid, c) for c in np.unique(colours[members == n], axis=0)], 0) for n in range(tones)]
    )
    nearest, distance = far.argmin(0), far.min(0)
    vote = np.where(distance > _FOREIGN, 2 * tones, np.where(distance <= _PURE, tones + nearest, nearest))
    background = int(np.argmin([np.linalg.norm(c - np.array(board.BACKGROUND, float)) for c in seen]))
    return Palette(members.reshape(labels, 2), vote.astype(np.intp), _mixes(np.array(seen)), background)


def _distance(colours: NDArray[np.float64], tone: NDArray[np.float64]) -> NDArray[np.float64]:
    """Levels between each colour and the nearest brightness of a tone."""
    gain = np.clip(colours @ tone / (tone @ tone), *_GAIN)
    return np.linalg.norm(colours - gain[:, None] * tone, axis=1)


def _mixes(tones: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(N, N, N): whether the third tone is, but for its brightness, a mixture of the first two."""
    shares = np.linspace(0, 1, 33)[:, None]
    n = len(tones)
    between = np.zeros((n, n, n), bool)
    for i in range(n):
        for j in range(n):
            line = shares * tones[i] + (1 - shares) * tones[j]
            between[i, j] = [(_distance(line, tone) <= 2 * _PURE).any() for tone in tones]
    return between


def _band(cell: int) -> float:
    """Half the width of the bands of a cell, in pixels of the layout: 3.1 of 64, 1.4 of 16."""
    return min(0.09 * cell, 1.5 + 0.025 * cell) if cell > _EXACT_CELL_PX else 0.0


@lru_cache(maxsize=32)
def _areas(
    rows: int, cols: int, height: int, width: int, size: tuple[int, int]
) -> tuple[slice, slice, NDArray[np.intp], NDArray[np.intp]]:
    """The pixel rows and columns that show the board, the area of each of its pixels (cell * 4 + area), and their number
    (R, K, 4). size: height and width in which the board was laid out; a pixel belongs to the place of its middle."""
    place = board.layout(rows, cols, *size)
    half = place.cell / 2
    band = _band(place.cell)

    def along(pixels: int, laid_out: int, first: int, count: int) -> tuple[slice, NDArray, NDArray]:
        at = (np.arange(pixels) + 0.5) * laid_out / pixels - first
        inside = np.flatnonzero((at >= 0) & (at < count * place.cell))
        cell, offset = np.divmod(at[inside], place.cell)
        return slice(inside[0], inside[-1] + 1), cell.astype(np.intp), offset - half

    ys, row, down = along(height, place.height, place.top, rows)
    xs, col, right = along(width, place.width, place.left, cols)
    radius, disc = np.hypot(down[:, None], right[None, :]), 0.35 * place.cell
    to_border = half - np.maximum(np.abs(down)[:, None], np.abs(right)[None, :])
    area = np.where(radius <= disc, _CORE, _RIM)
    area = np.where(np.abs(radius - disc) < band, _EDGE, area)
    area = np.where(to_border < band, _BORDER, area)
    area = (row[:, None] * cols + col[None, :]) * _AREAS + area
    sizes = np.bincount(area.ravel(), minlength=rows * cols * _AREAS).reshape(rows, cols, _AREAS)
    if not sizes[..., [_RIM, _CORE]].all():
        raise ValueError(f"frames of {height}x{width} are too small to show the cells of a {rows}x{cols} board")
    return ys, xs, area, sizes


def shares(
    video_TYXC: NDArray[np.uint8], palette: Palette, rows: int, cols: int, size: tuple[int, int] | None = None
) -> NDArray[np.float32]:
    """Each vote's share of the area: float32 (T, R, K, area, 2N + 1); 0 where an area has no pixel.

    size: height and width in which the board was drawn, if the video was scaled since.
    """
    num_frames, height, width, _ = video_TYXC.shape
    ys, xs, area, sizes = _areas(rows, cols, height, width, size or (height, width))
    votes = 2 * palette.tones + 1
    bins = area * votes
    counts = np.empty((num_frames, rows * cols * _AREAS * votes), np.float32)
    for counted, frame in zip(counts, video_TYXC, strict=True):
        part = frame[ys, xs] & 0xF8
        colour = part[..., 0].astype(np.intp)
        colour <<= 5
        colour |= part[..., 1]
        colour <<= 2
        colour |= part[..., 2] >> 3
        cast = palette.vote.take(colour, mode="clip")
        cast += bins
        counted[:] = np.bincount(cast.ravel(), minlength=counts.shape[1])
    counts = counts.reshape(num_frames, rows, cols, _AREAS, votes)
    counts /= np.maximum(sizes, 1)[..., None]
    return counts


def read(
    video_TYXC: NDArray[np.uint8],
    looks: NDArray[np.uint8],
    rows: int,
    cols: int,
    size: tuple[int, int] | None = None,
) -> NDArray[np.int16]:
    """The label that each cell shows in each frame, int16 (T, R, K); UNCLEAR where its areas show no look.

    size: height and width in which the board was drawn, if the video was scaled since. Raises ValueError where the board does
    not fit.
    """
    palette = palette_of(looks)
    n = palette.tones
    part = shares(video_TYXC, palette, rows, cols, size)
    pure = part[..., n : 2 * n]
    won = part[..., :n] + pure
    tone = won.argmax(-1)
    exact = board.layout(rows, cols, *(size or video_TYXC.shape[1:3])).cell <= _EXACT_CELL_PX
    clear = won.max(-1) >= (_WON_EXACT if exact else _WON)
    if not exact:
        clear &= pure.sum(-1) - np.take_along_axis(pure, tone[..., None], -1)[..., 0] <= _INTRUDERS
    rim_tone, core_tone = tone[..., _RIM], tone[..., _CORE]
    legible = clear[..., _RIM] & clear[..., _CORE] & (_painted(part, palette, rim_tone, core_tone) <= _PAINTED)
    label_of = np.full((n, n), UNCLEAR, np.int16)
    label_of[palette.looks[:, 0], palette.looks[:, 1]] = np.arange(len(looks))
    return np.where(legible, label_of[rim_tone, core_tone], UNCLEAR).astype(np.int16)


def _painted(
    part: NDArray[np.float32], palette: Palette, rim_tone: NDArray[np.intp], core_tone: NDArray[np.intp]
) -> NDArray[np.float32]:
    """The larger share of a cell's two bands that is purely of a tone that does not belong there (T, R, K)."""
    n = palette.tones
    rim, core = np.eye(n, dtype=bool)[rim_tone], np.eye(n, dtype=bool)[core_tone]
    around = np.zeros((len(rim), rim.shape[1] + 2, rim.shape[2] + 2, n), bool)
    around[..., palette.background] = True
    around[:, 1:-1, 1:-1] = rim
    rows, cols = rim.shape[1:3]
    beside = np.logical_or.reduce(
        [around[:, down : down + rows, right : right + cols] for down in range(3) for right in range(3)]
    )
    worst = np.zeros(rim.shape[:3], np.float32)
    for area, tones in ((_EDGE, rim | core), (_BORDER, beside)):
        pairs = (tones[..., :, None] & tones[..., None, :]).reshape(-1, n * n).astype(np.float32)
        allowed = (pairs @ palette.mixes.reshape(n * n, n).astype(np.float32) > 0).reshape(tones.shape)
        pure = part[..., area, n : 2 * n]
        worst = np.maximum(worst, np.where(allowed, 0, pure).sum(-1))
    return worst
