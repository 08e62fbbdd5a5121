"""Spoiled videos and perturbed latents: what they change and what they leave."""

import numpy as np
import pytest
import torch

from vrlvr import imperfect
from vrlvr.dataset import Recipe
from vrlvr.puzzles import ROOMS, render, verify

RECIPE = Recipe(0, 0, 0, 16, 20, 5, 1, tuple(ROOMS), {task: room.Difficulty() for task, room in ROOMS.items()})
STATES = np.arange(5 * 3 * 4).reshape(5, 3, 4) % 5


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("spoil", imperfect.SPOILS, ids=lambda spoil: spoil.__name__)
def test_spoils_are_of_the_same_board_and_differ(spoil):
    before = STATES.copy()
    results = [spoil(STATES, 5, rng(seed)) for seed in range(40)]
    np.testing.assert_array_equal(STATES, before)
    assert all(result.shape == STATES.shape and result.min() >= 0 and result.max() < 5 for result in results)
    assert sum(not np.array_equal(result, STATES) for result in results) >= 20
    assert len({result.tobytes() for result in results}) >= 5


@pytest.mark.parametrize("seed", range(20))
def test_what_spoils_do(seed):
    frames = imperfect.reorder(STATES, 5, rng(seed))
    assert sorted(frame.tobytes() for frame in frames) == sorted(frame.tobytes() for frame in STATES)
    cells = imperfect.exchange(STATES, 5, rng(seed))
    np.testing.assert_array_equal(np.sort(cells.reshape(5, -1)), np.sort(STATES.reshape(5, -1)))
    assert (imperfect.relabel(STATES, 5, rng(seed)) != STATES).any(0).sum() <= 3
    stopped = imperfect.stop(STATES, 5, rng(seed))
    moving = len(np.unique(stopped.reshape(5, -1), axis=0))
    np.testing.assert_array_equal(stopped, STATES[[*range(moving), *[moving - 1] * (5 - moving)]])


def test_scrambled_labels_are_everywhere_and_stay_at_times():
    before = STATES.copy()
    results = np.stack([imperfect.scramble(STATES, 5, rng(seed)) for seed in range(60)])
    np.testing.assert_array_equal(STATES, before)
    assert np.bincount(results.ravel(), minlength=5).min() > 0.17 * results.size
    kept = (results[:, 1:] == results[:, :-1]).mean((1, 2, 3))
    assert kept.min() < 0.4
    assert kept.max() > 0.75
    for i in range(12):
        puzzle, video = imperfect.draw_video(RECIPE, "train", i, rng(i), scrambled=1.0)
        assert not np.array_equal(video[0], render(puzzle, 16, 20, 5, 1)[0])


def test_blending_leaves_the_first_frame():
    video = rng().integers(0, 256, (4, 6, 6, 3), dtype=np.uint8)
    mixed = imperfect.blend(video, rng())
    np.testing.assert_array_equal(mixed[0], video[0])
    kept = (mixed[2].astype(float) - video[2]) @ (1.0 * video[1] - video[2]).swapaxes(-1, -2)
    assert kept.mean() > 0
    low, high = np.minimum(video[:-1], video[1:]), np.maximum(video[:-1], video[1:])
    assert ((mixed[1:] >= low) & (mixed[1:] <= high)).all()


def test_draws_are_solved_or_spoiled_and_repeat():
    drawn = [imperfect.draw_video(RECIPE, "train", i, rng(i)) for i in range(60)]
    assert [puzzle.task for puzzle, _ in drawn[:3]] == list(ROOMS)
    plain = sum(np.array_equal(video, render(puzzle, 16, 20, 5, 1)) for puzzle, video in drawn)
    solved = sum(verify(puzzle, video).solved for puzzle, video in drawn)
    assert 10 <= plain <= 40
    assert plain <= solved < 50
    np.testing.assert_array_equal(drawn[7][1], imperfect.draw_video(RECIPE, "train", 7, rng(7))[1])


def test_mixtures_lie_between_two_videos_at_some_positions():
    size = (3, 4, 5, 6)
    zero, one = torch.zeros(size), torch.ones(size)
    mixed = [imperfect.mix(zero, one, rng(seed)) for seed in range(200)]
    assert not zero.any()
    assert torch.equal(mixed[0], imperfect.mix(zero, one, rng(0)))
    shares = torch.stack(mixed)
    assert all(torch.equal(shares[:, 0], shares[:, channel]) for channel in (1, 2))  # a position is mixed as a whole
    touched = shares[:, 0] > 0
    assert 0.15 < touched.double().mean() < 0.4
    assert (touched.flatten(1).double().mean(1) < 0.1).double().mean() > 0.2
    assert shares[:, 0][touched].quantile(0.5) == pytest.approx(0.5, abs=0.05)
    lasting = [
        share for share in shares[:, 0] if all(set(p.tolist()) <= {0.0, float(p[-1])} for p in share.flatten(1).T)
    ]
    assert 0.4 < len(lasting) / 200 < 0.75
    other = torch.randn(size, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(imperfect.mix(other, zero, rng(7)), other * (1 - mixed[7]))


def test_perturbations_are_of_some_latents():
    latents = torch.randn(400, 3, 2, 5, 4, generator=torch.Generator().manual_seed(0))
    before = latents.clone()
    perturbed = imperfect.perturb(latents, rng())
    assert torch.equal(latents, before)
    assert torch.equal(perturbed, imperfect.perturb(latents, rng()))
    changed = (perturbed != latents).flatten(1).double().mean(1)
    untouched = (changed == 0).double().mean()
    assert 0.3 < untouched < 0.55
    patched_alone = ((changed > 0) & (changed < 0.9)).double().mean()
    assert 0.03 < patched_alone < 0.15
    noise = (perturbed - latents)[changed > 0.99].flatten(1).std(1)
    assert noise.quantile(0.5) < 0.3
