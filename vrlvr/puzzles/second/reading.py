"""Boards off a video by votes: every pixel of the board is classified, and each cell counts the votes of its areas.

The first frame must show the puzzle, so it tells how bright the video is. A pixel then votes for the nearest tone of the task's
looks, or is foreign if it is not even a mixture of two that meet in a cell. Two areas of a cell, its rim and its
core, must each be won by one tone with few votes against it; where two tones meet, blurring mixes them, so the bands along
edges may show all that lies between the tones beside them, but no third one.

Shapes: T frames, Y/X pixel rows/columns, R/K board rows/columns, L labels, N tones.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vrlvr.puzzles import board

UNCLEAR = -1

_RIM, _CORE, _EDGE, _BORDER = range(4)  # areas: ground, disc, the disc's edge, the cell's own border
_AREAS = 4
_EXACT_CELL_PX = 8  # up to this size there are no bands: cells have no pixel to spare, and are not compressed
_GAINS = np.linspace(0.7, 1.3, 13)  # of the first frame, to the nearest
_SAME_TONE = 60.0  # tones nearer than this (levels, Euclidean) count as one; no two looks differ by them alone
_FOREIGN = 60.0  # a pixel farther than this from every tone and mixture is foreign
_PURE = 30.0  # one nearer than this is no mixture
_WON = 0.75  # the share of its pixels by which a tone wins an area
_WON_EXACT = 0.6  # the same in cells without bands, where scaling mixes tones: 3 of the 4 pixels of the smallest core
_INTRUDERS = 0.1  # the share of a won area's pixels that may purely be of other tones, in cells with bands
_PAINTED = 0.2  # the share of a band's pixels that may purely be of a tone that does not belong there


class Game(NamedTuple):
    """looks: rim and core colour of each label. changes: labels that a cell may show one after the other."""

    looks: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    changes: tuple[tuple[int, int], ...]


def game_of(looks: NDArray[np.uint8], changes: Iterable[tuple[int, int]]) -> Game:
    """The game of looks uint8 (L, 2, 3)."""
    return Game(tuple((tuple(rim), tuple(core)) for rim, core in looks.tolist()), tuple(changes))


@dataclass(frozen=True)
class Palette:
    """The tones of a task's looks in a video of some brightness, and every colour's vote.

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


@lru_cache(maxsize=128)
def palette_of(game: Game, gain: float = 1.0) -> Palette:
    """The palette of a game in a video in which its looks are so much brighter; gain: one of _GAINS."""
    looks = np.array(game.looks, np.float32)
    colours = looks.reshape(-1, 3)
    tones = [colours[0]]
    for colour in colours:
        if min(np.linalg.norm(colour - tone) for tone in tones) >= _SAME_TONE:
            tones.append(colour)
    of_look = np.argmin([_to_mixture(colours, tone, tone) for tone in tones], 0)

    shown, levels = np.minimum(looks * gain, 255), np.arange(32, dtype=np.float32) * 8 + 3.5
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    distance = np.full((len(tones), len(grid)), np.inf, np.float32)
    for drawn, n in {(tuple(colour), n) for colour, n in zip(shown.reshape(-1, 3), of_look, strict=True)}:
        distance[n] = np.minimum(distance[n], _to_mixture(grid, np.array(drawn), np.array(drawn)))
    nearest, least = distance.argmin(0), distance.min(0)
    known = least <= _FOREIGN
    mixed = {(tuple(shown[i, k]), tuple(shown[j, k])) for i, j in game.changes for k in (0, 1)}  # in time
    mixed |= {(tuple(rim), tuple(core)) for rim, core in shown}  # and in space
    for a, b in mixed:
        known |= _to_mixture(grid, np.array(a), np.array(b)) <= _FOREIGN
    vote = np.where(known, np.where(least <= _PURE, len(tones) + nearest, nearest), 2 * len(tones))
    mixes = [[_to_mixture(np.array(tones), a, b) <= 2 * _PURE for b in tones] for a in tones]
    background = np.argmin([np.linalg.norm(np.array(board.BACKGROUND) - tone) for tone in tones])
    return Palette(of_look.reshape(-1, 2), vote.astype(np.intp), np.array(mixes), int(background))


def _to_mixture(colours: NDArray[np.float32], a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Levels between each of the colours and the nearest mixture of a and b."""
    way, off = b - a, colours - a
    along, length = off @ way, float(way @ way)
    share = np.clip(along / max(length, 1.0), 0, 1)
    square = np.einsum("ij,ij->i", off, off) - 2 * share * along + share**2 * length
    return np.sqrt(np.maximum(square, 0))


def _band(cell_px: float) -> float:
    """Half the width of the bands, as a share of a cell's side: 3.1 pixels of 64, 1.4 of 16; 0 in tiny cells."""
    return min(0.09, 1.5 / cell_px + 0.025) if cell_px > _EXACT_CELL_PX else 0.0


def _cell_px(place: board.Layout, height: int, width: int) -> float:
    """The shorter side of a cell in a frame of height x width, whatever size it was laid out for."""
    return place.cell * min(height / place.height, width / place.width)


@lru_cache(maxsize=32)
def _areas(place: board.Layout, height: int, width: int) -> tuple[slice, slice, NDArray[np.intp], NDArray[np.intp]]:
    """The pixel rows and columns that show the board, the area of each of its pixels (cell * 4 + area), and their number
    (R, K, 4). A pixel belongs to where its middle lies; in tiny cells, to the pixel of the layout that covers it."""
    band = _band(_cell_px(place, height, width))

    def along(pixels: int, laid_out: int, first: int, count: int) -> tuple[slice, NDArray, NDArray]:
        at = (np.arange(pixels) + 0.5) * laid_out / pixels - first
        inside = np.flatnonzero((at >= 0) & (at < count * place.cell))
        cell, offset = np.divmod(at[inside] if band else np.floor(at[inside]) + 0.5, place.cell)
        return slice(inside[0], inside[-1] + 1), cell.astype(np.intp), offset / place.cell - 0.5

    ys, row, down = along(height, place.height, place.top, place.rows)
    xs, col, right = along(width, place.width, place.left, place.cols)
    radius = np.hypot(down[:, None], right[None, :])
    to_border = 0.5 - np.maximum(np.abs(down)[:, None], np.abs(right)[None, :])
    area = np.where(radius <= 0.35, _CORE, _RIM)
    area = np.where(np.abs(radius - 0.35) < band, _EDGE, area)
    area = np.where(to_border < band, _BORDER, area)
    area = (row[:, None] * place.cols + col[None, :]) * _AREAS + area
    sizes = np.bincount(area.ravel(), minlength=place.rows * place.cols * _AREAS)
    sizes = sizes.reshape(place.rows, place.cols, _AREAS)
    if not sizes[..., [_RIM, _CORE]].all():
        raise ValueError(
            f"frames of {height}x{width} are too small to show {place.rows}x{place.cols} cells; enlarge them"
        )
    return ys, xs, area, sizes


def shares(video_TYXC: NDArray[np.uint8], palette: Palette, place: board.Layout) -> NDArray[np.float32]:
    """Each vote's share of the area: float32 (T, R, K, area, 2N + 1); 0 where an area has no pixel.

    place: of the board in the frames that it was drawn in; the video may have been scaled since.
    """
    num_frames, height, width, _ = video_TYXC.shape
    ys, xs, area, sizes = _areas(place, height, width)
    votes = 2 * palette.tones + 1
    bins = area * votes
    counts = np.empty((num_frames, sizes.size * votes), np.float32)
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
    counts = counts.reshape(num_frames, *sizes.shape, votes)
    counts /= np.maximum(sizes, 1)[..., None]
    return counts


def brightness(frame_YXC: NDArray[np.uint8], start_RK: NDArray[np.integer], game: Game, place: board.Layout) -> float:
    """The gain, one of _GAINS, at which a frame comes nearest to the board that it should show (least squares over areas)."""
    ys, xs, area, _ = _areas(place, *frame_YXC.shape[:2])
    colours = np.zeros((start_RK.size, _AREAS, 3))
    colours[:, [_RIM, _CORE]] = np.array(game.looks)[start_RK.ravel()]
    expected = colours.reshape(-1, 3)
    shown = frame_YXC[ys, xs].reshape(-1, 3).T
    totals = np.stack([np.bincount(area.ravel(), channel, len(expected)) for channel in shown], 1)
    pixels = np.bincount(area.ravel(), minlength=len(expected))
    gain = (totals * expected).sum() / (pixels[:, None] * expected**2).sum()
    return float(_GAINS[np.abs(_GAINS - gain).argmin()])


def read(
    video_TYXC: NDArray[np.uint8],
    start_RK: NDArray[np.integer],
    game: Game,
    size: tuple[int, int] | None = None,
) -> NDArray[np.int16]:
    """The label that each cell shows in each frame, int16 (T, R, K); UNCLEAR where its areas show no look.

    start_RK: the labels that the first frame should show. size: height and width in which the board was drawn, if the video was
    scaled since. Raises ValueError where the board does not fit.
    """
    height, width = video_TYXC.shape[1:3]
    place = board.layout(*start_RK.shape, *(size or (height, width)))
    palette = palette_of(game, brightness(video_TYXC[0], start_RK, game, place))
    n = palette.tones
    part = shares(video_TYXC, palette, place)
    pure = part[..., n : 2 * n]
    won = part[..., :n] + pure
    tone = won.argmax(-1)
    banded = _band(_cell_px(place, height, width)) > 0
    clear = won.max(-1) >= (_WON if banded else _WON_EXACT)
    legible = clear[..., _RIM] & clear[..., _CORE]
    rim_tone, core_tone = tone[..., _RIM], tone[..., _CORE]
    if banded:
        few = pure.sum(-1) - np.take_along_axis(pure, tone[..., None], -1)[..., 0] <= _INTRUDERS
        legible &= few[..., _RIM] & few[..., _CORE] & (_painted(part, palette, rim_tone, core_tone) <= _PAINTED)
    label_of = np.full((n, n), UNCLEAR, np.int16)
    label_of[palette.looks[:, 0], palette.looks[:, 1]] = np.arange(len(game.looks))
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
