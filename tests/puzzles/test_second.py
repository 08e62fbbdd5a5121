"""The second verifier: it agrees with the first, and sees what lies between the first one's samples."""

import ast
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from test_contract import ATTACKS, FULL, TINY, Case, both, noise, oracle, puzzle_of, some_video, states_of, tiny

from vrlvr.puzzles import ROOMS, board, render, room_of, second, verify
from vrlvr.puzzles.second import flow_free_rules, maze_rules, second_verify, sokoban_rules
from vrlvr.puzzles.second.palette import GAINS, palette_of
from vrlvr.puzzles.second.verdict import ILLEGAL_MOVE, IMPOSSIBLE_BOARD, NOT_SOLVED, START_CHANGED, UNREADABLE

RULES = {"maze": maze_rules, "flowfree": flow_free_rules, "sokoban": sokoban_rules}


@both
def test_the_planners_videos_are_solved(case: Case) -> None:
    for index in range(200 if case in TINY else 1):
        verdict = second_verify(puzzle_of(case, index), oracle(case, puzzle_of(case, index)))
        assert (verdict.solved, verdict.progress, verdict.broken_rule, verdict.frame) == (True, 1.0, None, None)


@tiny
@pytest.mark.parametrize("attack", [attack for attack, _, _ in ATTACKS], ids=lambda attack: attack.__name__)
def test_attacks_are_refused_where_the_first_verifier_refuses_them(case: Case, attack: Callable) -> None:
    for index in range(20):
        puzzle = puzzle_of(case, index)
        first, verdict = verify(puzzle, attack(case, puzzle)), second_verify(puzzle, attack(case, puzzle))
        assert not verdict.solved
        assert verdict.broken_rule in (START_CHANGED, UNREADABLE, IMPOSSIBLE_BOARD, ILLEGAL_MOVE, NOT_SOLVED)
        assert (verdict.frame, verdict.progress) == (first.frame, pytest.approx(first.components["progress"]))


@tiny
def test_both_judge_states_alike(case: Case) -> None:
    """Random edits of the planner's states, drawn exactly: what remains to differ are the rules."""
    rng, solved = np.random.default_rng(0), 0
    for index in range(600):
        puzzle = puzzle_of(case, index % 100)
        states = states_of(case, puzzle).copy()
        for _ in range(rng.integers(0, 3)):
            frame, cell = rng.integers(len(states)), rng.integers(states[0].size)
            if rng.random() < 0.5:
                states[frame] = states[rng.integers(len(states))]
            else:
                states[frame].flat[cell] = rng.integers(len(ROOMS[case.task].LOOKS))
        first = room_of(puzzle).judge(puzzle, states.astype(np.int16), np.zeros(states.shape, np.float32))
        verdict = RULES[case.task].judge(puzzle, states.astype(np.int16))
        assert (verdict.solved, verdict.frame) == (first.solved, first.frame)
        assert verdict.progress == pytest.approx(first.components["progress"])
        solved += verdict.solved
    assert 100 < solved < 500


@tiny
def test_both_agree_on_noisy_videos(case: Case) -> None:
    agreed = []
    for index in range(200):
        puzzle = puzzle_of(case, index)
        video = some_video(case, puzzle, np.random.default_rng(index))
        agreed.append(verify(puzzle, video).solved == second_verify(puzzle, video).solved)
    assert np.mean(agreed) > 0.97


@pytest.mark.parametrize("case", FULL, ids=str)
def test_what_is_painted_between_points_of_a_lattice_is_seen(case: Case) -> None:
    """Lines, 3 pixels wide, between an 8 x 8 lattice of points in one cell."""
    puzzle, place = puzzle_of(case, 0), place_of(case)
    video = oracle(case, puzzle)[:2].copy()
    assert second_verify(puzzle, video).broken_rule == NOT_SOLVED
    cell = video[1, place.top : place.top + place.cell, place.left : place.left + place.cell]
    for line in range(0, place.cell, place.cell // 8):
        cell[line : line + 3] = cell[:, line : line + 3] = (40, 215, 40)
    assert second_verify(puzzle, video).broken_rule == UNREADABLE


@pytest.mark.parametrize("case", FULL, ids=str)
def test_a_patch_of_a_quarter_of_a_cell_is_seen_wherever_it_lies(case: Case) -> None:
    """Of the agent's colour, or of a path's that is not near."""
    puzzle, place, rng = puzzle_of(case, 0), place_of(case), np.random.default_rng(0)
    labels = np.pad(states_of(case, puzzle)[1], 1)
    seen = 0
    for _ in range(40):
        side = place.cell // 4
        top, left = (int(rng.integers(place.cell * count - side)) for count in case_board(case))
        around = labels[top // place.cell : top // place.cell + 3, left // place.cell : left // place.cell + 3]
        looks = ROOMS[case.task].LOOKS
        colour = looks[-1, 1] if case.task != "flowfree" else looks[4, 0]
        if (looks[around] == colour).all(-1).any():
            continue
        video = oracle(case, puzzle)[:2].copy()
        video[1, place.top + top :, place.left + left :][:side, :side] = colour
        assert second_verify(puzzle, video).broken_rule == UNREADABLE
        seen += 1
    assert seen > 10


@pytest.mark.parametrize("case", FULL, ids=str)
def test_a_spot_of_a_colour_that_no_look_has_is_seen(case: Case) -> None:
    puzzle, place = puzzle_of(case, 0), place_of(case)
    for cell in range(puzzle.rows * puzzle.cols):
        video = oracle(case, puzzle)[:2].copy()
        top, left = (place.cell * at + place.cell * 3 // 8 for at in divmod(cell, puzzle.cols))
        video[1, place.top + top :, place.left + left :][: place.cell // 4, : place.cell // 4] = (255, 0, 128)
        assert second_verify(puzzle, video).broken_rule == UNREADABLE


def place_of(case: Case) -> board.Layout:
    return board.layout(*case_board(case), case.height, case.width)


def case_board(case: Case) -> tuple[int, int]:
    return case.difficulty.rows, case.difficulty.cols


@tiny
@pytest.mark.parametrize("gain", [0.8, 1.2])
def test_brightness_is_taken_from_the_first_frame(case: Case, gain: float) -> None:
    for index in range(20):
        puzzle = puzzle_of(case, index)
        video = np.clip(oracle(case, puzzle) * gain, 0, 255).astype(np.uint8)
        assert second_verify(puzzle, video).solved


@pytest.mark.parametrize("case", FULL, ids=str)
def test_scaled_videos_are_read_where_the_board_was_drawn(case: Case) -> None:
    puzzle = puzzle_of(case, 0)
    half = oracle(case, puzzle)[::4, ::2, ::2]
    assert second_verify(puzzle, half, (case.height, case.width)).solved
    assert second_verify(puzzle, half[:1], (case.height, case.width)).broken_rule == NOT_SOLVED


@tiny
def test_looks_remain_apart_in_tones(case: Case) -> None:
    """Tones that lie close are one; labels stay distinct all the same, at any brightness."""
    palette = palette_of(RULES[case.task].GAME)
    assert len({tuple(look) for look in palette.looks.tolist()}) == len(ROOMS[case.task].LOOKS)
    for gain in GAINS:
        shown = np.minimum(ROOMS[case.task].LOOKS.astype(float) * gain, 255).astype(np.intp) >> 3
        votes = palette_of(RULES[case.task].GAME, float(gain)).vote[shown @ [1024, 32, 1]]
        np.testing.assert_array_equal(votes - palette.tones, palette.looks)  # without doubt


def test_the_two_share_no_code_that_reads_or_judges() -> None:
    forbidden = {"judge", "verify", "judging", "read", "areas", "calibration", "valid_prefix", "solve", "grid"}
    for path in Path(second.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and "second" not in str(node.module):
                names = {alias.name for alias in node.names} | set(str(node.module).split("."))
                assert not names & forbidden, path


def test_a_board_that_does_not_fit_is_refused() -> None:
    case = TINY[0]
    with pytest.raises(ValueError, match="frame leaves"):
        second_verify(puzzle_of(case, 0), np.zeros((5, 8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match=r"cannot be read .* enlarge them"):
        second_verify(puzzle_of(case, 0), np.zeros((5, 6, 8, 3), np.uint8), (case.height, case.width))


@pytest.mark.parametrize(
    "video", [np.zeros((0, 16, 20, 3), np.uint8), np.zeros((5, 16, 20, 3)), np.zeros((16, 20, 3), np.uint8)]
)
def test_what_is_no_video_is_refused(video: np.ndarray) -> None:
    with pytest.raises(ValueError, match="must be uint8"):
        second_verify(puzzle_of(TINY[0], 0), video)


def test_noise_is_unreadable() -> None:
    for case in TINY:
        assert second_verify(puzzle_of(case, 0), noise(case, 5)).broken_rule in (UNREADABLE, START_CHANGED)


@both
@pytest.mark.benchmark(group="second_verify")
def test_speed_of_second_verify(benchmark, case: Case) -> None:
    """One video."""
    puzzle = puzzle_of(case, 0)
    benchmark(second_verify, puzzle, render(puzzle, case.height, case.width, case.num_frames, case.frames_per_move))
