"""Cells in doubt read off a window of the full decode: small and full videos of boards at full size, by decoders told so."""

import numpy as np
import pytest
import torch
from wan_folder import WAN22_VAE, tiny_vae

from vrlvr.models.wan_decode import Window
from vrlvr.models.wan_vae import WanVAECodec
from vrlvr.puzzles import Puzzle, Reading, board, generate, judge, maze, read, render
from vrlvr.reread import Box, doubtful_cells, reread, window_around

SIZE = 480, 832
FRAMES = 17
LATENTS = torch.zeros(1, 1, 1, 30, 52)


class Full:
    """Shows one video."""

    pixels_per_latent = 16

    def __init__(self, video_TYXC: np.ndarray) -> None:
        self.video = video_TYXC

    def decode(self, first_latents_BC1HW: torch.Tensor, latents_BCFHW: torch.Tensor) -> np.ndarray:
        raise AssertionError("a window is enough")

    def decode_window(
        self, first_latents_BC1HW: torch.Tensor, latents_BCFHW: torch.Tensor, window: Window
    ) -> np.ndarray:
        top, bottom, left, right = (16 * edge for edge in window)
        frames = self.video if latents_BCFHW.shape[2] else self.video[:1]
        return frames[None, :, top:bottom, left:right]


@pytest.fixture
def puzzle() -> Puzzle:
    return generate("maze", maze.Difficulty(9, 9, 4, 12), 0, "rl", 0)


def a_quarter(video_TYXC: np.ndarray) -> np.ndarray:
    frames, height, width, _ = video_TYXC.shape
    return video_TYXC.reshape(frames, height // 4, 4, width // 4, 4, 3).mean((2, 4)).round().astype(np.uint8)


def cells(puzzle: Puzzle, box: Box) -> tuple[slice, slice]:
    """The pixels of a box of cells at full size."""
    place = board.layout(puzzle.rows, puzzle.cols, *SIZE)
    rows = slice(place.top + place.cell * box.top, place.top + place.cell * box.bottom)
    return rows, slice(place.left + place.cell * box.left, place.left + place.cell * box.right)


@pytest.mark.parametrize("box", [Box(3, 4, 5, 6), Box(0, 2, 0, 1), Box(7, 9, 8, 9)])
@pytest.mark.parametrize("gain", [1.0, 0.8])
def test_the_boxs_cells_are_read_as_off_the_full_decode(puzzle: Puzzle, box: Box, gain: float) -> None:
    """A darker video as well: how bright it is, is told by the whole first frame."""
    full = (render(puzzle, *SIZE, FRAMES, 1) * gain).astype(np.uint8)
    rows, columns = cells(puzzle, box)
    spoiled = full.copy()
    spoiled[9:, rows, columns] = 255, 0, 255
    readings = [(read(puzzle, a_quarter(video), SIZE), read(puzzle, video)) for video in (full, spoiled)]
    (small_clean, full_clean), (small_spoiled, full_spoiled) = readings
    assert doubtful_cells(small_spoiled, 20.0) == box
    assert [judge(puzzle, reading).solved for reading in (small_clean, small_spoiled)] == [True, False]
    for small, shown, exact in ((small_spoiled, full, full_clean), (small_clean, spoiled, full_spoiled)):
        before = [values.copy() for values in small]
        mixed = reread(puzzle, small, box, LATENTS, LATENTS, Full(shown), SIZE)
        inside = np.zeros((9, 9), bool)
        inside[box.top : box.bottom, box.left : box.right] = True
        for values, unread, anew in zip(mixed, before, exact, strict=True):
            np.testing.assert_array_equal(values[:, inside], anew[:, inside])
            np.testing.assert_array_equal(values[:, ~inside], unread[:, ~inside])
        assert judge(puzzle, mixed).solved is (shown is full)
        for values, unread in zip(small, before, strict=True):
            np.testing.assert_array_equal(values, unread)


def test_the_window_covers_the_cells_and_little_else(puzzle: Puzzle) -> None:
    for box in (Box(0, 1, 0, 1), Box(8, 9, 8, 9), Box(2, 5, 3, 4)):
        window = window_around(puzzle, box, SIZE, 16)
        rows, columns = cells(puzzle, box)
        assert 16 * window.top <= rows.start < 16 * (window.top + 1)
        assert 16 * (window.bottom - 1) < rows.stop <= 16 * window.bottom
        assert 16 * window.left <= columns.start < 16 * (window.left + 1)
        assert 16 * (window.right - 1) < columns.stop <= 16 * window.right


def test_the_box_holds_each_doubtful_cell_of_any_frame() -> None:
    rmse = np.zeros((3, 5, 6), np.float32)
    rmse[0, 1, 4], rmse[2, 3, 2], rmse[1, 4, 5] = 21.0, np.inf, 20.0
    assert doubtful_cells(Reading(np.zeros((3, 5, 6), np.int16), rmse), 20.0) == Box(1, 4, 2, 5)
    assert doubtful_cells(Reading(np.zeros((3, 5, 6), np.int16), np.minimum(rmse, 20)), 20.0) is None


def test_the_vae_gives_such_a_window() -> None:
    torch.manual_seed(0)
    codec = WanVAECodec(tiny_vae(WAN22_VAE))
    first, latents = torch.randn(1, codec.latent_channels, 1, 6, 7), torch.randn(1, codec.latent_channels, 2, 6, 7)
    window = Window(1, 3, 4, 7)
    shown, whole = codec.decode_window(first, latents, window), codec.decode(first, latents)
    assert shown.shape == (1, 9, 32, 48, 3)
    assert whole.std() > 10
    np.testing.assert_allclose(shown.astype(int), whole[:, :, 16:48, 64:112].astype(int), atol=1)
    still = codec.decode_window(first, latents[:, :, :0], Window(0, 6, 0, 7))
    assert still.shape == (1, 1, 96, 112, 3)
    np.testing.assert_allclose(still.astype(int), whole[:, :1].astype(int), atol=1)
