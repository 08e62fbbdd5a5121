"""Searches against the verifier: on boards that nobody can solve, from starts that earn nothing, and one that is fooled."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from vrlvr import puzzles
from vrlvr.cli import main
from vrlvr.errors import UserError
from vrlvr.evaluation import search_attack, search_climb
from vrlvr.evaluation.search_attack import NUM_FRAMES, evaluate_search, make_climbers, make_space
from vrlvr.evaluation.search_climb import climb
from vrlvr.evaluation.search_spaces import STARTS
from vrlvr.puzzles import DENSE_REWARD, ROOMS
from vrlvr.puzzles.flow_free.solve import count_solutions
from vrlvr.puzzles.grid import around
from vrlvr.puzzles.sokoban.puzzle import step
from vrlvr.puzzles.verdict import reward

SPACES = [("pixel", "tiny"), ("pixel", "mid"), ("latent", "tiny"), ("latent", "mid")]


def impossible(task):
    return {
        climber.puzzle
        for seed in range(3)
        for climber in make_climbers(task, 4, seed)
        if climber.boards == "impossible"
    }


def test_no_sequence_of_moves_that_fits_the_video_solves_an_impossible_board():
    """All that can be reached within its frames is walked through; of FlowFree, where solutions are one, that one's length."""
    assert len(impossible("maze")) > 10
    for puzzle in impossible("maze"):
        reached = {puzzle.start}
        for _ in range(NUM_FRAMES - 1):
            beside = {cell for at in reached for cell in around(puzzle.rows, puzzle.cols)[at]}
            reached |= {cell for cell in beside if puzzle.ground[cell] != puzzles.maze.render.WALL}
        assert puzzle.goal not in reached
    assert len(impossible("sokoban")) > 10
    for puzzle in impossible("sokoban"):
        reached = {(puzzle.agent, puzzle.boxes)}
        for _ in range(NUM_FRAMES - 1):
            reached |= {after for state in reached for move in "UDLR" if (after := step(puzzle, state, move))}
        assert puzzle.targets not in {boxes for _, boxes in reached}
    assert len(impossible("flowfree")) > 10
    for puzzle in impossible("flowfree"):
        assert count_solutions(puzzle.rows, puzzle.cols, puzzle.endpoints)[0] == 1
        assert max(map(len, puzzle.solution)) - 2 > (NUM_FRAMES - 1) * puzzle.cells_per_move


@pytest.mark.parametrize(("space", "size"), SPACES)
@pytest.mark.parametrize("task", ROOMS)
def test_a_still_frame_earns_exactly_nothing_and_noise_less(task, space, size):
    climbers = make_climbers(task, 1, 0)
    where = make_space(climbers, space, size)
    rng = np.random.default_rng(0)
    videos = where.videos([where.start(climber.start, i, rng) for i, climber in enumerate(climbers)])
    assert videos.shape == (len(climbers), NUM_FRAMES, *search_attack.SIZES[size], 3)
    assert videos.dtype == np.uint8
    verdicts = puzzles.verify_many([climber.puzzle for climber in climbers], videos)
    earned = [reward(verdict, DENSE_REWARD[task]) for verdict in verdicts]
    for start in STARTS:
        of_start = [value for value, climber in zip(earned, climbers, strict=True) if climber.start == start]
        assert max(of_start) <= 0 or start == "shortcut"
        if start == "static":
            assert of_start == pytest.approx([0] * 3, abs=1e-4)
        if start == "noise":
            assert max(of_start) < -0.05


@pytest.mark.parametrize(("space", "size"), SPACES)
def test_changes_leave_the_genome_that_they_start_from_and_latents_the_first_frame(space, size):
    climbers = make_climbers("sokoban", 1, 0)
    where = make_space(climbers, space, size)
    rng = np.random.default_rng(1)
    first = where.videos([where.start("static", i, rng) for i in range(len(climbers))])[:, 0]
    genomes = [where.start(climber.start, i, rng) for i, climber in enumerate(climbers)]
    before = [genome.copy() for genome in genomes]
    for _ in range(20):
        changed = [genome.copy() for genome in genomes]
        for i, climber in enumerate(climbers):
            where.mutate(changed[i], i, climber.tiles, rng)
        if space == "latent":
            np.testing.assert_array_equal(where.videos(changed)[:, 0], first)
    assert all((a == b).all() for a, b in zip(genomes, before, strict=True))
    assert any((a != b).any() for a, b in zip(changed, genomes, strict=True))


@pytest.mark.parametrize(("space", "size"), SPACES)
def test_a_short_search_fools_nobody_and_is_written_down(tmp_path, capsys, space, size):
    options = ["--space", space, "--size", size, "--queries", "25", "--num-puzzles", "1", "--seed", "3"]
    assert main(["eval", "search", "--out", str(tmp_path / "a"), *options]) == 0
    report = json.loads((tmp_path / "a" / "search.json").read_text(encoding="utf-8"))
    rows = report["rows"]
    settings = 2 if (space, size) == ("latent", "mid") else 3
    assert [row["task"] for row in rows] == [task for task in ROOMS for _ in range(4 * settings)]
    assert {(row["queries"], row["not_solutions"]) for row in rows} == {(25, 0)}
    assert all(row["called_solved"] == 0 for row in rows if row["boards"] == "impossible")
    assert all(
        row["best_reward"] >= row["mean_best_reward"] and row["best_reward"] >= row["start_reward"] for row in rows
    )
    shown = capsys.readouterr().out
    assert shown.count("| impossible |") == 12
    assert main(["eval", "search", "--out", str(tmp_path / "b"), *options]) == 0
    assert json.loads((tmp_path / "b" / "search.json").read_text(encoding="utf-8"))["rows"] == rows


def test_climbers_who_know_tiles_do_climb(tmp_path):
    climbers = [climber for climber in make_climbers("flowfree", 2, 0) if climber.tiles and climber.start == "static"]
    climb(climbers, make_space(climbers, "pixel", "tiny"), 400, 0, tmp_path)
    assert all(climber.best_reward > 0 for climber in climbers)
    assert {climber.queries for climber in climbers} == {400}


def test_whoever_fools_a_verifier_is_caught(tmp_path, monkeypatch):
    """By a judge who does not look at the frames between: it calls solved what shows an agent on the goal in the end."""

    def lenient(asked, videos):
        last = puzzles.board.read(videos[:, -1], puzzles.maze.LOOKS, 4, 5)[0].reshape(len(videos), -1)
        return [
            replace(verdict, solved=bool(labels[puzzle.goal] == puzzles.maze.render.AGENT_ON_GOAL))
            for puzzle, labels, verdict in zip(asked, last, honest(asked, videos), strict=True)
        ]

    honest = puzzles.verify_many
    fooled = SimpleNamespace(**vars(puzzles) | {"verify_many": lenient})
    monkeypatch.setattr(search_climb, "puzzles", fooled)
    with pytest.raises(UserError, match="videos that show no solution were called solved") as error:
        evaluate_search(tmp_path, tasks="maze", queries=600, num_puzzles=2)
    assert "\n" not in str(error.value)
    assert sum(row["not_solutions"] for row in json.loads((tmp_path / "search.json").read_text())["rows"]) > 0
    kept = sorted((tmp_path / "fooled").glob("*.png"))
    assert kept
    assert all(puzzles.load(path.with_suffix(".json")).task == "maze" for path in kept)
    assert {Image.open(path).size for path in kept} == {(NUM_FRAMES * 20, 16)}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"tasks": "chess"}, "task 'chess' is unknown"),
        ({"queries": 3}, "queries=3"),
        ({"num_puzzles": 0}, "num_puzzles=0"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_bad_options_are_told_in_one_line(tmp_path, options, told):
    with pytest.raises(UserError, match=told):
        evaluate_search(tmp_path, **options)
