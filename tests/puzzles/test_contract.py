"""What every room owes: the planner's video scores 1, attacks score 0, and no trick with frames ever pays."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vrlvr.puzzles import (
    ROOMS,
    board,
    flow_free,
    generate,
    load,
    maze,
    render,
    render_first_frame,
    render_states,
    room_of,
    save,
    sokoban,
    verify,
    verify_many,
)
from vrlvr.puzzles.splits import SPLITS
from vrlvr.puzzles.verdict import Verdict, reward
from vrlvr.video_io import grid, read_mp4, write_mp4


@dataclass(frozen=True)
class Case:
    """A task at a size: how hard, how large in pixels, how long."""

    task: str
    difficulty: Any
    height: int
    width: int
    num_frames: int
    frames_per_move: int

    def __str__(self) -> str:
        return f"{self.task}-{self.height}x{self.width}x{self.num_frames}"


TINY = [Case(task, room.Difficulty(), 16, 20, 5, 1) for task, room in ROOMS.items()]
FULL_DIFFICULTIES = {
    "maze": maze.Difficulty(7, 13, 8, 20),
    "flowfree": flow_free.Difficulty(
        7, 7, mixes=((7, 12),), max_moves=20, cells_per_move=1, alongside=0.1, unique_cells=0
    ),
    "sokoban": sokoban.Difficulty(7, 7, 2, 8, 20, 3),
}
FULL = [Case(task, difficulty, 480, 832, 81, 4) for task, difficulty in FULL_DIFFICULTIES.items()]
tiny = pytest.mark.parametrize("case", TINY, ids=str)
both = pytest.mark.parametrize("case", TINY + FULL, ids=str)


@lru_cache(maxsize=4096)
def puzzle_of(case: Case, index: int, split: str = "test") -> Any:
    return generate(case.task, case.difficulty, 7, split, index)


@lru_cache(maxsize=len(ROOMS) + 1)  # of full videos, 97 MB each
def oracle(case: Case, puzzle: Any) -> np.ndarray:
    video = render(puzzle, case.height, case.width, case.num_frames, case.frames_per_move)
    video.flags.writeable = False
    return video


def states_of(case: Case, puzzle: Any) -> np.ndarray:
    """The planner's labels in every frame (T, R, K)."""
    return board.hold(room_of(puzzle).states(puzzle, puzzle.solution), case.num_frames, case.frames_per_move)


def show(case: Case, puzzle: Any, states: np.ndarray) -> np.ndarray:
    return render_states(puzzle, states, case.height, case.width)


def noise(case: Case, frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, case.height, case.width, 3), dtype=np.uint8)


def gains(verdict: Verdict) -> dict[str, float]:
    """The components that a video is paid for."""
    return {name: value for name, value in verdict.components.items() if name != "error"}


def dense(verdict: Verdict) -> float:
    return reward(verdict, {name: -0.2 if name == "error" else 1.0 for name in verdict.components})


def assert_oracle(verdict: Verdict) -> None:
    assert verdict.solved
    assert (verdict.broken_rule, verdict.frame) == (None, None)
    assert (verdict.precision, verdict.recall, verdict.f1) == (1.0, 1.0, 1.0)
    assert set(gains(verdict).values()) == {1.0}
    assert verdict.components["error"] == pytest.approx(0, abs=1e-3)


@tiny
def test_the_oracle_scores_everything_on_a_thousand_instances(case):
    puzzles = [puzzle_of(case, index) for index in range(1000)]
    for verdict in verify_many(puzzles, np.stack([oracle(case, puzzle) for puzzle in puzzles])):
        assert_oracle(verdict)


@tiny
def test_the_oracle_solves_a_thousand_instances_after_h264(case, tmp_path):
    """Drawn with 16 pixels a cell, as chroma is stored at half the size, and 100 of them side by side in a video."""
    height, width, columns, gap = 64, 80, 10, 16
    for first in range(0, 1000, 100):
        puzzles = [puzzle_of(case, index) for index in range(first, first + 100)]
        videos = np.stack([render(puzzle, height, width, case.num_frames, 1) for puzzle in puzzles])
        write_mp4(tmp_path / "sheet.mp4", grid(videos, columns, gap), fps=16)
        sheet = read_mp4(tmp_path / "sheet.mp4")
        corners = [(gap + i // columns * (height + gap), gap + i % columns * (width + gap)) for i in range(100)]
        decoded = np.stack([sheet[:, top : top + height, left : left + width] for top, left in corners])
        for verdict in verify_many(puzzles, decoded):
            assert verdict.solved
            assert verdict.f1 == 1
            assert set(gains(verdict).values()) == {1.0}
            assert 0 < verdict.components["error"] < 0.2


@pytest.mark.parametrize("case", FULL, ids=str)
def test_the_oracle_scores_everything_at_full_size(case):
    for index in range(3):
        assert_oracle(verify(puzzle_of(case, index), oracle(case, puzzle_of(case, index))))


@pytest.mark.parametrize("case", FULL, ids=str)
def test_the_oracle_scores_everything_after_h264(case, tmp_path):
    puzzle = puzzle_of(case, 0)
    write_mp4(tmp_path / "video.mp4", oracle(case, puzzle), fps=16)
    verdict = verify(puzzle, read_mp4(tmp_path / "video.mp4"))
    assert verdict.solved
    assert verdict.f1 == 1
    assert set(gains(verdict).values()) == {1.0}
    assert verdict.components["error"] < 0.2


@both
def test_components_are_those_announced_and_within_bounds(case):
    puzzle = puzzle_of(case, 0)
    for video in (oracle(case, puzzle), noise(case, 2), oracle(case, puzzle)[:1]):
        verdict = verify(puzzle, video)
        assert tuple(verdict.components) == ROOMS[case.task].COMPONENTS
        assert all(0 <= value <= 1 for value in verdict.components.values())
        assert "error" in verdict.components
        assert verdict.components["solved"] == float(verdict.solved)


@tiny
def test_many_verdicts_are_the_same_as_single_ones(case):
    puzzles = [puzzle_of(case, index) for index in range(3)]
    videos = np.stack([oracle(case, puzzle) for puzzle in puzzles])
    videos[1, -1] = videos[1, 0]
    assert verify_many(puzzles, videos) == [verify(*pair) for pair in zip(puzzles, videos, strict=True)]


def test_tasks_are_told_apart_in_one_batch():
    puzzles = [puzzle_of(case, index) for index in range(2) for case in TINY]
    videos = np.stack([oracle(case, puzzle_of(case, index)) for index in range(2) for case in TINY])
    assert all(verdict.solved for verdict in verify_many(puzzles, videos))
    assert not any(verdict.solved for verdict in verify_many(puzzles, np.roll(videos, 1, axis=0)))


@both
def test_the_same_seed_gives_the_same_bytes(case):
    puzzle = puzzle_of(case, 0)
    again = generate(case.task, case.difficulty, 7, "test", 0)
    assert again == puzzle
    assert hash(again) == hash(puzzle)
    assert states_of(case, again).tobytes() == states_of(case, puzzle).tobytes()
    others = {generate(case.task, case.difficulty, seed, "test", 0) for seed in range(5)}
    assert len(others) > 1


@tiny
def test_splits_share_no_puzzle_not_even_mirrored(case):
    keys = {
        split: {ROOMS[case.task].canonical(puzzle_of(case, index, split)) for index in range(150)} for split in SPLITS
    }
    assert len(set().union(*keys.values())) == sum(map(len, keys.values()))


@both
def test_the_generator_only_returns_what_was_accepted(case):
    asked: list[bytes] = []

    def accept(key: bytes) -> bool:
        asked.append(key)
        return len(asked) > 3

    room = ROOMS[case.task]
    puzzle = room.generate(case.difficulty, np.random.default_rng(0), accept)
    assert room.canonical(puzzle) == asked[-1]
    assert len(asked) > 3


@both
def test_plans_fit_the_video_and_are_what_the_planner_finds(case):
    for index in range(5):
        puzzle = puzzle_of(case, index)
        room = room_of(puzzle)
        states = room.states(puzzle, puzzle.solution)
        assert states.dtype == np.int8
        assert states.shape[1:] == (puzzle.rows, puzzle.cols)
        assert 1 <= len(states) - 1 <= (case.num_frames - 1) // case.frames_per_move
        assert (states >= 0).all()
        assert (states < len(room.LOOKS)).all()
        assert (states[1:] != states[:-1]).any((1, 2)).all()  # every move shows
        found = board.hold(room.states(puzzle, room.solve(puzzle)), case.num_frames, case.frames_per_move)
        assert room.judge(puzzle, found.astype(np.int16), np.zeros(found.shape, np.float32)).solved


@both
def test_json_round_trip(case, tmp_path):
    for index in range(3):
        puzzle = puzzle_of(case, index)
        save(puzzle, tmp_path / "puzzle.json")
        assert load(tmp_path / "puzzle.json") == puzzle
        assert puzzle.to_json()["task"] == case.task == puzzle.task


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "Expecting value"),
        ("[]", "it is a list, a puzzle is an object"),
        ("{}", "it has no 'task'"),
        ('{"task": "chess"}', "task 'chess' is unknown; known are maze"),
        ('{"task": ["maze"]}', "is unknown"),
        ('{"task": "maze"}', "it has no 'board'"),
        ("\x00", "Expecting value"),
        ("[" * 100_000, "recursion"),
        (" " * (1 << 20) + "{}", "larger than 1048576 bytes"),
    ],
)
def test_a_file_that_is_no_puzzle_is_refused_with_one_line(text, why, tmp_path):
    path = tmp_path / "puzzle.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"puzzle.json is no puzzle file \(.*{why}.*\); use one written by") as error:
        load(path)
    assert "\n" not in str(error.value)


ODD = [
    None,
    True,
    1.5,
    -1,
    10**30,
    "",
    "x",
    "\ud800",
    "U" * 100_000,
    [],
    [None],
    [[]],
    [[-1]],
    ["#", "#"],
    ["#"] * 300,
    {},
]


@pytest.mark.parametrize("case", TINY, ids=str)
def test_no_puzzle_file_whatever_it_holds_ends_in_anything_but_one_line(case, tmp_path):
    path, whole = tmp_path / "puzzle.json", puzzle_of(case, 0).to_json()
    for key in whole:
        for changed in [{k: v for k, v in whole.items() if k != key}] + [whole | {key: odd} for odd in ODD]:
            path.write_text(json.dumps(changed), encoding="utf-8")
            with pytest.raises(ValueError, match="is no puzzle file") as error:
                load(path)
            assert "\n" not in str(error.value)
            assert len(str(error.value)) < len(str(path)) + 300


@both
def test_the_prompt_names_no_solution(case):
    puzzle, other = puzzle_of(case, 0), puzzle_of(case, 1)
    room = room_of(puzzle)
    assert len(room.prompt(puzzle)) > 40
    assert room.prompt(replace(puzzle, solution=other.solution)) == room.prompt(puzzle)


@both
def test_the_first_frame_shows_the_puzzle_alone(case):
    puzzle = puzzle_of(case, 0)
    first = render_first_frame(puzzle, case.height, case.width)
    np.testing.assert_array_equal(first, oracle(case, puzzle)[0])
    start = room_of(puzzle).states(puzzle, puzzle.solution)[0]
    labels, _ = board.read(first, room_of(puzzle).LOOKS, puzzle.rows, puzzle.cols)
    np.testing.assert_array_equal(labels, start)


# Attacks that make sense in every room: (the attack on the planner's frames, {task: rule} or one rule, its frame).
Attack = Callable[[Case, Any], np.ndarray]


def frozen(case: Case, puzzle: Any) -> np.ndarray:
    return show(case, puzzle, np.repeat(states_of(case, puzzle)[:1], case.num_frames, axis=0))


def only_noise(case: Case, puzzle: Any) -> np.ndarray:
    return noise(case, case.num_frames)


def one_frame_of_noise(case: Case, puzzle: Any) -> np.ndarray:
    video = oracle(case, puzzle).copy()
    video[2] = noise(case, 1)[0]
    return video


def black(case: Case, puzzle: Any) -> np.ndarray:
    return np.zeros_like(oracle(case, puzzle))


def only_the_last_frame_right(case: Case, puzzle: Any) -> np.ndarray:
    states = states_of(case, puzzle).copy()
    states[:-1] = states[0]
    return show(case, puzzle, states)


def solved_from_the_start(case: Case, puzzle: Any) -> np.ndarray:
    return show(case, puzzle, np.repeat(states_of(case, puzzle)[-1:], case.num_frames, axis=0))


def backwards(case: Case, puzzle: Any) -> np.ndarray:
    return oracle(case, puzzle)[::-1]


def solved_then_left(case: Case, puzzle: Any) -> np.ndarray:
    moves = ROOMS[case.task].states(puzzle, puzzle.solution)
    return show(case, puzzle, np.concatenate([states_of(case, puzzle), moves[-2:-1]]))


def too_few_frames(case: Case, puzzle: Any) -> np.ndarray:
    solved = (states_of(case, puzzle) == states_of(case, puzzle)[-1]).all((1, 2))
    return oracle(case, puzzle)[: solved.argmax()]


def another_puzzle(case: Case, puzzle: Any) -> np.ndarray:
    return oracle(case, puzzle_of(case, 101))


ATTACKS: list[tuple[Attack, str | dict[str, set[str]], int]] = [
    (frozen, "not_solved", -1),
    (only_noise, "unreadable_cell", 0),
    (one_frame_of_noise, "unreadable_cell", 2),
    # Black is near enough to a wall to be read as one.
    (black, {"maze": {"start_changed"}, "flowfree": {"unreadable_cell"}, "sokoban": {"start_changed"}}, 0),
    (
        only_the_last_frame_right,
        {"maze": {"teleport"}, "flowfree": {"grew_too_fast"}, "sokoban": {"teleport", "box_moved"}},
        -1,
    ),
    (solved_from_the_start, "start_changed", 0),
    (backwards, "start_changed", 0),
    (solved_then_left, {"maze": {"goal_left"}, "flowfree": {"cell_vanished"}, "sokoban": {"solution_left"}}, -1),
    (too_few_frames, "not_solved", -1),
    (another_puzzle, "start_changed", 0),
]


@both
@pytest.mark.parametrize(("attack", "rule", "frame"), ATTACKS, ids=[attack.__name__ for attack, _, _ in ATTACKS])
def test_attacks_stay_unsolved(case, attack, rule, frame):
    for puzzle in [puzzle_of(case, index) for index in range(40 if case in TINY else 1)]:
        video = attack(case, puzzle)
        verdict = verify(puzzle, video)
        assert not verdict.solved
        assert verdict.components["solved"] == 0
        assert verdict.broken_rule in ({rule} if isinstance(rule, str) else rule[case.task])
        assert verdict.frame == frame % len(video)


@tiny
def test_videos_that_show_no_work_earn_nothing(case):
    for attack in (frozen, only_noise, black, solved_from_the_start, backwards, another_puzzle):
        for index in range(10):
            verdict = verify(puzzle_of(case, index), attack(case, puzzle_of(case, index)))
            assert not any(gains(verdict).values()), attack.__name__


def some_video(case: Case, puzzle: Any, rng: np.random.Generator) -> np.ndarray:
    """A video between the planner's and nonsense: legal stretches, jumps, jitter, wrong cells, noise."""
    states = states_of(case, puzzle).copy()
    frames = np.sort(rng.integers(len(states), size=len(states)))
    states = states[np.where(rng.random(len(states)) < 0.7, np.arange(len(states)), frames)]
    if rng.random() < 0.9:
        states[0] = states_of(case, puzzle)[0]
    for frame in np.flatnonzero(rng.random(len(states)) < 0.1):
        states[frame].flat[rng.integers(states[frame].size)] = rng.integers(len(ROOMS[case.task].LOOKS))
    video = show(case, puzzle, states)
    for frame in np.flatnonzero(rng.random(len(states)) < 0.1):
        video[frame] = noise(case, 1, int(rng.integers(2**32)))[0]
    blurred = video + rng.normal(0, rng.uniform(0, 20), video.shape)
    return np.clip(blurred, 0, 255).astype(np.uint8)


@tiny
@settings(max_examples=150, deadline=None)
@given(index=st.integers(0, 100), seed=st.integers(0, 2**32), frame=st.integers(0, 4))
def test_a_frame_of_noise_never_pays_more(case, index, seed, frame):
    puzzle = puzzle_of(case, index)
    video = some_video(case, puzzle, np.random.default_rng(seed))
    spoiled = video.copy()
    spoiled[frame] = noise(case, 1, seed)[0]
    before, after = verify(puzzle, video), verify(puzzle, spoiled)
    assert dense(after) <= dense(before) + 1e-6
    assert all(gains(after)[name] <= value for name, value in gains(before).items())


@tiny
@settings(max_examples=150, deadline=None)
@given(index=st.integers(0, 100), seed=st.integers(0, 2**32))
def test_no_reward_is_earned_after_the_first_broken_rule(case, index, seed):
    """What a video is paid for is decided before the frame where the whole board becomes unreadable."""
    puzzle = puzzle_of(case, index)
    video = oracle(case, puzzle)
    cut = 1 + seed % (len(video) - 1)
    spoiled = np.concatenate([video[:cut], noise(case, 1, seed), video[cut:]])
    worst = np.concatenate([video[:cut], noise(case, 1 + len(video) - cut, seed)])
    assert gains(verify(puzzle, spoiled)) == gains(verify(puzzle, worst))


@both
def test_a_verifier_that_cannot_judge_raises(case):
    puzzle, room = puzzle_of(case, 0), ROOMS[case.task]
    labels = states_of(case, puzzle).astype(np.int16)
    rmse = np.zeros(labels.shape, np.float32)
    for wrong_labels, wrong_rmse in (
        (labels[:, :-1], rmse[:, :-1]),
        (labels[:, :, 1:], rmse[:, :, 1:]),
        (labels, rmse[1:]),
        (labels[0], rmse[0]),
        (labels[:0], rmse[:0]),
    ):
        with pytest.raises(ValueError, match="the puzzle's board"):
            room.judge(puzzle, wrong_labels, wrong_rmse)
    with pytest.raises(ValueError, match=r"board in a 8x8 frame leaves"):
        verify(puzzle, np.zeros((5, 8, 8, 3), np.uint8))


@pytest.mark.parametrize("case", FULL, ids=str)
def test_a_full_video_is_judged_within_60_ms(case):
    """Of processor time on one core, reading the pixels included; the fastest of five, as others may use the machine."""
    puzzle = puzzle_of(case, 0)
    video = oracle(case, puzzle)
    seconds = []
    for _ in range(5):
        began = time.process_time()
        verify(puzzle, video)
        seconds.append(time.process_time() - began)
    assert min(seconds) <= 0.060


@both
@pytest.mark.benchmark(group="verify")
def test_speed_of_verify(benchmark, case):
    """32 tiny puzzles x 8 videos, as in one update of the default run; or one full video."""
    puzzles = [
        puzzle_of(case, index)
        for index in range(256 // 8 if case in TINY else 1)
        for _ in range(8 if case in TINY else 1)
    ]
    videos = np.stack([oracle(case, puzzle) for puzzle in puzzles])
    benchmark(verify_many, puzzles, videos)
