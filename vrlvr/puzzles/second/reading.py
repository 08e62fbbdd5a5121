"""Boards off a video by votes: every pixel of the board is classified, and each cell counts the votes of its areas.

The first frame must show the puzzle, so it tells how bright the video is. A pixel then votes for a tone of the game's looks.
A cell's rim and core must each be won by one tone; and no tile of it may hold more than a trace of what cannot be there.

Shapes: T frames, Y/X pixel rows/columns, R/K board rows/columns, L labels, N tones, V = 2N + 1 votes.
"""

import numpy as np
from numpy.typing import NDArray

from vrlvr.puzzles import board
from vrlvr.puzzles.second.areas import AREAS, BORDER, CORE, EDGE, RIM, Areas, areas_of
from vrlvr.puzzles.second.palette import GAINS, Game, Palette, palette_of

UNCLEAR = -1

_WON = 0.5  # the share of its pixels by which a tone wins an area
_TRACE = 0.15  # the share of a tile's pixels that may be what cannot be there


def read(
    video_TYXC: NDArray[np.uint8],
    start_RK: NDArray[np.integer],
    game: Game,
    size: tuple[int, int] | None = None,
) -> NDArray[np.int16]:
    """The label that each cell shows in each frame, int16 (T, R, K); UNCLEAR where it shows no look.

    start_RK: the labels that the first frame should show. size: height and width in which the board was drawn, if the video was
    scaled since. Raises ValueError where the board does not fit.
    """
    height, width = video_TYXC.shape[1:3]
    place = board.layout(*start_RK.shape, *(size or (height, width)))
    areas = areas_of(place, height, width)
    palette = palette_of(game, brightness(video_TYXC[0], start_RK, game, areas))
    counts = count_votes(video_TYXC, palette, areas)
    n = palette.tones
    by_area = counts.sum(3)
    won = by_area[..., :n] + by_area[..., n : 2 * n]
    label_of = np.full((n, n), UNCLEAR, np.int16)
    label_of[palette.looks[:, 0], palette.looks[:, 1]] = np.arange(len(game.looks))
    rim = won[..., RIM, :].argmax(-1)
    core = np.where(label_of[rim] == UNCLEAR, -1, won[..., CORE, :]).argmax(-1)  # of the looks with that rim
    legible = np.ones(rim.shape, bool)
    for area, tone in ((RIM, rim), (CORE, core)):
        votes = np.take_along_axis(won[..., area, :], tone[..., None], -1)[..., 0]
        legible &= votes >= _WON * areas.sizes.sum(2)[..., area]
    if areas.banded:
        strange = strangers(counts, palette, rim, core)
        legible &= (strange <= _TRACE * areas.sizes.sum(3)).all(3)
    return np.where(legible, label_of[rim, core], UNCLEAR).astype(np.int16)


def brightness(frame_YXC: NDArray[np.uint8], start_RK: NDArray[np.integer], game: Game, areas: Areas) -> float:
    """The gain, one of GAINS, at which a frame comes nearest to the board that it should show (least squares over pixels)."""
    colours = np.zeros((*areas.sizes.shape, 3))
    colours[..., [RIM, CORE], :] = np.array(game.looks)[start_RK][:, :, None]
    expected, shown = colours.reshape(-1, 3), frame_YXC[areas.ys, areas.xs].reshape(-1, 3).T
    totals = np.stack([np.bincount(areas.bins.ravel(), channel, len(expected)) for channel in shown], 1)
    gain = (totals * expected).sum() / (areas.sizes.reshape(-1, 1) * expected**2).sum()
    return float(GAINS[np.abs(GAINS - gain).argmin()])


def count_votes(video_TYXC: NDArray[np.uint8], palette: Palette, areas: Areas) -> NDArray[np.float32]:
    """How many pixels cast each vote: float32 (T, R, K, tiles, areas, V)."""
    votes = 2 * palette.tones + 1
    bins = areas.bins * votes
    counts = np.empty((len(video_TYXC), areas.sizes.size * votes), np.float32)
    for counted, frame in zip(counts, video_TYXC, strict=True):
        part = frame[areas.ys, areas.xs] & 0xF8
        colour = part[..., 0].astype(np.intp)
        colour <<= 5
        colour |= part[..., 1]
        colour <<= 2
        colour |= part[..., 2] >> 3
        cast = palette.vote.take(colour, mode="clip")
        cast += bins
        counted[:] = np.bincount(cast.ravel(), minlength=counts.shape[1])
    return counts.reshape(len(video_TYXC), *areas.sizes.shape, votes)


def strangers(
    counts: NDArray[np.float32], palette: Palette, rim_tone: NDArray[np.intp], core_tone: NDArray[np.intp]
) -> NDArray[np.float32]:
    """The pixels of each tile that cannot be there, given each cell's tones: (T, R, K, tiles).

    That is purely of another tone; in an edge or border, of none that lies between those beside it; in rim and core, foreign.
    """
    n = palette.tones
    rim, core = np.eye(n, dtype=bool)[rim_tone], np.eye(n, dtype=bool)[core_tone]
    rows, cols = rim.shape[1:3]
    around = np.zeros((len(rim), rows + 2, cols + 2, n), bool)
    around[..., palette.background] = True
    around[:, 1:-1, 1:-1] = rim
    beside = np.logical_or.reduce([around[:, i : i + rows, j : j + cols] for i in range(3) for j in range(3)])
    strange = np.zeros((*rim.shape[:3], AREAS, n + 1), np.float32)
    strange[..., [RIM, CORE], n] = 1
    strange[..., RIM, :n], strange[..., CORE, :n] = ~rim, ~core
    for area, tones in ((EDGE, rim | core), (BORDER, beside)):
        pairs = (tones[..., :, None] & tones[..., None, :]).reshape(len(tones), -1, n * n).astype(np.float32)
        between = pairs @ palette.mixes.reshape(n * n, n).astype(np.float32)
        strange[..., area, :n] = between.reshape(tones.shape) == 0
    return np.einsum("trkian,trkan->trki", counts[..., n:], strange)
