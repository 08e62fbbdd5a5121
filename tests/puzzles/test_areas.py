"""Cell means over all pixels: exact against the plain way, and nothing painted between points goes unseen."""

import numpy as np
import pytest

from vrlvr.puzzles import ROOMS, board, sokoban
from vrlvr.puzzles.areas import area_means


@pytest.mark.parametrize(
    ("tops", "lefts", "height", "width"),
    [
        ([0, 64, 128], [4, 68], 64, 64),
        ([1, 54], [3, 56, 109], 53, 53),  # rows that no band divides
        ([0, 17, 33], [2, 19, 36], 16, 16),  # of a scaled video: cells lie a pixel apart
        ([0, 40], [0, 35], 40, 35),
        ([3, 12], [1, 11], 9, 10),
    ],
)
def test_means_are_those_of_the_pixels(tops, lefts, height, width):
    rng = np.random.default_rng(0)
    video = rng.integers(0, 256, (2, 200, 180, 3), dtype=np.uint8)
    means = area_means(video, np.array(tops), np.array(lefts), height, width, 0.07).reshape(
        2, len(tops), len(lefts), 3, 3
    )
    band = 4 if height >= 32 else 2 if height >= 16 else 1
    for r, top in enumerate(tops):
        for k, left in enumerate(lefts):
            first, bands = height % band // 2, height // band
            ys = (np.arange(first, first + bands * band) + 0.5) / height - 0.5
            distance = np.hypot(ys[:, None], (np.arange(width) + 0.5) / width - 0.5).reshape(bands, band, width)
            cell = video[:, top + first :, left : left + width][:, : bands * band].reshape(2, bands, band, width, 3)
            rim, core = (distance > 0.42).all(1), (distance <= 0.28).all(1)
            for tone, mask in enumerate((rim, core, ~(rim | core))):
                plain = cell.mean(2)[:, mask].mean(1)
                np.testing.assert_allclose(means[:, r, k, tone], plain, atol=0.6)


@pytest.mark.parametrize("name", ROOMS)
def test_flat_cells_have_exact_means(name):
    looks = ROOMS[name].LOOKS
    states = np.arange(len(looks)).reshape(1, 1, -1)
    video = board.render(states, looks, 52, 52 * len(looks))
    means = area_means(video, np.array([0]), 52 * np.arange(len(looks)), 52, 52, 0.07)
    np.testing.assert_allclose(means[:, :2], looks, atol=1e-3)


def test_what_is_painted_between_the_points_of_a_lattice_is_seen():
    """Floor, but for one pixel in eight each way, which shows a box: all that used to be read of a cell."""
    looks, cell = sokoban.LOOKS, 68
    floor, box = (
        board.render(np.full((1, 2, 2), label), looks, 2 * cell, 2 * cell)
        for label in (sokoban.render.FLOOR, sokoban.render.BOX)
    )
    at = (cell * np.arange(2)[:, None] + (2 * np.arange(8) + 1) * cell // 16).ravel()
    floor[:, at[:, None], at] = box[:, at[:, None], at]
    assert not (board.read(floor, looks, 2, 2)[0] == sokoban.render.BOX).any()


@pytest.mark.parametrize("cell", [12, 16, 52, 68])
def test_a_ring_around_the_core_is_seen(cell):
    """The agent as a thin ring on the floor, where rim and core meet and neither looks."""
    looks = sokoban.LOOKS
    labels = np.array([[[sokoban.render.FLOOR, sokoban.render.AGENT]]])
    video = board.render(labels, looks, cell, 2 * cell)
    np.testing.assert_array_equal(board.read(video, looks, 1, 2)[0], labels)
    distance = np.hypot(*(np.mgrid[:cell, :cell] + 0.5 - cell / 2)) / cell
    video[:, :, :cell][:, (distance > 0.29) & (distance < 0.41)] = looks[sokoban.render.AGENT, 1]
    assert board.read(video, looks, 1, 2)[0].tolist() == [[[board.UNREADABLE, sokoban.render.AGENT]]]
