"""Videos and latents as an imperfect video model makes them: what a reward decoder must read as the full decode does.

Shapes: T frames, R/K board rows/columns, B videos, C latent channels, F/H/W latent frames/rows/columns.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vrlvr import puzzles
from vrlvr.dataset import Recipe
from vrlvr.puzzles import Puzzle, board

# Shares of the samples that are spoiled in a way; some are in several, and about a quarter of all in none.
SPOILED, BLENDED, NOISY, PATCHED = 0.6, 0.25, 0.5, 0.15
MAX_NOISE = 0.5  # standard deviations of the latents

States = NDArray[np.integer]


def draw_video(
    recipe: Recipe, split: str, index: int, rng: np.random.Generator, scrambled: float = 0.0
) -> tuple[Puzzle, NDArray[np.uint8]]:
    """Puzzle `index` of a split and a video_TYXC of it: the planner's, or one spoiled. Raises ValueError where none fits.

    scrambled: the share of videos whose labels are random.
    """
    task = recipe.tasks[index % len(recipe.tasks)]
    puzzle = puzzles.generate(task, recipe.difficulties[task], recipe.seed, split, index)
    room = puzzles.room_of(puzzle)
    states = board.hold(room.states(puzzle, puzzle.solution), recipe.num_frames, recipe.frames_per_move)
    if scrambled and rng.random() < scrambled:
        states = scramble(states, len(room.LOOKS), rng)
    elif rng.random() < SPOILED:
        states = SPOILS[rng.integers(len(SPOILS))](states, len(room.LOOKS), rng)
    video = board.render(states, room.LOOKS, recipe.height, recipe.width)
    return puzzle, blend(video, rng) if rng.random() < BLENDED else video


def scramble(states: States, num_labels: int, rng: np.random.Generator) -> States:
    """A random label in every cell, and a new one in a random share of them in each frame: no board, but every cell teaches."""
    scrambled = rng.integers(num_labels, size=states.shape)
    for t in range(1, len(scrambled)):
        kept = rng.random(states.shape[1:]) < rng.random()
        scrambled[t][kept] = scrambled[t - 1][kept]
    return scrambled


def relabel(states: States, num_labels: int, rng: np.random.Generator) -> States:
    """One to three cells show anything for some frames: things appear, vanish, or stand in walls."""
    spoiled = states.copy()
    for _ in range(rng.integers(1, 4)):
        start, end = _interval(len(states), rng)
        spoiled[start:end, rng.integers(states.shape[1]), rng.integers(states.shape[2])] = rng.integers(num_labels)
    return spoiled


def exchange(states: States, num_labels: int, rng: np.random.Generator) -> States:
    """Two cells change places for some frames: jumps, and moves through walls."""
    spoiled, cells = states.copy().reshape(len(states), -1), rng.integers(states[0].size, size=2)
    start, end = _interval(len(states), rng)
    spoiled[start:end, cells] = spoiled[start:end, cells[::-1]]
    return spoiled.reshape(states.shape)


def stop(states: States, num_labels: int, rng: np.random.Generator) -> States:
    """The video stands still from some frame on."""
    return states[np.minimum(np.arange(len(states)), rng.integers(len(states)))]


def reorder(states: States, num_labels: int, rng: np.random.Generator) -> States:
    """Some frames run backwards."""
    order = np.arange(len(states))
    start, end = _interval(len(states), rng)
    order[start:end] = order[start:end][::-1]
    return states[order]


SPOILS: tuple[Callable[[States, int, np.random.Generator], States], ...] = (relabel, exchange, stop, reorder)


def _interval(length: int, rng: np.random.Generator) -> tuple[int, int]:
    """A random start and end, at least one frame apart; half of them last to the end."""
    start = int(rng.integers(length))
    return start, length if rng.random() < 0.5 else int(rng.integers(start, length)) + 1


def blend(video_TYXC: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Every frame but the first keeps some of the one before: ghosts of what has moved."""
    kept = rng.uniform(0.1, 0.6)
    mixed = kept * video_TYXC[:-1].astype(np.float32) + (1 - kept) * video_TYXC[1:]
    return np.concatenate((video_TYXC[:1], mixed.round().astype(np.uint8)))


def mix(latents_CFHW: Tensor, other_CFHW: Tensor, rng: np.random.Generator) -> Tensor:
    """Latents that at some positions lie between those of two videos: what a model makes of a cell that it is not sure of.

    In half of the videos positions differ from frame to frame, in the others they last from some frame to the end.
    """
    size = latents_CFHW.shape[1:]
    shares = rng.random(size) * (rng.random(size) < rng.random() ** 2)  # squared: few positions are the common case
    if rng.random() < 0.5:
        lasts = np.arange(size[0]) >= rng.integers(size[0])
        shares = shares[:1] * lasts[:, None, None]
    share_FHW = torch.from_numpy(shares).to(latents_CFHW)
    return torch.lerp(latents_CFHW, other_CFHW, share_FHW)


def perturb(latents_BCFHW: Tensor, rng: np.random.Generator) -> Tensor:
    """Normalised latents with noise of up to MAX_NOISE, and with patches of another of the videos, each on some of them."""
    result = latents_BCFHW.clone()
    generator = torch.Generator(latents_BCFHW.device).manual_seed(int(rng.integers(2**63)))
    for i in range(len(result)):
        if rng.random() < PATCHED:
            other, (height, width) = latents_BCFHW[rng.integers(len(result))], result.shape[3:]
            y, x = int(rng.integers(height)), int(rng.integers(width))
            rows, columns = 1 + int(rng.integers(max(1, height // 4))), 1 + int(rng.integers(max(1, width // 4)))
            place = np.s_[:, int(rng.integers(result.shape[2])) :, y : y + rows, x : x + columns]
            result[i][place] = other[place]
        if rng.random() < NOISY:
            noise = torch.randn(result[i].shape, generator=generator, device=result.device)
            result[i] += MAX_NOISE * rng.uniform() ** 2 * noise  # squared: little noise is the common case
    return result
