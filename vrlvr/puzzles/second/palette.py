"""The colours of a game, and what a pixel of any colour says: one of the game's tones, a mixture, or nothing it knows.

Shapes: L labels, N tones.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vrlvr.puzzles import board

GAINS = np.linspace(0.5, 1.3, 17)  # how bright a video may be
_SAME_TONE = 60.0  # tones nearer than this (levels, Euclidean) count as one; no two looks differ by them alone
_FOREIGN = 85.0  # a pixel farther than this from every tone and mixture is foreign
_PURE = 30.0  # one nearer than this is no mixture


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
    """The palette of a game in a video in which its looks are so much brighter; gain: one of GAINS."""
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
    near, pure = _FOREIGN * min(gain, 1), _PURE * min(gain, 1)  # in the dark, colours lie closer together
    known = least <= near
    mixed = {(tuple(shown[i, k]), tuple(shown[j, k])) for i, j in game.changes for k in (0, 1)}  # in time
    mixed |= {(tuple(rim), tuple(core)) for rim, core in shown}  # and in space
    for a, b in mixed:
        known |= _to_mixture(grid, np.array(a), np.array(b)) <= near
    vote = np.where(known, np.where(least <= pure, len(tones) + nearest, nearest), 2 * len(tones))
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
