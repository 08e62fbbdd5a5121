"""Mazes: the generator, the planner, the rules one by one, the file."""

import hashlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vrlvr.puzzles import board, generate, maze, render_states, rng_for, verify
from vrlvr.puzzles.maze.puzzle import canonical
from vrlvr.puzzles.maze.render import AGENT, AGENT_ON_GOAL, FLOOR, GOAL, WALL
from vrlvr.puzzles.second import second_verify

# Two ways from S to G: down, down, right (the planner's), or around the wall.
BOARD = {"task": "maze", "board": ["S..", ".#.", ".G."], "solution": "DDR"}
PUZZLE = maze.Puzzle.from_json(BOARD)
DIFFICULTIES = [
    maze.Difficulty(),
    maze.Difficulty(3, 3, 1, 3),
    maze.Difficulty(5, 4, 3, 6, 0.3),
    maze.Difficulty(7, 13, 8, 20),
    maze.Difficulty(11, 11, 20, 20, 0.0),
]


def make(index: int, difficulty: maze.Difficulty = maze.Difficulty()) -> maze.Puzzle:  # noqa: B008 (it is frozen)
    return generate("maze", difficulty, 3, "train", index)


def frames(solution: str, hold: int = 1) -> np.ndarray:
    """The labels (T, 3, 3) of a walk through PUZZLE, the last state shown `hold` times."""
    states = maze.states(PUZZLE, solution).astype(np.int16)
    return np.concatenate([states, np.repeat(states[-1:], hold - 1, axis=0)])


def judge(labels: np.ndarray) -> maze.verify.Verdict:
    return maze.judge(PUZZLE, labels, np.zeros(labels.shape, np.float32))


def fewest_moves(puzzle: maze.Puzzle) -> float:
    """Moves from start to goal by relaxing all cells until nothing changes: another way than breadth first."""
    grid = np.frombuffer(puzzle.ground, np.uint8).reshape(puzzle.rows, puzzle.cols)
    cost = np.full((puzzle.rows + 2, puzzle.cols + 2), np.inf)
    cost[1:-1, 1:-1].flat[puzzle.start] = 0
    for _ in range(grid.size):
        best = np.minimum.reduce([cost[:-2, 1:-1], cost[2:, 1:-1], cost[1:-1, :-2], cost[1:-1, 2:]]) + 1
        cost[1:-1, 1:-1] = np.where(grid == WALL, np.inf, np.minimum(cost[1:-1, 1:-1], best))
    return cost[1:-1, 1:-1].flat[puzzle.goal]


@pytest.mark.parametrize("difficulty", DIFFICULTIES, ids=str)
def test_generated_mazes_keep_the_difficulty_and_plans_are_shortest(difficulty):
    for index in range(20):
        puzzle = make(index, difficulty)
        assert (puzzle.rows, puzzle.cols) == (difficulty.rows, difficulty.cols)
        assert puzzle.ground.count(GOAL) == 1
        assert puzzle.ground[puzzle.start] == FLOOR
        assert difficulty.min_plan <= len(puzzle.solution) <= difficulty.max_plan
        assert len(puzzle.solution) == fewest_moves(puzzle)
        assert puzzle.solution == maze.solve(replace(puzzle, solution=""))


def test_without_flips_there_is_one_path_between_any_two_cells():
    """A maze is perfect if its free cells are a tree: connected, with one adjacent pair fewer than cells."""
    for index in range(20):
        puzzle = make(index, maze.Difficulty(7, 9, 2, 30, 0.0))
        free = np.frombuffer(puzzle.ground, np.uint8).reshape(7, 9) != WALL
        pairs = (free[1:] & free[:-1]).sum() + (free[:, 1:] & free[:, :-1]).sum()
        assert pairs == free.sum() - 1
        assert free.sum() > 7 * 9 / 2


def test_plan_lengths_are_even():
    lengths = [len(make(index).solution) for index in range(600)]
    assert min(lengths.count(length) for length in (2, 3, 4)) > 600 / 3 * 0.75


def test_small_mazes_are_many():
    assert len({canonical(make(index)) for index in range(1000)}) > 800


def test_generation_is_the_same_on_every_machine():
    """Data made by one version of this code belongs to it: change the digest only with a note in the changelog."""
    digest = hashlib.blake2b(digest_size=8)
    for difficulty in DIFFICULTIES:
        for index in range(3):
            puzzle = make(index, difficulty)
            digest.update(maze.states(puzzle, puzzle.solution).tobytes())
    assert digest.hexdigest() == "9d90e1fb3885237f"


def test_an_unsatisfiable_search_ends_with_one_line():
    with pytest.raises(ValueError, match=r"no maze within .* in 10000 tries; widen"):
        maze.generate(maze.Difficulty(2, 2, 1, 1), rng_for(0, "train", 0), lambda key: False)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rows": 1}, "1x5 cells must have 2 to 255"),
        ({"cols": 256}, "4x256 cells must have 2 to 255"),
        ({"min_plan": 0}, "min_plan=0 must be from 1 to max_plan=4"),
        ({"min_plan": 5}, "min_plan=5 must be from 1 to max_plan=4"),
        ({"min_plan": 11, "max_plan": 11}, "min_plan=11 is longer .* use at most 10"),
        ({"flips": 0.6}, "flips=0.6 must be a share from 0 to 0.5"),
    ],
)
def test_impossible_difficulties_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        maze.Difficulty(**fields)


def transformed(puzzle: maze.Puzzle, turns: int, mirror: bool) -> maze.Puzzle:
    """The same maze rotated and mirrored, with no solution."""
    marked = bytearray(puzzle.ground)
    marked[puzzle.start] = AGENT
    grid = np.rot90(np.frombuffer(bytes(marked), np.uint8).reshape(puzzle.rows, puzzle.cols), turns)
    grid = grid.T if mirror else grid
    cells = grid.tobytes()
    start = cells.index(AGENT)
    return maze.Puzzle(*grid.shape, cells.replace(bytes([AGENT]), bytes([FLOOR])), start, "")


@settings(max_examples=40, deadline=None)
@given(index=st.integers(0, 10_000), turns=st.integers(0, 3), mirror=st.booleans())
def test_symmetric_copies_share_their_key(index, turns, mirror):
    puzzle = make(index, maze.Difficulty(3, 5, 2, 5))
    assert canonical(transformed(puzzle, turns, mirror)) == canonical(puzzle)


def test_different_mazes_have_different_keys():
    moved = replace(PUZZLE, start=1)
    opened = replace(PUZZLE, ground=PUZZLE.ground.replace(bytes([WALL]), bytes([FLOOR])))
    open_boards = [maze.Puzzle(*shape, bytes([FLOOR] * 11 + [GOAL]), 0, "") for shape in ((2, 6), (3, 4))]
    assert len({canonical(puzzle) for puzzle in (PUZZLE, moved, opened, *open_boards)}) == 5


def test_no_duty_takes_a_walled_in_goal():
    parted = maze.Puzzle(2, 3, bytes([FLOOR, WALL, FLOOR, FLOOR, WALL, GOAL]), 0, "")
    still = render_states(parted, np.repeat(maze.states(parted, ""), 3, 0), 24, 36)
    for duty in (
        lambda: maze.solve(parted),
        lambda: maze.judge_moves(parted, "D"),
        lambda: verify(parted, still),
        lambda: second_verify(parted, still),
    ):
        with pytest.raises(ValueError, match="the maze has no solution"):
            duty()


def test_states_show_the_agent_on_its_way():
    cells = [[AGENT, FLOOR, FLOOR, FLOOR, WALL, FLOOR, FLOOR, GOAL, FLOOR]]
    cells += [[FLOOR, FLOOR, FLOOR, AGENT, WALL, FLOOR, FLOOR, GOAL, FLOOR]]
    cells += [[FLOOR, FLOOR, FLOOR, FLOOR, WALL, FLOOR, AGENT, GOAL, FLOOR]]
    cells += [[FLOOR, FLOOR, FLOOR, FLOOR, WALL, FLOOR, FLOOR, AGENT_ON_GOAL, FLOOR]]
    np.testing.assert_array_equal(maze.states(PUZZLE, "DDR").reshape(4, 9), cells)


@pytest.mark.parametrize("solution", ["U", "L", "RD", "DDRR", "X", "d"])
def test_illegal_moves_are_refused(solution):
    with pytest.raises(ValueError, match=f"move {len(solution)} of '{solution}' is illegal"):
        maze.states(PUZZLE, solution)


def test_the_planner_scores_everything():
    verdict = judge(frames("DDR", hold=3))
    assert verdict.solved
    assert verdict.components == {"solved": 1.0, "progress": 1.0, "error": 0.0}
    assert (verdict.broken_rule, verdict.frame, verdict.f1) == (None, None, 1.0)


def test_any_way_to_the_goal_is_accepted_and_measured_against_the_planner():
    verdict = judge(frames("RRDDL"))
    assert verdict.solved
    assert verdict.components["progress"] == 1.0
    assert (verdict.precision, verdict.recall) == (1 / 5, 1 / 3)  # only the goal is shared


def test_pauses_and_steps_back_are_legal():
    assert judge(frames("DUDDR")[[0, 0, 1, 2, 2, 3, 4, 5, 5]]).solved


def test_progress_is_that_of_the_nearest_state_of_the_valid_prefix():
    assert judge(frames("D")).components["progress"] == pytest.approx(1 / 3)
    assert judge(frames("DDU")).components["progress"] == pytest.approx(2 / 3)
    assert judge(frames("R")).components["progress"] == 0.0
    assert judge(frames("DDR")[[0, 1, 3]]).components["progress"] == pytest.approx(1 / 3)  # teleports at the end


def test_standing_still_earns_nothing():
    verdict = judge(np.repeat(frames(""), 9, axis=0))
    assert verdict.components == {"solved": 0.0, "progress": 0.0, "error": 0.0}
    assert (verdict.broken_rule, verdict.frame, verdict.precision, verdict.recall) == ("not_solved", 8, 0.0, 0.0)


def test_precision_counts_every_readable_frame():
    labels = frames("DDR")[[0, 1, 3, 3]]  # a teleport, after which the goal is still visited
    labels[3, 0, 0] = board.UNREADABLE
    verdict = judge(labels)
    assert (verdict.broken_rule, verdict.precision, verdict.recall) == ("teleport", 1.0, 2 / 3)


def put(frame: int, *cells: tuple[int, int]) -> Callable[[np.ndarray], None]:
    """An edit of a video: cells (index, label) of one frame."""

    def edit(labels: np.ndarray) -> None:
        for cell, label in cells:
            labels[frame].flat[cell] = label

    return edit


# Name: the walk, the edit of its video, and the rule and frame that it breaks. Cells: 0 S, 4 wall, 7 goal.
BROKEN = {
    "unreadable": ("DDR", put(2, (1, board.UNREADABLE)), "unreadable_cell", 2),
    "unreadable start": ("DDR", put(0, (1, board.UNREADABLE)), "unreadable_cell", 0),
    "starts elsewhere": ("DDR", put(0, (0, FLOOR), (3, AGENT)), "start_changed", 0),
    "starts in another maze": ("DDR", put(0, (4, FLOOR)), "start_changed", 0),
    "starts with two": ("DDR", put(0, (1, AGENT)), "start_changed", 0),
    "agent vanishes": ("DDR", put(1, (3, FLOOR)), "no_agent", 1),
    "two agents": ("DDR", put(2, (2, AGENT)), "two_agents", 2),
    "one more on the goal": ("DDR", put(2, (7, AGENT_ON_GOAL)), "two_agents", 2),
    "teleport": ("DDR", put(2, (6, FLOOR), (5, AGENT)), "teleport", 2),
    "diagonal": ("RLDDR", put(2, (0, FLOOR), (5, AGENT)), "teleport", 2),
    "through the wall": ("RLDDR", put(2, (0, FLOOR), (4, AGENT)), "walked_through_wall", 2),
    "wall erased": ("DDR", put(2, (4, FLOOR)), "wall_changed", 2),
    "wall built": ("DDR", put(2, (1, WALL)), "wall_changed", 2),
    "goal erased": ("DDR", put(1, (7, FLOOR)), "goal_moved", 1),
    "goal moved": ("DDR", put(1, (7, FLOOR), (5, GOAL)), "goal_moved", 1),
    "second goal": ("DDR", put(1, (5, GOAL)), "goal_moved", 1),
    "goal comes to the agent": ("DDR", put(1, (3, AGENT_ON_GOAL), (7, FLOOR)), "goal_moved", 1),
    "goal hidden by the agent": ("DDR", put(3, (7, AGENT)), "goal_moved", 3),
}


@pytest.mark.parametrize("name", BROKEN)
def test_each_rule_is_named_with_its_frame(name):
    walk, edit, rule, frame = BROKEN[name]
    labels = frames(walk, hold=2)
    edit(labels)
    verdict = judge(labels)
    assert (verdict.solved, verdict.broken_rule, verdict.frame) == (False, rule, frame)


def test_the_goal_may_not_be_left():
    labels = frames("DDR", hold=2)
    labels[4] = labels[2]
    verdict = judge(labels)
    assert (verdict.solved, verdict.broken_rule, verdict.frame) == (False, "goal_left", 4)
    assert judge(labels[[0, 1, 2, 3, 4, 3]]).broken_rule == "goal_left"


@settings(max_examples=300, deadline=None)
@given(
    index=st.integers(0, 200),
    frame=st.integers(0, 4),
    cell=st.integers(0, 19),
    label=st.integers(-1, AGENT_ON_GOAL),
)
def test_any_changed_cell_unsolves_a_video(index, frame, cell, label):
    puzzle = make(index)
    labels = board.hold(maze.states(puzzle, puzzle.solution), 5, 1).astype(np.int16)
    before = labels[frame].flat[cell]
    labels[frame].flat[cell] = label
    assert maze.judge(puzzle, labels, np.zeros(labels.shape, np.float32)).solved == (label == before)


def test_json_round_trip():
    assert PUZZLE.to_json() == BOARD
    for index in range(20):
        puzzle = make(index, maze.Difficulty(4, 7, 2, 9))
        assert maze.Puzzle.from_json(puzzle.to_json()) == puzzle


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "sokoban"}, "task is 'sokoban'"),
        ({"board": "S.G"}, "board must be a list of strings"),
        ({"board": ["S..", 3, ".G."]}, "board must be a list of strings"),
        ({"board": []}, "the board has 0 rows"),
        ({"board": ["S", "G"]}, "2 rows of 1 cells; it must have 2 to 255 rows, and as many columns"),
        ({"board": ["S..", ".#", ".G."]}, "row 2 has 2 cells, row 1 has 3"),
        ({"board": ["S..", ".x.", ".G."]}, "row 2 has the character 'x'"),
        ({"board": ["S.S", ".#.", ".G."]}, "2 S cells; a maze has exactly one start"),
        ({"board": ["...", ".#.", ".G."]}, "0 S cells; a maze has exactly one start"),
        ({"board": ["S..", ".#.", "..."]}, "0 G cells; a maze has exactly one goal"),
        ({"board": ["S#.", ".#.", ".#G"]}, "walls part start and goal"),
        ({"board": ["S#.", ".#.", ".#G"], "solution": ""}, "walls part start and goal"),
        ({"solution": "DD"}, "solution 'DD' does not end on the goal"),
        ({"solution": ""}, "solution '' does not end on the goal"),
        ({"solution": "DDRLR"}, "move 4 of 'DDRLR' is illegal"),
        ({"solution": "RDD"}, "move 2 of 'RDD' is illegal"),
        ({"solution": ["D", "D", "R"]}, "solution is .* must be a string"),
        ({"solution": None}, "solution is None"),
    ],
)
def test_broken_json_is_refused_with_one_line(change, message):
    with pytest.raises(ValueError, match=message) as error:
        maze.Puzzle.from_json(BOARD | change)
    assert "\n" not in str(error.value)


def test_verify_reads_any_size():
    states = board.hold(maze.states(PUZZLE, "DDR"), 9, 2)
    for height, width in ((12, 12), (31, 50), (240, 320)):
        assert verify(PUZZLE, board.render(states, maze.LOOKS, height, width)).solved


def test_the_error_is_the_mean_distance_and_full_for_unreadable_cells():
    labels = frames("DDR")
    rmse = np.zeros(labels.shape, np.float32)
    rmse[0] = board.MAX_CELL_RMSE / 2
    rmse[1] = 1000
    assert maze.judge(PUZZLE, labels, rmse).components["error"] == pytest.approx((0.5 + 1) / 4)
