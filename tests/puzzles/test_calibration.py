"""Colours are calibrated by the first frame: as far as an honest camera goes, and no further."""

import numpy as np
import pytest

from vrlvr.puzzles import ROOMS, board, generate, render, verify
from vrlvr.puzzles.calibration import calibrate


@pytest.mark.parametrize("task", ROOMS)
@pytest.mark.parametrize(("gain", "offset"), [(0.65, 0), (0.8, 0), (1.2, 0), (0.85, 20), (1.1, -12)])
def test_honest_videos_of_other_brightness_and_contrast_are_solved(task, gain, offset):
    for index in range(5):
        puzzle = generate(task, ROOMS[task].Difficulty(), 0, "test", index)
        video = render(puzzle, 64, 80, 5, 1)
        assert verify(puzzle, np.clip(video * gain + offset, 0, 255).astype(np.uint8)).solved


@pytest.mark.parametrize("gain", [0.8, 1.2])
def test_all_colours_of_flowfree_are_read_at_another_gain(gain):
    looks = ROOMS["flowfree"].LOOKS
    states = np.random.default_rng(0).integers(len(looks), size=(3, 6, 6))
    video = np.clip(board.render(states, looks, 200, 200) * gain, 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(board.read(video, looks, 6, 6, start=states[0])[0], states)


def test_a_first_frame_that_is_right_changes_nothing():
    looks = ROOMS["maze"].LOOKS
    rng = np.random.default_rng(0)
    states = rng.integers(len(looks), size=(2, 3, 4, 5))
    video = np.stack([board.render(one, looks, 16, 20) for one in states]).astype(int)
    video[:, 1:] += rng.integers(-60, 60, video[:, 1:].shape)  # only later frames are off
    video = np.clip(video, 0, 255).astype(np.uint8)
    for plain, told in zip(
        board.read(video, looks, 4, 5), board.read(video, looks, 4, 5, start=states[:, 0]), strict=True
    ):
        np.testing.assert_array_equal(plain, told)


def test_each_video_of_a_batch_has_its_own_colours():
    looks = ROOMS["sokoban"].LOOKS
    states = np.random.default_rng(1).integers(len(looks), size=(3, 2, 5, 5))
    videos = np.stack([board.render(one, looks, 100, 100) for one in states])
    videos = np.clip(videos * np.array([1.0, 0.7, 1.25])[:, None, None, None, None], 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(board.read(videos, looks, 5, 5, start=states[:, 0])[0], states)


def test_the_map_is_bounded():
    drawn = np.random.default_rng(0).choice([40.0, 128.0, 210.0], (200, 3))
    assert calibrate(drawn, drawn) is None
    assert calibrate(255 - drawn, drawn) is None  # a negative is no camera's
    assert calibrate(np.roll(drawn, 1, axis=0), drawn) is None  # another board is no colour shift
    assert calibrate(0.3 * drawn, drawn) is None
    found = calibrate(0.7 * drawn + np.array([5.0, 10.0, -5.0]), drawn)
    assert found is not None
    np.testing.assert_allclose(found.gain, 0.7, atol=0.02)
    np.testing.assert_allclose(found.offset, [5, 10, -5], atol=2)


def test_the_dark_hides_no_colour():
    """All colours come nearer to each other in a dark video, and so does the bound beyond which a cell is no look."""
    looks = ROOMS["maze"].LOOKS.copy()
    states = np.random.default_rng(0).integers(4, size=(2, 6, 6))
    states[1, 2, 3] = ROOMS["maze"].render.AGENT
    other = looks.copy()
    other[ROOMS["maze"].render.AGENT, 1] = (40, 210, 210)  # 61 levels from the agent
    frames = np.concatenate([board.render(states[:1], looks, 120, 120), board.render(states[1:], other, 120, 120)])
    for gain in (1.0, 0.67):
        dark = (frames * gain).astype(np.uint8)
        labels, _ = board.read(dark, ROOMS["maze"].LOOKS, 6, 6, start=states[0])
        np.testing.assert_array_equal(labels[0], states[0])
        assert labels[1, 2, 3] == board.UNREADABLE


def test_without_contrast_a_shift_is_an_offset():
    found = calibrate(np.full((50, 3), 110.0), np.full((50, 3), 100.0))
    assert found is not None
    np.testing.assert_allclose(found.gain, 1)
    np.testing.assert_allclose(found.offset, 10)
