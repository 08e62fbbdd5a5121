"""FlowFree beyond the contract of all rooms: exact planner, the generator's promises, growth rules, dense reward."""

import dataclasses
import hashlib
import itertools
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vrlvr.puzzles import board, flow_free, rng_for, split_of
from vrlvr.puzzles.flow_free.generate import Difficulty, generate
from vrlvr.puzzles.flow_free.puzzle import Puzzle, canonical
from vrlvr.puzzles.flow_free.render import EMPTY, LOOKS, endpoint_label, num_moves, path_label, states
from vrlvr.puzzles.flow_free.solve import count_solutions, solve
from vrlvr.puzzles.flow_free.verify import judge
from vrlvr.puzzles.grid import around

POSITIVE = ("solved", "progress", "filled", "process")
SMALL = Difficulty(4, 4, mixes=((3, 7), (4, 5)), cells_per_move=2)
LARGE = Difficulty(8, 8, mixes=((8, 14),), max_moves=20, cells_per_move=1, alongside=0.1)


@lru_cache
def make(index: int = 0, difficulty: Difficulty | None = None) -> Puzzle:
    return generate(difficulty or Difficulty(), rng_for(5, "train", index), lambda key: split_of(key) == "train")


def judged(puzzle: Puzzle, labels):
    labels = np.asarray(labels)
    rmse = np.where(labels == board.UNREADABLE, 2 * board.MAX_CELL_RMSE, 0.0)
    return judge(puzzle, labels, rmse)


def paint(puzzle: Puzzle, *frames: dict[int, list[int]]) -> np.ndarray:
    """Labels (1 + len(frames), R, K): the puzzle alone, then the cells of each colour that each frame adds."""
    state = states(puzzle, puzzle.solution)[0].copy()
    video = [state]
    for frame in frames:
        state = state.copy()
        for colour, cells in frame.items():
            state.flat[cells] = path_label(colour)
        video.append(state)
    return np.stack(video)


# ---------------------------------------------------------------------------------------------------- the planner


def brute_force_count(rows: int, cols: int, endpoints) -> int:
    """Solutions counted the naive way: extend the first unfinished colour's path by every free neighbour."""
    beside = around(rows, cols)
    targets = {cell for pair in endpoints for cell in pair}

    def extend(colour: int, head: int, used: frozenset[int]) -> int:
        if colour == len(endpoints):
            return len(used) == rows * cols
        total = 0
        for cell in beside[head]:
            if cell == endpoints[colour][1]:
                following = endpoints[colour + 1][0] if colour + 1 < len(endpoints) else -1
                total += extend(colour + 1, following, used | {cell, following} - {-1})
            elif cell not in used and cell not in targets:
                total += extend(colour, cell, used | {cell})
        return total

    return extend(0, endpoints[0][0], frozenset([endpoints[0][0]]))


@given(st.integers(2, 4), st.integers(2, 4), st.integers(1, 3), st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None)
def test_the_planner_counts_what_brute_force_counts(rows, cols, colours, random):
    if 2 * colours > rows * cols:
        return
    cells = random.sample(range(rows * cols), 2 * colours)
    endpoints = [tuple(sorted(cells[i : i + 2])) for i in range(0, len(cells), 2)]
    count, paths = count_solutions(rows, cols, endpoints)
    assert count == brute_force_count(rows, cols, endpoints)
    if count:
        assert [(path[0], path[-1]) for path in paths] == endpoints
        assert sorted(itertools.chain(*paths)) == list(range(rows * cols))
        assert all(b in around(rows, cols)[a] for path in paths for a, b in itertools.pairwise(path))


def test_brute_force_and_planner_meet_solvable_boards():
    """The comparison above draws mostly unsolvable boards: here all have solutions, some several."""
    counts = []
    for index in range(40):
        puzzle = make(index, dataclasses.replace(SMALL, unique_cells=0))
        counts.append(count_solutions(4, 4, puzzle.endpoints)[0])
        assert counts[-1] == brute_force_count(4, 4, puzzle.endpoints)
    assert min(counts) == 1
    assert max(counts) > 1


def test_solve_refuses_an_unsolvable_board():
    puzzle = dataclasses.replace(make(), rows=2, cols=2, endpoints=((0, 3), (1, 2)))
    with pytest.raises(ValueError, match="no paths fill the 2x2 board"):
        solve(puzzle)


# -------------------------------------------------------------------------------------------------- the generator


@pytest.mark.parametrize("difficulty", [Difficulty(), SMALL, LARGE, Difficulty(mixes=((5, 4),))], ids=str)
def test_generated_puzzles_keep_the_difficulty(difficulty):
    for index in range(5):
        puzzle = make(index, difficulty)
        assert puzzle == make(index, difficulty)
        assert split_of(canonical(puzzle)) == "train"
        assert count_solutions(puzzle.rows, puzzle.cols, puzzle.endpoints) == (1, puzzle.solution)
        lengths = [len(path) for path in puzzle.solution]
        colours, longest = next(mix for mix in difficulty.mixes if mix[0] == len(lengths))
        assert len(lengths) == colours
        assert difficulty.min_path <= min(lengths) <= max(lengths) <= longest
        moves = num_moves(max(lengths), difficulty.cells_per_move)
        assert len(states(puzzle, puzzle.solution)) - 1 == moves
        assert 2 <= moves <= difficulty.max_moves


def test_boards_that_one_move_would_draw_are_passed_over():
    """Four paths of 4 cells fill the board, and would each be drawn at once; the paths must be of unequal lengths."""
    tempting = Difficulty(4, 4, mixes=((4, 5),), cells_per_move=2, unique_cells=0)
    assert all(max(map(len, make(index, tempting).solution)) == 5 for index in range(100))


def test_small_boards_are_many():
    """200 default boards, no two alike up to symmetry; 3,188 were met in 6,000 draws."""
    seen: set[bytes] = set()
    rng = np.random.default_rng(0)
    for _ in range(200):
        key = canonical(generate(Difficulty(), rng, lambda key: key not in seen))
        assert key not in seen
        seen.add(key)
    assert len(seen) == 200


def test_generation_is_the_same_on_every_machine():
    """Data made by one version of this code belongs to it: change the digest only with a note in the changelog."""
    digest = hashlib.blake2b(digest_size=8)
    for difficulty in (Difficulty(), SMALL, LARGE):
        for index in range(3):
            puzzle = make(index, difficulty)
            digest.update(states(puzzle, puzzle.solution).tobytes())
    assert digest.hexdigest() == "a14b818d4894c8f8"


def test_an_unsatisfiable_search_ends_with_one_line():
    with pytest.raises(ValueError, match="held no accepted puzzle") as error:
        generate(Difficulty(), rng_for(0, "train", 0), lambda key: False)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rows": 1}, "1x5"),
        ({"cols": 99}, "4x99"),
        ({"mixes": ()}, "mixes is empty"),
        ({"mixes": ((9, 7),)}, "9 colours"),
        ({"mixes": ((2, 7),)}, "cannot fill 20 cells"),
        ({"mixes": ((3, 12),)}, "max_moves=4"),
        ({"min_path": 2}, "min_path=2"),
        ({"cells_per_move": 0}, "cells_per_move=0"),
        ({"cells_per_move": 4}, "4 paths of at most 6 cells are all drawn in one move of cells_per_move=4 cells"),
        ({"rows": 3, "cols": 3, "mixes": ((3, 6),)}, "3 paths of at most 3 cells are all drawn in one move"),
        ({"alongside": 0.0}, "alongside=0.0"),
    ],
)
def test_impossible_difficulties_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Difficulty(**fields)


@given(st.integers(0, 30), st.integers(0, 3), st.booleans(), st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_symmetric_copies_share_their_key(index, turns, mirror, random):
    puzzle = make(index, Difficulty(3, 4, mixes=((2, 8),), max_moves=6, unique_cells=0))
    cells = np.arange(puzzle.rows * puzzle.cols).reshape(puzzle.rows, puzzle.cols)
    copy = np.rot90(cells.T if mirror else cells, turns)
    image = {cell: new for new, cell in enumerate(copy.ravel().tolist())}
    paths = [[image[cell] for cell in path] for path in puzzle.solution]
    random.shuffle(paths)
    twin = Puzzle.from_paths(*copy.shape, paths, puzzle.cells_per_move)
    assert canonical(twin) == canonical(puzzle)


def test_different_boards_have_different_keys():
    puzzle = make(1, Difficulty(3, 3, mixes=((2, 6),), unique_cells=0))
    a, b = puzzle.endpoints[0]
    moved = dataclasses.replace(
        puzzle, endpoints=((a, next(c for c in range(9) if c not in sum(puzzle.endpoints, ()))),)
    )
    assert canonical(moved) != canonical(puzzle)
    assert (a, b) == puzzle.endpoints[0]


# --------------------------------------------------------------------------------------------------------- looks


def test_looks_are_far_apart():
    flat = LOOKS.reshape(len(LOOKS), 6).astype(float)
    distance = np.sqrt(np.square(flat[:, None] - flat[None]).mean(-1)) + 1e9 * np.eye(len(flat))
    assert distance[:9, :9].min() >= 85  # empty and 4 colours
    assert distance[:13, :13].min() >= 85  # 6 colours
    assert distance.min() >= 60
    assert flat.min() >= 40
    assert flat.max() <= 215


@pytest.mark.parametrize("difficulty", [Difficulty(), SMALL], ids=str)
def test_the_video_starts_with_the_puzzle_and_grows_all_colours_at_once(difficulty):
    puzzle = make(3, difficulty)
    video = states(puzzle, puzzle.solution)
    assert set(np.flatnonzero(video[0])) == set(sum(puzzle.endpoints, ()))
    assert (video[-1] != EMPTY).all()
    for colour, path in enumerate(puzzle.solution):
        covered = [(frame == path_label(colour)).sum() for frame in video]
        assert covered == [min(puzzle.cells_per_move * m, len(path) - 2) for m in range(len(video))]
        assert (video.reshape(len(video), -1)[:, list(puzzle.endpoints[colour])] == endpoint_label(colour)).all()


# --------------------------------------------------------------------------------------------------------- judge


def test_the_planner_scores_everything():
    for puzzle in (make(0), make(1), make(0, LARGE)):
        verdict = judged(puzzle, states(puzzle, puzzle.solution))
        assert verdict.solved
        assert verdict.broken_rule is None
        assert verdict.components == {"solved": 1, "progress": 1, "filled": 1, "process": 1, "error": 0}
        assert (verdict.precision, verdict.recall) == (1, 1)


def two_rows() -> Puzzle:
    """A path 0 1 2 3 above another, 4 5 6 7, one cell a move."""
    return Puzzle.from_paths(2, 4, [(0, 1, 2, 3), (4, 5, 6, 7)], 1)


@pytest.mark.parametrize(
    "frames",
    [
        [{0: [1], 1: [5]}, {0: [2], 1: [6]}],
        [{0: [2], 1: [6]}, {0: [1], 1: [5]}],  # from the second endpoint
        [{0: [1]}, {1: [5]}, {0: [2]}, {1: [6]}],  # one colour after the other
        [{}, {0: [1], 1: [6]}, {}, {0: [2]}, {1: [5]}, {}, {}],
    ],
)
def test_any_legal_growth_is_accepted(frames):
    assert judged(two_rows(), paint(two_rows(), *frames)).solved


def test_the_limit_of_new_cells_counts_both_ends_together():
    from_both_ends = {0: [1, 2], 1: [5, 6]}
    assert judged(dataclasses.replace(two_rows(), cells_per_move=2), paint(two_rows(), from_both_ends)).solved
    assert judged(two_rows(), paint(two_rows(), from_both_ends)).broken_rule == "grew_too_fast"
    wide = Puzzle.from_paths(2, 7, [range(7), range(7, 14)], 2)
    for cells, rule in (([1, 2], "not_solved"), ([1, 5], "not_solved"), ([1, 2, 5], "grew_too_fast")):
        assert judged(wide, paint(wide, {0: cells})).broken_rule == rule


def test_a_flood_of_one_colour_is_judged_without_a_search():
    """There are more than 10^10 walks through an empty 8x8 board: a judge that tried them would never end."""
    puzzle = make(0, LARGE)
    flood = paint(puzzle, {0: np.flatnonzero(states(puzzle, puzzle.solution)[0] == EMPTY).tolist()})
    verdict = judged(puzzle, flood)
    assert (verdict.broken_rule, verdict.frame) == ("grew_too_fast", 1)
    assert verdict.components == {"solved": 0, "progress": 0, "filled": 0, "process": 0, "error": 0}


def test_a_solution_that_runs_along_itself_is_accepted_whatever_the_planner_did():
    """A 3x3 board of one colour from corner to corner: the S shape is legal in either orientation."""
    rows = Puzzle.from_paths(3, 3, [(0, 1, 2, 5, 4, 3, 6, 7, 8)], 1)
    for path in ((0, 1, 2, 5, 4, 3, 6, 7, 8), (0, 3, 6, 7, 4, 1, 2, 5, 8)):
        verdict = judged(rows, states(rows, [path]))
        assert verdict.solved
        assert verdict.components["filled"] == 1


def test_all_orders_that_explain_the_cells_are_kept():
    """With 2 cells a move, {1, 4} is reached as 0-1-4 on a 3x3 board; 3 then 6 must continue from 4, not from 1."""
    puzzle = Puzzle.from_paths(3, 3, [(0, 1, 4, 3, 6), (2, 5, 8, 7)], 2)
    assert judged(puzzle, paint(puzzle, {0: [1, 4], 1: [5, 8]}, {0: [3]})).solved
    assert judged(puzzle, paint(puzzle, {0: [4, 3], 1: [5]}, {0: [1], 1: [8]})).solved


def test_cells_that_fill_the_grid_without_paths_are_not_solved():
    """Every cell is coloured by legal growth, but 0 1 2 has a spur at 4 and 5 8 7 6 one at 3."""
    puzzle = Puzzle.from_paths(3, 3, [(0, 3, 4, 1, 2), (5, 8, 7, 6)], 1)
    video = paint(puzzle, {0: [1], 1: [8]}, {1: [7]}, {0: [4], 1: [3]})
    verdict = judged(puzzle, video)
    assert (video[-1] != EMPTY).all()
    assert (verdict.solved, verdict.broken_rule, verdict.frame) == (False, "not_solved", 3)
    assert verdict.components["progress"] == 1  # both were joined before they grew on
    assert verdict.components["process"] == 1
    assert verdict.components["filled"] < 1


def broken(name: str):
    """A video that breaks one rule at frame 2: (puzzle, labels)."""
    puzzle = two_rows()
    video = states(puzzle, puzzle.solution)[[0, 1, 1, 2, 2]].copy()
    other = path_label(1)
    if name == "unreadable_cell":
        video[2, 0, 2] = board.UNREADABLE
    elif name == "unknown_colour":
        video[2, 0, 2] = path_label(2)
    elif name == "endpoint_changed":
        video[2:, 0, 0] = path_label(0)
    elif name == "colour_changed":
        video[2, 0, 1] = other
    elif name == "cell_vanished":
        video[2, 0, 1] = EMPTY
    elif name == "grew_too_fast":
        wide = Puzzle.from_paths(2, 6, [range(6), range(6, 12)], 1)
        return wide, paint(wide, {0: [1]}, {0: [2, 3], 1: [7]}, {0: [4], 1: [8]}, {1: [9]}, {1: [10]})
    elif name == "disconnected":
        wide = Puzzle.from_paths(2, 6, [range(6), range(6, 12)], 1)
        return wide, paint(wide, {0: [1]}, {0: [3], 1: [7]}, {0: [2, 4], 1: [8]}, {1: [9]}, {1: [10]})
    return puzzle, video


@pytest.mark.parametrize(
    "name",
    [
        "unreadable_cell",
        "unknown_colour",
        "endpoint_changed",
        "colour_changed",
        "cell_vanished",
        "grew_too_fast",
        "disconnected",
    ],
)
def test_each_rule_is_named_with_its_frame(name):
    puzzle, video = broken(name)
    verdict = judged(puzzle, video)
    assert (verdict.solved, verdict.broken_rule, verdict.frame) == (False, name, 2)
    if name in ("endpoint_changed", "cell_vanished", "grew_too_fast", "disconnected"):
        # the other colour keeps what it earned
        assert verdict.components["process"] == 0.5
        assert verdict.components["progress"] >= 0.5


def test_four_cells_at_once_are_too_fast_even_in_line():
    wide = Puzzle.from_paths(2, 6, [range(6), range(6, 12)], 1)
    assert judged(wide, paint(wide, {0: [1, 2, 3, 4]})).broken_rule == "grew_too_fast"


def test_another_endpoint_in_the_open_breaks_its_colour():
    puzzle = two_rows()
    video = states(puzzle, puzzle.solution).copy()
    video[1:, 0, 1] = endpoint_label(0)
    verdict = judged(puzzle, video)
    assert (verdict.broken_rule, verdict.frame) == ("endpoint_changed", 1)


def test_who_overruns_another_colour_and_who_lets_it_happen_both_break_a_rule():
    """The second colour grows 5, then 1, which the first had; the first puts 2 beside it."""
    verdict = judged(two_rows(), paint(two_rows(), {0: [1], 1: [5]}, {0: [2], 1: [1]}))
    assert (verdict.broken_rule, verdict.frame) == ("colour_changed", 2)
    assert verdict.components["process"] == 0


def test_growing_on_after_being_joined_costs_nothing_that_a_cut_would_save():
    """0 1 2 is joined and consistent; a spur at 4 takes that away. Cutting the video before it must not pay more."""
    puzzle = Puzzle.from_paths(3, 3, [(0, 3, 4, 1, 2), (5, 8, 7, 6)], 1)
    video = paint(puzzle, {0: [1]}, {0: [4]})
    grown = judged(puzzle, video).components
    video[2, 2, 2] = board.UNREADABLE
    cut = judged(puzzle, video).components
    assert grown["filled"] == cut["filled"] == pytest.approx(1 / 5)
    assert grown["progress"] == cut["progress"] == 0.5


def test_a_changed_start_earns_nothing():
    puzzle = two_rows()
    video = states(puzzle, puzzle.solution)
    verdict = judged(puzzle, video[[1, 1, 2]])
    assert (verdict.broken_rule, verdict.frame) == ("start_changed", 0)
    assert all(verdict.components[name] == 0 for name in POSITIVE)


def test_standing_still_earns_nothing():
    for index in range(20):
        puzzle = make(index)
        verdict = judged(puzzle, states(puzzle, puzzle.solution)[[0] * 5])
        assert all(value == 0 for value in verdict.components.values())
        assert (verdict.precision, verdict.recall) == (0, 0)
        assert verdict.broken_rule == "not_solved"


def test_endpoints_that_touch_are_not_joined_by_standing_still():
    puzzle = Puzzle.from_paths(2, 2, [(0, 1, 3, 2)], 1)
    assert judged(puzzle, paint(puzzle, {}, {})).components["progress"] == 0
    assert judged(puzzle, paint(puzzle, {0: [1]}, {0: [3]})).solved


def test_partial_work_earns_its_share():
    puzzle = two_rows()
    half = judged(puzzle, paint(puzzle, {0: [1]}, {0: [2]}))
    assert half.components == {"solved": 0, "progress": 0.5, "filled": 0.5, "process": 0.5, "error": 0}
    assert (half.precision, half.recall) == (1, 0.5)


def test_precision_counts_wrong_colours():
    puzzle = two_rows()
    verdict = judged(puzzle, paint(puzzle, {0: [1, 5]}, {0: [2]}, {1: [6]}))
    assert (verdict.precision, verdict.recall) == (0.75, 0.75)


def test_error_is_the_mean_distance_and_full_for_unreadable_cells():
    puzzle = two_rows()
    labels = states(puzzle, puzzle.solution).copy()
    rmse = np.full(labels.shape, board.MAX_CELL_RMSE / 2)
    assert judge(puzzle, labels, rmse).components["error"] == pytest.approx(0.5)
    labels[2], rmse[2] = board.UNREADABLE, 400.0
    assert judge(puzzle, labels, rmse).components["error"] == pytest.approx((0.5 + 0.5 + 1) / 3)


def test_arrays_of_another_board_are_refused():
    with pytest.raises(ValueError, match="2, 4"):
        judged(two_rows(), np.zeros((5, 4, 4), np.int16))


@given(
    index=st.integers(0, 40),
    edits=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 19), st.integers(0, 12)), max_size=4),
    frame=st.integers(0, 8),
    cell=st.integers(0, 19),
)
@settings(max_examples=400, deadline=None)
def test_an_unreadable_frame_never_pays_more(index, edits, frame, cell):
    puzzle = make(index)
    video = board.hold(states(puzzle, puzzle.solution), 9, 2).copy()
    for at, where, label in edits:
        video[at].flat[where] = label
    readable = judged(puzzle, video)
    video[frame].flat[cell] = board.UNREADABLE
    unreadable = judged(puzzle, video)
    assert not unreadable.solved
    for name in POSITIVE:
        assert 0 <= unreadable.components[name] <= readable.components[name] <= 1
    assert unreadable.components["error"] > readable.components["error"]


@given(st.integers(0, 40), st.integers(0, 4), st.integers(0, 19), st.integers(0, 12))
@settings(max_examples=300, deadline=None)
def test_one_changed_cell_unsolves_a_video_that_has_no_time_to_spare(index, frame, cell, label):
    """The planner's video with every move shown once: a change is legal only where it is a legal growth."""
    puzzle = make(index)
    video = states(puzzle, puzzle.solution).copy()
    frame = min(frame, len(video) - 1)
    before = int(video[frame].flat[cell])
    if before == label:
        return
    video[frame].flat[cell] = label
    verdict = judged(puzzle, video)
    final = {c: set(path) for c, path in enumerate(puzzle.solution)}
    if verdict.solved:  # only the pace may differ: the cell has its final colour early, or is still empty
        assert frame < len(video) - 1
        assert label == EMPTY or cell in final[(label - 2) // 2]


# ---------------------------------------------------------------------------------------------------------- JSON


def test_json_round_trip():
    for puzzle in (make(2), make(0, LARGE), two_rows()):
        assert Puzzle.from_json(puzzle.to_json()) == puzzle
    assert two_rows().to_json()["board"] == ["A..A", "B..B"]
    assert two_rows().to_json()["solution"] == ["AAAA", "BBBB"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"board": ["A..A", "B.B"]}, "row 2"),
        ({"board": ["A..A", "C..C"]}, "reading order"),
        ({"board": ["A..A", "B.BB"]}, "3 endpoints"),
        ({"board": ["A..A", "b..b"]}, "character"),
        ({"board": "A..A"}, "board"),
        ({"board": ["." * 16] * 16}, "16x16"),
        ({"cells_per_move": 0}, "cells_per_move=0"),
        ({"cells_per_move": 9}, "1 to 8"),
        ({"cells_per_move": True}, "cells_per_move=True"),
        ({"paths": [[0, 1, 2, 3]]}, "first endpoint"),
        ({"paths": None}, "list of lists"),
        ({"paths": [None, None]}, "list of lists"),
        ({"paths": [[False, True, 2, 3], [4, 5, 6, 7]]}, "list of lists of cell numbers"),
        ({"paths": [[0.0, 1, 2, 3], [4, 5, 6, 7]]}, "list of lists of cell numbers"),
        ({"paths": [[0, 1, 2, 3], [4, 6, 5, 7]]}, "jumps from cell 4 to cell 6"),
        ({"paths": [[0, 1, 2, 3], [4, 5, 5, 7]]}, "exactly once"),
        ({"solution": ["AAAA", "BBB."]}, "disagree"),
        ({"task": "maze"}, "maze"),
    ],
)
def test_broken_json_is_refused_with_one_line(change, message):
    with pytest.raises(ValueError, match=message) as error:
        Puzzle.from_json({**two_rows().to_json(), **change})
    assert "\n" not in str(error.value)


def test_the_prompt_names_the_colours():
    assert "red and green" in flow_free.prompt(two_rows())
