"""The corpus: attacks are none of them solutions, honest videos all are; the first verifier on a sample of both."""

from functools import cache

import numpy as np
import pytest

from vrlvr.evaluation.corpus import SCENES, attacks, honest, puzzle_of
from vrlvr.evaluation.corpus.making import of_states
from vrlvr.evaluation.corpus.plays import PLAYS
from vrlvr.evaluation.corpus.recordings import hue_matrix
from vrlvr.evaluation.corpus.rules import solves
from vrlvr.evaluation.corpus.scene import plan, timed
from vrlvr.puzzles import DENSE_REWARD, ROOMS, verify, verify_many
from vrlvr.puzzles.verdict import Verdict, reward

MAKERS = {"attacks": attacks, "honest": honest}
every_task = pytest.mark.parametrize("task", ROOMS)


@cache
def judged(size: str, kind: str, task: str, seeds: range) -> dict[tuple[str, int], Verdict]:
    scene = SCENES[size]
    verdicts = {}
    for number, (name, make) in enumerate(MAKERS[kind](task).items()):
        for seed in seeds:
            puzzle = puzzle_of(task, size, seed)
            video = make(puzzle, scene, np.random.default_rng([seed, number]))
            assert video.dtype == np.uint8
            assert video.ndim == 4
            verdicts[name, seed] = verify_many([puzzle], video[None], (scene.height, scene.width))[0]
    return verdicts


@every_task
def test_there_are_enough_of_both(task):
    assert len(attacks(task)) >= 20
    assert len(honest(task)) >= 20
    assert all(make.__doc__ for make in (attacks(task) | honest(task)).values())


@every_task
@pytest.mark.parametrize(("size", "seeds"), [("tiny", range(2)), ("small", range(1))])
def test_no_attack_is_solved(task, size, seeds):
    assert [key for key, verdict in judged(size, "attacks", task, seeds).items() if verdict.solved] == []


@every_task
@pytest.mark.parametrize(("size", "seeds"), [("tiny", range(2)), ("small", range(1))])
def test_no_honest_video_is_refused(task, size, seeds):
    refused = {key: v.broken_rule for key, v in judged(size, "honest", task, seeds).items() if not v.solved}
    assert refused == {}


@every_task
@pytest.mark.parametrize("size", ["tiny", "small"])
def test_static_and_noise_earn_nothing(task, size):
    verdicts = judged(size, "attacks", task, range(2 if size == "tiny" else 1))
    for (name, _), verdict in verdicts.items():
        if name in ("static", "noise", "text_overlay", "thumbnail"):
            assert reward(verdict, DENSE_REWARD[task]) <= 0, name


@every_task
def test_a_maker_is_a_function_of_its_arguments(task):
    scene, puzzle = SCENES["tiny"], puzzle_of(task, "tiny", 1)
    for name, make in (attacks(task) | honest(task)).items():
        first, again = (make(puzzle, scene, np.random.default_rng(5)) for _ in range(2))
        assert np.array_equal(first, again), name


@every_task
def test_the_rules_know_solutions_from_attacks(task):
    """On states: every play solves, and no state of it may be left out, moved or changed."""
    scene = SCENES["small"]
    for seed in range(3):
        puzzle, rng = puzzle_of(task, "small", seed), np.random.default_rng(seed)
        for play in PLAYS:
            assert solves(puzzle, play(puzzle, scene, rng)), play.__name__
        states = plan(puzzle)
        assert solves(puzzle, states)
        assert not solves(puzzle, states[:-1])
        assert not solves(puzzle, states[1:])
        assert not solves(puzzle, states[::-1])
        assert not any(solves(puzzle, np.delete(states, i, axis=0)) for i in range(len(states)))


@every_task
def test_attacks_that_solve_are_drawn_anew(task):
    puzzle, scene = puzzle_of(task, "tiny", 0), SCENES["tiny"]
    solution = timed(plan(puzzle), scene)

    def lazy(puzzle, scene, rng):
        return solution if rng.random() < 0.8 else np.repeat(solution[:1], 5, axis=0)

    assert not verify(puzzle, of_states(lazy)(puzzle, scene, np.random.default_rng(0))).solved
    with pytest.raises(ValueError, match="<lambda> solved the puzzle in 100 draws"):
        of_states(lambda *_: solution)(puzzle, scene, np.random.default_rng(0))


def test_hue_turns_about_grey():
    matrix = hue_matrix(np.deg2rad(40))
    np.testing.assert_allclose(matrix @ np.ones(3), np.ones(3))
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(hue_matrix(2 * np.pi / 3) @ [1, 0, 0], [0, 1, 0], atol=1e-12)  # red becomes green
