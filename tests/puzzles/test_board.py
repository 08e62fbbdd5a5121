"""Pixels to states and back, splits, verdicts: what all rooms rest on."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vrlvr.puzzles import ROOMS, board, splits, verdict

LOOKS = {name: room.LOOKS for name, room in ROOMS.items()}


def random_states(rng: np.random.Generator, looks: np.ndarray, frames: int, rows: int, cols: int) -> np.ndarray:
    return rng.integers(len(looks), size=(frames, rows, cols))


@pytest.mark.parametrize("name", ROOMS)
@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(2, 7),
    cols=st.integers(2, 9),
    height=st.integers(28, 150),
    width=st.integers(36, 200),
    seed=st.integers(0, 2**32),
)
def test_what_is_drawn_is_read_back_exactly(name, rows, cols, height, width, seed):
    states = random_states(np.random.default_rng(seed), LOOKS[name], 2, rows, cols)
    video = board.render(states, LOOKS[name], height, width)
    assert video.shape == (2, height, width, 3)
    assert video.dtype == np.uint8
    labels, rmse = board.read(video, LOOKS[name], rows, cols)
    np.testing.assert_array_equal(labels, states)
    assert rmse.max() < 0.2  # float32 rounding of differences of large squares


@pytest.mark.parametrize("name", ["maze", "sokoban"])
@pytest.mark.parametrize("gain", [0.8, 1.2])
@pytest.mark.parametrize(("rows", "height", "width"), [(4, 16, 16), (7, 480, 832)])
def test_brightness_and_noise_do_not_change_what_is_read(name, gain, rows, height, width):
    rng = np.random.default_rng(0)
    states = random_states(rng, LOOKS[name], 3, rows, rows)
    video = board.render(states, LOOKS[name], height, width) * gain
    noisy = np.clip(video + rng.normal(0, 8, video.shape), 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(board.read(noisy, LOOKS[name], rows, rows)[0], states)


def test_looks_of_the_walking_rooms_are_far_apart_and_unsaturated():
    for name in ("maze", "sokoban"):
        looks = LOOKS[name].reshape(len(LOOKS[name]), 6).astype(float)
        distance = np.sqrt(np.square(looks[:, None] - looks[None]).mean(-1))
        assert distance[~np.eye(len(looks), dtype=bool)].min() >= 85
        assert looks.min() >= 40
        assert looks.max() <= 215


def test_rmse_is_the_distance_to_the_nearest_look():
    looks = np.array([[[100, 100, 100]] * 2, [[200, 200, 200]] * 2], np.uint8)
    video = np.full((1, 4, 8, 3), 110, np.uint8)
    video[:, :, 4:] = 150  # 50 from either look: unreadable
    labels, rmse = board.read(video, looks, 1, 2)
    assert labels.tolist() == [[[0, board.UNREADABLE]]]
    np.testing.assert_allclose(rmse, [[[10, 50]]], atol=0.05)


@pytest.mark.parametrize("name", ROOMS)
def test_noise_is_unreadable(name):
    noise = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)
    labels, rmse = board.read(noise, LOOKS[name], 4, 4)
    assert (labels == board.UNREADABLE).all()
    assert rmse.min() > board.MAX_CELL_RMSE


def test_leading_dimensions_are_kept():
    looks = LOOKS["maze"]
    states = random_states(np.random.default_rng(0), looks, 6, 3, 5)
    video = board.render(states, looks, 20, 30)
    labels, rmse = board.read(video.reshape(2, 3, 20, 30, 3), looks, 3, 5)
    np.testing.assert_array_equal(labels.reshape(6, 3, 5), states)
    assert rmse.shape == (2, 3, 3, 5)


def test_the_board_is_centred_at_even_pixels():
    place = board.layout(2, 3, 21, 40)
    assert (place.cell, place.top, place.left) == (10, 0, 4)
    video = board.render(np.zeros((1, 2, 3), int), np.full((1, 2, 3), 200, np.uint8), 21, 40)
    assert (video[0, :20, 4:34] == 200).all()
    assert (video[0, 20] == board.BACKGROUND).all()
    assert (video[0, :, :4] == board.BACKGROUND).all()


def test_a_board_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"5x4 board in a 16x16 frame leaves 3 pixels.*use a frame of 20x16 or more"):
        board.layout(5, 4, 16, 16)


def test_hold_spreads_moves_over_frames():
    states = np.arange(3).reshape(3, 1, 1)
    assert board.hold(states, 9, 4).ravel().tolist() == [0, 1, 1, 1, 1, 2, 2, 2, 2]
    assert board.hold(states, 5, 1).ravel().tolist() == [0, 1, 2, 2, 2]
    assert board.hold(states[:1], 3, 4).ravel().tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match=r"2 moves at 4 frames a move does not fit 5 frames; use at least 9"):
        board.hold(states, 5, 4)


def test_split_shares_are_what_they_say():
    keys = [index.to_bytes(4, "little") for index in range(20_000)]
    counts = dict.fromkeys(splits.SPLITS, 0)
    for key in keys:
        counts[splits.split_of(key)] += 1
    for name, share in splits.SHARES.items():
        assert counts[name] / len(keys) == pytest.approx(share / 100, abs=0.012)  # 3.5 standard deviations


def test_generators_differ_by_seed_split_and_index():
    draws = {
        splits.rng_for(seed, split, index).integers(2**63)
        for seed in range(5)
        for split in splits.SPLITS
        for index in range(50)
    }
    assert len(draws) == 5 * len(splits.SPLITS) * 50
    assert splits.rng_for(1, "rl", 2).integers(2**63) == splits.rng_for(1, "rl", 2).integers(2**63)


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="not in tuple"):
        splits.rng_for(0, "holdout", 0)


def test_overlap_and_f1():
    assert verdict.overlap({1, 2, 3, 4}, {3, 4, 5}) == (0.5, 2 / 3)
    assert verdict.overlap(set(), {1}) == (0.0, 0.0)
    assert verdict.f1(0.5, 0.25) == pytest.approx(1 / 3)
    assert verdict.f1(0.0, 0.0) == 0.0


def test_reward_sums_the_configured_components():
    seen = verdict.Verdict(False, {"solved": 0.0, "progress": 0.5, "error": 0.25}, "teleport", 3, 0.0, 0.0)
    assert verdict.reward(seen, {"solved": 1.0, "progress": 0.4, "error": -0.2}) == pytest.approx(0.15)
    assert verdict.reward(seen, {"solved": 1.0}) == 0.0
    with pytest.raises(KeyError, match="filled"):
        verdict.reward(seen, {"filled": 1.0})


def test_puzzles_import_no_framework():
    """The puzzles run on workers without torch: nothing outside numpy, the standard library and themselves."""
    code = (
        "import sys; import vrlvr.puzzles; loaded = {name.split('.')[0] for name in sys.modules}; "
        "ours = {name for name in sys.modules if name.startswith('vrlvr.') and not name.startswith('vrlvr.puzzles')}; "
        "print(sorted(loaded & {'torch', 'PIL', 'av', 'scipy', 'diffusers'}), sorted(ours))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[] []"


def test_drawing_is_the_same_on_every_machine():
    states = np.arange(12).reshape(1, 3, 4) % 7
    video = board.render(states, LOOKS["sokoban"], 37, 53)
    assert hashlib.blake2b(video.tobytes(), digest_size=8).hexdigest() == "bef25e61ea1b1cd9"


@pytest.mark.parametrize("name", ROOMS)
@pytest.mark.parametrize(("rows", "cols", "shrink"), [(9, 9, 4), (7, 7, 8)])
def test_a_board_is_read_off_a_scaled_video_by_its_drawn_size(name, rows, cols, shrink):
    states = random_states(np.random.default_rng(0), LOOKS[name], 4, rows, cols)
    video = board.render(states, LOOKS[name], 480, 832)
    small = video.reshape(4, 480 // shrink, shrink, 832 // shrink, shrink, 3).mean((2, 4)).astype(np.uint8)
    np.testing.assert_array_equal(board.read(small, LOOKS[name], rows, cols, size=(480, 832))[0], states)
    assert not np.array_equal(board.read(small, LOOKS[name], rows, cols)[0], states)  # laid out anew, it lies elsewhere


def test_reading_at_its_own_size_is_reading():
    states = random_states(np.random.default_rng(0), LOOKS["maze"], 3, 5, 4)
    video = board.render(states, LOOKS["maze"], 53, 61)
    plain, sized = board.read(video, LOOKS["maze"], 5, 4), board.read(video, LOOKS["maze"], 5, 4, (53, 61))
    for own, told in zip(plain, sized, strict=True):
        np.testing.assert_array_equal(own, told)
