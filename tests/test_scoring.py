"""Advantages, rewards, and what a verifier's crash does."""

import threading
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import planned_latents, rng, tiny_codec, tiny_config, tiny_prompts

from vrlvr import config as configuration
from vrlvr import scoring
from vrlvr.config import reward_weights
from vrlvr.puzzles import board, read_many
from vrlvr.scoring import Scorer, group_advantages, score, score_scalars, shuffled

rewards = st.integers(2, 12).flatmap(
    lambda group: st.lists(st.lists(st.floats(-1, 1), min_size=group, max_size=group), min_size=1, max_size=5)
)


@given(rows=rewards, eps=st.floats(1e-3, 1))
def test_advantages_are_centred_ordered_and_bounded(rows: list[list[float]], eps: float) -> None:
    reward_PG = torch.tensor(rows, dtype=torch.float64)
    advantage_PG = group_advantages(reward_PG, eps)
    torch.testing.assert_close(advantage_PG.mean(1), torch.zeros(len(rows), dtype=torch.float64), rtol=0, atol=1e-12)
    assert (advantage_PG.std(1, correction=0) < 1).all()
    expected = (reward_PG - reward_PG.mean(1, keepdim=True)) / (reward_PG.std(1, correction=0, keepdim=True) + eps)
    torch.testing.assert_close(advantage_PG, expected, rtol=0, atol=1e-12)


@given(value=st.floats(-1, 1), group=st.integers(2, 16), eps=st.sampled_from([0.0, 0.05]))
def test_a_group_without_spread_has_advantages_of_exactly_zero(value: float, group: int, eps: float) -> None:
    reward_PG = torch.full((2, group), value, dtype=torch.float64)
    assert group_advantages(reward_PG, eps).tolist() == [[0.0] * group] * 2


def test_groups_do_not_mix() -> None:
    reward_PG = torch.tensor([[0.0, 1.0], [10.0, 11.0]], dtype=torch.float64)
    assert group_advantages(reward_PG, 0.0).tolist() == [[-1.0, 1.0], [-1.0, 1.0]]


def test_the_control_deals_the_same_advantages_to_other_samples() -> None:
    advantage_PG = torch.arange(32, dtype=torch.float64).view(4, 8)
    dealt_PG = shuffled(advantage_PG, rng())
    assert dealt_PG.shape == (4, 8)
    assert dealt_PG.flatten().sort().values.tolist() == advantage_PG.flatten().tolist()
    assert (dealt_PG != advantage_PG).sum() > 24


def test_the_planners_videos_earn_everything_and_standing_still_nothing_for_solving() -> None:
    config = tiny_config()
    codec = tiny_codec(config)
    prompts = tiny_prompts(config, codec, 6)
    solved = planned_latents(prompts, config, codec)
    still = prompts.first_BC1HW
    videos = torch.stack([solved, still], dim=1).flatten(0, 1)  # puzzle-major, a group of two
    for reward in ("dense", "sparse"):
        config.grpo.reward = reward
        scores = score(prompts, torch.arange(12) // 2, videos, codec, reward_weights(config))
        assert [v.solved for v in scores.verdicts] == [True, False] * 6
        torch.testing.assert_close(
            scores.reward_B, torch.tensor([1.0, 0.0] * 6, dtype=torch.float64), rtol=0, atol=1e-3
        )
    scalars = score_scalars(scores)
    assert np.mean(scalars["reward"]) == np.mean(scalars["success"]) == 0.5
    assert scalars["success_maze"] == [1.0, 0.0] * 2
    assert scalars["component_flowfree_filled"] == [1.0, 0.0] * 2


def test_the_last_word_on_what_is_shown_is_what_is_judged() -> None:
    config = tiny_config()
    codec = tiny_codec(config)
    prompts = tiny_prompts(config, codec, 3)
    latents, asked = planned_latents(prompts, config, codec), list[Any]()

    def reread(puzzles, readings, first, given):
        asked.append((puzzles, readings, first, given))
        unreadable = np.full_like(readings[0].labels_TRK, board.UNREADABLE)
        return [readings[0]._replace(labels_TRK=unreadable), *readings[1:]]

    scores = score(prompts, torch.arange(3), latents, codec, reward_weights(config), reread=reread)
    assert [verdict.solved for verdict in scores.verdicts] == [False, True, True]
    assert scores.verdicts[0].broken_rule == "unreadable_cell"
    assert scores.reward_B[0] < scores.reward_B[1]
    ((puzzles, readings, first, given),) = asked
    assert puzzles == list(prompts.puzzles)
    shown = read_many(puzzles, codec.decode(first, given))
    for ours, theirs in zip(readings, shown, strict=True):
        np.testing.assert_array_equal(ours.labels_TRK, theirs.labels_TRK)
    assert torch.equal(first, prompts.first_BC1HW)
    assert given is latents


def test_sparse_pays_for_nothing_but_success() -> None:
    config = configuration.Config()
    config.grpo.reward = "sparse"
    assert reward_weights(config) == {task: {"solved": 1.0} for task in ("maze", "flowfree", "sokoban")}


def test_a_verifiers_crash_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    config = tiny_config()
    codec = tiny_codec(config)
    prompts = tiny_prompts(config, codec, 3)
    monkeypatch.setattr(scoring, "read_many", crash)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        score(prompts, torch.arange(3), planned_latents(prompts, config, codec), codec, reward_weights(config))


def test_parts_are_scored_in_the_background_as_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config()
    codec = tiny_codec(config)
    prompts = tiny_prompts(config, codec, 6)
    videos = torch.stack([planned_latents(prompts, config, codec), prompts.first_BC1HW], dim=1).flatten(0, 1)
    puzzle_B, weights = torch.arange(12) // 2, reward_weights(config)
    whole = score(prompts, puzzle_B, videos, codec, weights)

    monkeypatch.setattr(scoring, "_PIECE_BYTES", 3 * 16 * 20 * 3)  # a few videos a thread
    judging: list[int] = []

    def watched(*arguments: Any) -> Any:
        judging.append(threading.get_ident())
        return read_many(*arguments)

    monkeypatch.setattr(scoring, "read_many", watched)
    scorer = Scorer(codec, weights, None, torch.device("cpu"))
    for _ in range(2):  # as in two updates
        for start, stop in ((0, 4), (4, 5), (5, 6)):
            samples = slice(2 * start, 2 * stop)
            scorer.submit(prompts.part(slice(start, stop)), puzzle_B[samples] - start, videos[samples], more=stop < 6)
        scores = scorer.collect()
        assert scores.puzzles == whole.puzzles
        assert scores.verdicts == whole.verdicts
        assert torch.equal(scores.reward_B, whole.reward_B)
    assert threading.get_ident() not in judging
    assert len(judging) == 24  # each video by itself


def test_a_crash_in_the_background_comes_out(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config()
    codec = tiny_codec(config)
    prompts = tiny_prompts(config, codec, 2)
    latents = planned_latents(prompts, config, codec)
    scorer = Scorer(codec, {}, None, torch.device("cpu"))
    scorer.submit(prompts.part(slice(0, 1)), torch.zeros(1, dtype=torch.int64), latents[:1], more=True)
    with pytest.raises(KeyError):
        scorer.collect()
