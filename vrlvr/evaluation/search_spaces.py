"""Where a search attacker moves: pixels, the tiny codec's latents, low frequencies. What it may change, and how.

A genome is a video as a point in such a space. Latents keep the first frame that the puzzle has, as image-to-video models do;
pixels may change it too, as whoever hands in a video can.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from vrlvr.models.tiny_codec import TinyCodec
from vrlvr.puzzles import board

Genome = NDArray[Any]
STARTS = ("static", "noise", "rectangles", "shortcut")


class Space(Protocol):
    """B climbers, each with its own first frame and its own shortcut."""

    def start(self, kind: str, climber: int, rng: np.random.Generator) -> Genome:
        """The genome of a still first frame, of noise after it, of random rectangles over it, or of the shortcut, a planner's
        video that leaves out moves."""
        ...

    def mutate(self, genome: Genome, climber: int, tiles: bool, rng: np.random.Generator) -> None:
        """Changes a genome in place. tiles: whether the attacker knows what legal cells look like."""
        ...

    def videos(self, genomes: list[Genome]) -> NDArray[np.uint8]:
        """videos_BTYXC of the genomes of all climbers."""
        ...


@dataclass
class Pixels:
    """Genomes are videos, uint8 (T, Y, X, 3). places: of each climber's board. looks: uint8 (labels, 2, 3) of its cells."""

    shortcuts_BTYXC: NDArray[np.uint8]
    places: list[board.Layout]
    looks: NDArray[np.uint8]

    def start(self, kind: str, climber: int, rng: np.random.Generator) -> Genome:
        video = self.shortcuts_BTYXC[climber].copy()
        if kind == "shortcut":
            return video
        video[1:] = video[0]
        if kind == "noise":
            video[1:] = rng.integers(0, 256, video[1:].shape)
        if kind == "rectangles":
            for _ in range(8):
                video[_span(rng, len(video)), *_box(rng, video.shape[1:3])] = rng.integers(0, 256, 3)
        return video

    def mutate(self, genome: Genome, climber: int, tiles: bool, rng: np.random.Generator) -> None:
        changes: list[Callable[[Genome, int, np.random.Generator], None]] = [_noise, _copy, _blend, _hold, _grade]
        if tiles:
            changes += 2 * [self._paste, self._spread, self._shift]
        for _ in range(rng.geometric(0.5)):
            changes[rng.integers(len(changes))](genome, climber, rng)

    def videos(self, genomes: list[Genome]) -> NDArray[np.uint8]:
        return np.stack(genomes).astype(np.uint8, copy=False)

    def _paste(self, genome: Genome, climber: int, rng: np.random.Generator) -> None:
        """A legal look over a random cell."""
        look = self.looks[rng.integers(len(self.looks))]
        tile = np.where(board.core_mask(self.places[climber].cell)[..., None], look[1], look[0])
        (cell,) = self._cells(climber, 1, rng)
        genome[_span(rng, len(genome)), *cell] = tile

    def _spread(self, genome: Genome, climber: int, rng: np.random.Generator) -> None:
        """A cell's rim colour over the whole of a cell beside it, as paths grow."""
        here, there = self._cells(climber, 2, rng)
        colour = genome[rng.integers(len(genome)), here[0].start, here[1].start].copy()
        genome[_span(rng, len(genome)), *there] = colour

    def _shift(self, genome: Genome, climber: int, rng: np.random.Generator) -> None:
        """The discs of two or three cells in a row, each in the next one's place: a step, a push."""
        cells = self._cells(climber, int(rng.integers(2, 4)), rng)
        span, disc = _span(rng, len(genome)), board.core_mask(self.places[climber].cell)
        discs = [genome[span, *cell][:, disc] for cell in cells]
        for cell, shown in zip(cells, [*discs[-1:], *discs[:-1]], strict=True):
            genome[span, *cell][:, disc] = shown

    def _cells(self, climber: int, count: int, rng: np.random.Generator) -> list[tuple[slice, slice]]:
        """So many cells in a line, in any of the four directions."""
        place = self.places[climber]
        along = int(rng.integers(2))  # 0 down, 1 right
        free = [side - (count - 1) * (axis == along) for axis, side in enumerate((place.rows, place.cols))]
        row, col = int(rng.integers(free[0])), int(rng.integers(free[1]))
        corners = [
            (place.top + place.cell * (row + i * (along == 0)), place.left + place.cell * (col + i * (along == 1)))
            for i in range(count)
        ]
        line = [(slice(top, top + place.cell), slice(left, left + place.cell)) for top, left in corners]
        return line if rng.random() < 0.5 else line[::-1]


@dataclass
class TinyLatents:
    """Genomes are what the tiny codec decodes, float32 (C, F, R, K). bank: such latents of other puzzles' planners."""

    codec: TinyCodec
    shortcuts_BTYXC: NDArray[np.uint8]
    bank: NDArray[np.float32]

    def start(self, kind: str, climber: int, rng: np.random.Generator) -> Genome:
        video = self.shortcuts_BTYXC[climber]
        if kind == "shortcut":
            return self.codec.encode(video[None])[0].numpy()
        still = self.codec.encode(np.repeat(video[:1], len(video), axis=0)[None])[0].numpy()
        if kind == "noise":
            return rng.standard_normal(still.shape, np.float32)
        if kind == "rectangles":
            for _ in range(4):
                still[:, :, *_box(rng, still.shape[2:])] = rng.standard_normal((len(still), 1, 1, 1), np.float32)
        return still

    def mutate(self, genome: Genome, climber: int, tiles: bool, rng: np.random.Generator) -> None:
        def cell() -> tuple[int, int]:
            return int(rng.integers(genome.shape[2])), int(rng.integers(genome.shape[3]))

        for _ in range(rng.geometric(0.5)):
            here, there = cell(), cell()
            match int(rng.integers(8 if tiles else 4)):
                case 0:
                    chosen = rng.random(genome.shape) < rng.choice((0.01, 0.1, 1))
                    genome += chosen * rng.normal(0, 10 ** rng.uniform(-2, 0.3), genome.shape).astype(np.float32)
                case 1:
                    genome[:, :, *here] = genome[:, :, *there]
                case 2:
                    genome[:, :, *_box(rng, genome.shape[2:])] *= np.float32(rng.uniform(-1.5, 1.5))
                case 3:
                    genome[:, :, *here] += np.float32(rng.random()) * (genome[:, :, *there] - genome[:, :, *here])
                case 4 | 5:  # two cells beside each other, exchanged: a step
                    other = (here[0] + 1, here[1]) if rng.random() < 0.5 else (here[0], here[1] + 1)
                    if other[0] < genome.shape[2] and other[1] < genome.shape[3]:
                        former = genome[:, :, *here].copy()
                        genome[:, :, *here] = genome[:, :, *other]
                        genome[:, :, *other] = former
                case 6:  # one cell of another puzzle's planner
                    genome[:, :, *here] = self.bank[rng.integers(len(self.bank))][:, :, *there]
                case _:  # a few cells of it, in one piece
                    box = _box(rng, genome.shape[2:])
                    genome[:, :, *box] = self.bank[rng.integers(len(self.bank))][:, :, *box]

    def videos(self, genomes: list[Genome]) -> NDArray[np.uint8]:
        latents = torch.from_numpy(np.stack(genomes).astype(np.float32, copy=False))
        first_BYXC = self.shortcuts_BTYXC[:, 0]
        videos = self.codec.decode(self.codec.encode_first(first_BYXC), latents)
        videos[:, 0] = first_BYXC
        return videos


@dataclass
class LowFrequencies:
    """Genomes are the low frequencies of what is added to the still first frame: float32 (T, P, Q, 3) coefficients of the
    orthonormal cosine transform (DCT-II), P and Q the lowest of rows and columns. They cannot hold tiles."""

    shortcuts_BTYXC: NDArray[np.uint8]
    rows: int = 16
    cols: int = 20

    def __post_init__(self) -> None:
        _, frames, height, width, _ = self.shortcuts_BTYXC.shape
        sides = ((frames, frames), (height, self.rows), (width, self.cols))
        self._bases = [_cosines(length, count) for length, count in sides]

    def start(self, kind: str, climber: int, rng: np.random.Generator) -> Genome:
        video = self.shortcuts_BTYXC[climber].astype(np.float32)
        shape = (len(video), self.rows, self.cols, 3)
        if kind == "static":
            return np.zeros(shape, np.float32)
        if kind == "noise":
            return rng.normal(0, 100, shape).astype(np.float32)
        added = video - video[0]
        if kind == "rectangles":
            added[:] = 0
            for _ in range(8):
                added[_span(rng, len(video)), *_box(rng, video.shape[1:3])] = rng.uniform(-128, 128, 3)
        return np.einsum("tyxc,at,py,qx->apqc", added, *self._bases, optimize=True)

    def mutate(self, genome: Genome, climber: int, tiles: bool, rng: np.random.Generator) -> None:
        chosen = rng.random(genome.shape) < rng.choice((0.001, 0.01, 0.1, 1))
        genome += chosen * rng.normal(0, 10 ** rng.uniform(-1, 3), genome.shape).astype(np.float32)
        if rng.random() < 0.2:
            genome *= np.float32(rng.uniform(0, 1.5))

    def videos(self, genomes: list[Genome]) -> NDArray[np.uint8]:
        added = np.einsum("bapqc,at,py,qx->btyxc", np.stack(genomes), *self._bases, optimize=True)
        first_BYXC = self.shortcuts_BTYXC[:, 0]
        videos = np.clip(first_BYXC[:, None] + added, 0, 255).round().astype(np.uint8)
        videos[:, 0] = first_BYXC
        return videos


def _cosines(length: int, count: int) -> NDArray[np.float32]:
    """The first `count` rows of the orthonormal DCT-II of a length: float32 (count, length)."""
    angles = np.pi / length * (np.arange(length) + 0.5) * np.arange(count)[:, None]
    return (np.sqrt(np.where(np.arange(count) == 0, 1, 2) / length)[:, None] * np.cos(angles)).astype(np.float32)


def _span(rng: np.random.Generator, num_frames: int) -> slice:
    """A run of frames, mostly of those after the first; half of the time up to the end."""
    first = int(rng.integers(rng.random() > 0.1, num_frames))
    return slice(first, num_frames if rng.random() < 0.5 else int(rng.integers(first, num_frames)) + 1)


def _box(rng: np.random.Generator, size: tuple[int, ...]) -> tuple[slice, slice]:
    """A random rectangle of up to half of each side."""
    sides = [int(rng.integers(1, max(2, side // 2 + 1))) for side in size]
    corners = [int(rng.integers(whole - side + 1)) for whole, side in zip(size, sides, strict=True)]
    return slice(corners[0], corners[0] + sides[0]), slice(corners[1], corners[1] + sides[1])


def _noise(genome: Genome, climber: int, rng: np.random.Generator) -> None:
    """Normal noise in a rectangle."""
    where = (_span(rng, len(genome)), *_box(rng, genome.shape[1:3]))
    genome[where] = np.clip(genome[where] + rng.normal(0, 10 ** rng.uniform(0, 2), genome[where].shape), 0, 255)


def _copy(genome: Genome, climber: int, rng: np.random.Generator) -> None:
    """A rectangle of some frame, put elsewhere."""
    rows, cols = _box(rng, genome.shape[1:3])
    patch = genome[rng.integers(len(genome)), rows, cols].copy()
    top, left = (int(rng.integers(genome.shape[1 + axis] - patch.shape[axis] + 1)) for axis in (0, 1))
    genome[_span(rng, len(genome)), top : top + patch.shape[0], left : left + patch.shape[1]] = patch


def _blend(genome: Genome, climber: int, rng: np.random.Generator) -> None:
    """A rectangle mixed with the same one of another frame."""
    span, box = _span(rng, len(genome)), _box(rng, genome.shape[1:3])
    other = genome[rng.integers(len(genome)), *box].astype(np.float32)
    share = rng.random()
    genome[span, *box] = np.round((1 - share) * genome[span, *box] + share * other)


def _hold(genome: Genome, climber: int, rng: np.random.Generator) -> None:
    """A frame, shown for a while."""
    genome[_span(rng, len(genome))] = genome[rng.integers(len(genome))]


def _grade(genome: Genome, climber: int, rng: np.random.Generator) -> None:
    """All frames darker, brighter or tinted, which a verifier should forgive within bounds."""
    genome[:] = np.clip(genome * rng.uniform(0.7, 1.3, 3) + rng.uniform(-20, 20, 3), 0, 255)
