"""The second opinion: when it speaks, what it judges, and that it lets training be."""

import json

import numpy as np
import pytest
import torch
from tiny_run import ARGUMENTS, planned_latents, tiny_codec, tiny_config, tiny_prompts
from torch import Tensor

from vrlvr import second_opinion
from vrlvr.config import reward_weights
from vrlvr.distributed import World
from vrlvr.errors import UserError
from vrlvr.options import parse
from vrlvr.puzzles.second import SecondVerdict
from vrlvr.scoring import score
from vrlvr.second_opinion import Look, SecondOpinion, SecondOpinionConfig, drifting_apart

SAMPLES = 16


def looks(rewards: np.ndarray, rates: np.ndarray, rng: np.random.Generator) -> list[Look]:
    """A run in which an update's mean reward strays by 0.03 and the second verifier solves samples at these rates."""
    noisy = rewards + rng.normal(0, 0.03, len(rewards))
    return [Look(float(r), SAMPLES, int(rng.binomial(SAMPLES, p))) for r, p in zip(noisy, rates, strict=True)]


def warnings(run: list[Look], window: int = 40) -> int:
    """After how many looks of a run the reward and the second verifier seem to drift apart."""
    return sum(drifting_apart(run[:end], window) for end in range(1, len(run) + 1))


def test_a_reward_that_rises_while_the_second_success_falls_is_noticed() -> None:
    share = np.linspace(0, 1, 90)
    for seed in range(50):
        rng = np.random.default_rng(seed)
        assert warnings(looks(0.5 + 0.3 * share, 0.6 - 0.5 * share, rng)) > 0
        late = np.clip(2 * share - 1, 0, 1)  # honest at first
        assert warnings(looks(0.5 + 0.2 * share, 0.5 + 0.1 * share - 0.5 * late, rng)) > 0


@pytest.mark.parametrize(
    ("rewards", "rates"),
    [
        ((0.5, 0.5), (0.6, 0.6)),  # nothing learns
        ((0.5, 0.8), (0.5, 0.8)),  # both rise
        ((0.8, 0.4), (0.7, 0.3)),  # both fall: training collapses, and nobody is fooled
        ((0.5, 0.7), (0.3, 0.3)),  # the dense terms alone rise
        ((0.5, 0.5), (0.8, 0.6)),  # success falls alone
        ((0.5, 0.9), (0.9, 1.0)),
        ((0.1, 0.1), (0.0, 0.0)),
    ],
)
def test_honest_runs_are_left_alone(rewards: tuple[float, float], rates: tuple[float, float]) -> None:
    for seed in range(50):
        rng = np.random.default_rng(seed)
        assert warnings(looks(np.linspace(*rewards, 90), np.linspace(*rates, 90), rng)) == 0


class Planner:
    """Decodes as the codec does, and counts."""

    def __init__(self) -> None:
        self.config = tiny_config()
        self.codec = tiny_codec(self.config)
        self.prompts = tiny_prompts(self.config, self.codec, 6)
        self.latents_BCFHW = planned_latents(self.prompts, self.config, self.codec)

    def decode(self, first_latents_BC1HW: Tensor, latents_BCFHW: Tensor) -> np.ndarray:
        return self.codec.decode(first_latents_BC1HW, latents_BCFHW)


def asked(second: SecondOpinion, planner: Planner, update: int) -> dict[str, float]:
    """One update: six samples, decoded in two parts."""
    weights = reward_weights(planner.config)
    second.expect(update, 6)
    parts = [
        score(planner.prompts.part(rows), torch.arange(3), planner.latents_BCFHW[rows], second, weights)
        for rows in (slice(0, 3), slice(3, 6))
    ]
    verdicts = [verdict for part in parts for verdict in part.verdicts]
    return second.compare(update, planner.prompts.puzzles, verdicts, torch.cat([part.reward_B for part in parts]))


@pytest.fixture(scope="module")
def planner() -> Planner:
    return Planner()


def test_solved_samples_are_agreed_on_every_so_many_updates(planner: Planner) -> None:
    second = SecondOpinion(planner, None, SecondOpinionConfig(every=2, samples=4), 1, World(), pytest.fail)
    assert asked(second, planner, 1) == {}
    found = asked(second, planner, 2)
    assert (found["second_success"], found["second_agreement"]) == (1.0, 1.0)
    assert found["seconds_second"] > 0
    assert second.state()["looks"] == [[1.0, 4, 4]]  # every video is solved and clean
    never = SecondOpinion(planner, None, SecondOpinionConfig(every=0), 1, World(), pytest.fail)
    assert [asked(never, planner, update) for update in range(3)] == [{}, {}, {}]


def test_each_kept_video_is_judged_with_its_own_puzzle(planner: Planner, monkeypatch: pytest.MonkeyPatch) -> None:
    judged = []

    def verify(puzzle, video, size):
        judged.append(puzzle)
        assert second_opinion_of(puzzle, video, size).solved
        return SecondVerdict(len(judged) > 2, 0.0, None, None)

    second_opinion_of = second_opinion.second_verify
    monkeypatch.setattr(second_opinion, "second_verify", verify)
    second = SecondOpinion(planner, None, SecondOpinionConfig(every=1, samples=5), 1, World(), pytest.fail)
    assert asked(second, planner, 1)["second_agreement"] == 3 / 5
    assert len({id(puzzle) for puzzle in judged}) == 5
    chosen = set()
    for update in range(2, 12):
        judged.clear()
        asked(second, planner, update)
        chosen.add(tuple(planner.prompts.puzzles.index(puzzle) for puzzle in judged))
    assert len(chosen) > 3  # others in every update


def test_it_warns_once_and_a_resumed_run_goes_on_where_it_stopped(
    planner: Planner, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    config = SecondOpinionConfig(every=1, samples=6, window=20)
    second = SecondOpinion(planner, None, config, 1, World(), said.append)
    rates = np.linspace(1, 0, 40)
    for update in range(1, 41):
        rng = np.random.default_rng(update)
        monkeypatch.setattr(
            second_opinion,
            "second_verify",
            lambda *_, rate=rates[update - 1], rng=rng: SecondVerdict(rng.random() < rate, 0.0, None, None),
        )
        planned = asked(second, planner, update)  # its reward stays at 1 ...
        assert planned["second_agreement"] == planned["second_success"]
        second._looks[-1] = second._looks[-1]._replace(
            reward=update / 40 + 0.01 * rng.random()
        )  # ... but is told to rise
        kept = json.loads(json.dumps(second.state()))
        second = SecondOpinion(planner, None, config, 1, World(), said.append)
        second.load_state(kept)
        assert second.state() == kept
    assert len(said) == 1
    assert "the reward rose while the second verifier sees fewer solutions" in said[0]


@pytest.mark.parametrize("option", ["every=-1", "samples=0", "window=3"])
def test_options_are_checked(option: str) -> None:
    name, value = option.split("=")
    with pytest.raises(UserError, match=rf"grpo.second_opinion.{name}={value} must be at least"):
        SecondOpinionConfig(**{name: int(value)})
    with pytest.raises(UserError, match=name):
        parse([*ARGUMENTS, f"--grpo.second_opinion.{name}", value])
