"""Sokoban levels: the generator, the planner, the rules one by one, the file."""

import hashlib
import heapq
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vrlvr.puzzles import board, generate, rng_for, sokoban, verify
from vrlvr.puzzles.sokoban.puzzle import State, canonical, step
from vrlvr.puzzles.sokoban.render import AGENT, AGENT_ON_TARGET, BOX, BOX_ON_TARGET, FLOOR, TARGET, WALL
from vrlvr.puzzles.sokoban.solve import remaining_moves, search

# Cells 0 to 11, row by row; the box in cell 5 goes to cell 7. Cells 3 and 10 are walls.
BOARD = {"task": "sokoban", "board": ["   #", "@$ .", "  # "], "solution": "RR"}
PUZZLE = sokoban.Puzzle.from_json(BOARD)
# The boxes in cells 5 and 6 go up to cells 1 and 2.
TWO = sokoban.Puzzle.from_json({"task": "sokoban", "board": [" .. ", " $$@", "    "], "solution": "DLUDLU"})
DIFFICULTIES = [
    sokoban.Difficulty(),
    sokoban.Difficulty(boxes=2, max_plan=6),
    sokoban.Difficulty(4, 6, 3, 4, 9, 3, 0.1),
    sokoban.Difficulty(7, 7, 2, 8, 20, 3),
    sokoban.Difficulty(7, 12, 2, 10, 20, 4),
]


def make(index: int, difficulty: sokoban.Difficulty = DIFFICULTIES[0]) -> sokoban.Puzzle:
    return generate("sokoban", difficulty, 3, "train", index)


def frames(solution: str, hold: int = 1, puzzle: sokoban.Puzzle = PUZZLE) -> np.ndarray:
    """The labels (T, R, K) of a walk, the last state shown `hold` times."""
    states = sokoban.states(puzzle, solution).astype(np.int16)
    return np.concatenate([states, np.repeat(states[-1:], hold - 1, axis=0)])


def judge(labels_TRK: np.ndarray, puzzle: sokoban.Puzzle = PUZZLE) -> sokoban.verify.Verdict:
    return sokoban.judge(puzzle, labels_TRK, np.zeros(labels_TRK.shape, np.float32))


def cheapest(puzzle: sokoban.Puzzle, start: State, push: int) -> int | None:
    """The least cost of a plan where a push costs `push` and a walked cell 1, by Dijkstra without any bound."""
    cost = {start: 0}
    queue = [(0, start)]
    while queue:
        spent, state = heapq.heappop(queue)
        if state[1] == puzzle.targets:
            return spent
        for move in "UDLR":
            after = step(puzzle, state, move)
            if after and spent + (price := push if after[1] != state[1] else 1) < cost.get(after, 1 << 30):
                cost[after] = spent + price
                heapq.heappush(queue, (cost[after], after))
    return None


def plan_cost(puzzle: sokoban.Puzzle, solution: str, push: int) -> int:
    pushes = sum(before[1] != after[1] for before, after in pairwise(puzzle.trace(solution)))
    return pushes * push + len(solution) - pushes


@pytest.mark.parametrize("difficulty", DIFFICULTIES, ids=str)
def test_generated_levels_keep_the_difficulty(difficulty):
    for index in range(12):
        puzzle = make(index, difficulty)
        assert (puzzle.rows, puzzle.cols) == (difficulty.rows, difficulty.cols)
        assert len(puzzle.boxes) == len(puzzle.targets) == difficulty.boxes
        assert not set(puzzle.boxes) & set(puzzle.targets)
        assert difficulty.min_plan <= len(puzzle.solution) <= difficulty.max_plan
        assert plan_cost(puzzle, puzzle.solution, 2) - len(puzzle.solution) >= difficulty.min_pushes
        assert puzzle.trace(puzzle.solution)[-1][1] == puzzle.targets
        assert puzzle.solution == sokoban.solve(replace(puzzle, solution=""))


@pytest.mark.parametrize("difficulty", DIFFICULTIES[:3], ids=str)
def test_plans_have_the_fewest_pushes_and_then_the_fewest_moves(difficulty):
    """A push that costs more than any walk makes Dijkstra order plans by pushes, then moves."""
    for index in range(10):
        puzzle = make(index, difficulty)
        assert plan_cost(puzzle, puzzle.solution, 1000) == cheapest(puzzle, (puzzle.agent, puzzle.boxes), 1000)


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_the_planner_agrees_with_dijkstra_on_any_board(seed):
    """Solvable or not, boxes on targets or not."""
    rng = np.random.default_rng(seed)
    rows, cols, boxes = rng.integers(2, 5), rng.integers(3, 5), rng.integers(1, 3)
    ground = np.where(rng.random(rows * cols) < 0.15, WALL, FLOOR).astype(np.uint8)
    free = rng.permutation(np.flatnonzero(ground))
    if len(free) < 2 * boxes + 1:
        return
    ground[free[:boxes]] = TARGET
    agent, *lying = rng.permutation(free)[: boxes + 1].tolist()
    puzzle = sokoban.Puzzle(int(rows), int(cols), ground.tobytes(), agent, tuple(sorted(lying)), "")
    plan = search(puzzle.ground, agent, puzzle.boxes, puzzle.rows, puzzle.cols)
    best = cheapest(puzzle, (agent, puzzle.boxes), 1000)
    assert (plan is None) == (best is None)
    if plan is not None:
        assert puzzle.trace(plan)[-1][1] == puzzle.targets
        assert plan_cost(puzzle, plan, 1000) == best


def test_a_published_level_is_solved_in_its_known_number_of_moves():
    """David W. Skinner's Microban, level 1: 33 moves, 8 of them pushes."""
    lines = ["####  ", "# .#  ", "#  ###", "#*@  #", "#  $ #", "#  ###", "####  "]
    cells = "".join(lines)
    marks = bytes("# .$*@+".index(mark) for mark in cells)
    ground = bytes({BOX: FLOOR, AGENT: FLOOR, BOX_ON_TARGET: TARGET}.get(mark, mark) for mark in marks)
    boxes = tuple(cell for cell, mark in enumerate(marks) if mark in (BOX, BOX_ON_TARGET))
    puzzle = sokoban.Puzzle(7, 6, ground, cells.index("@"), boxes, "")
    solution = sokoban.solve(puzzle)
    assert len(solution) == 33
    assert plan_cost(puzzle, solution, 1000) // 1000 == 8


@pytest.mark.parametrize("difficulty", DIFFICULTIES[:3], ids=str)
def test_remaining_moves_are_exact_up_to_those_of_the_start(difficulty):
    for index in range(5):
        puzzle = make(index, difficulty)
        start = (puzzle.agent, puzzle.boxes)
        remaining = remaining_moves(puzzle)
        assert remaining.start == cheapest(puzzle, start, 1) <= len(puzzle.solution)
        seen, queue = {start}, [start]
        for state in queue:
            moves = cheapest(puzzle, state, 1)
            assert remaining.of(state) == (remaining.start if moves is None else min(moves, remaining.start))
            for move in "UDLR":
                if (after := step(puzzle, state, move)) and after not in seen and len(seen) < 60:
                    seen.add(after)
                    queue.append(after)


def test_a_search_that_was_cut_short_still_pays_nothing_for_the_start(monkeypatch):
    puzzle = make(0, DIFFICULTIES[4])
    *_, nearly, solved = puzzle.trace(puzzle.solution)
    exact = remaining_moves(puzzle)
    monkeypatch.setitem(remaining_moves.__wrapped__.__globals__, "_MAX_TABLE", 20)
    cut_short = remaining_moves.__wrapped__(puzzle)
    assert 1 < cut_short.start < exact.start
    assert cut_short.of((puzzle.agent, puzzle.boxes)) == cut_short.start
    assert (cut_short.of(nearly), cut_short.of(solved)) == (1, 0)


def test_small_levels_are_many():
    assert len({canonical(make(index)) for index in range(1000)}) > 800


def test_generation_is_the_same_on_every_machine():
    """Data made by one version of this code belongs to it: change the digest only with a note in the changelog."""
    digest = hashlib.blake2b(digest_size=8)
    for difficulty in DIFFICULTIES:
        for index in range(3):
            puzzle = make(index, difficulty)
            digest.update(sokoban.states(puzzle, puzzle.solution).tobytes())
    assert digest.hexdigest() == "7388378d7fc7abc1"


def test_an_unsatisfiable_search_ends_with_one_line():
    with pytest.raises(ValueError, match=r"no level within .* in 20000 tries; widen"):
        sokoban.generate(sokoban.Difficulty(3, 3), rng_for(0, "train", 0), lambda key: False)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rows": 2}, "2x5 cells must have 3 to 255"),
        ({"boxes": 0}, "boxes=0 must be from 1 to 5"),
        ({"boxes": 5, "rows": 9, "cols": 9}, "boxes=5 must be .* at most max_plan=4"),
        ({"boxes": 4}, "4 boxes crowd a board of 4x5"),
        ({"wall_density": 0.7}, "wall_density=0.7 must be a share"),
        ({"min_pushes": 3}, "min_pushes=3, min_plan=2, max_plan=4 must ascend from 1"),
        ({"min_pushes": 0}, "min_pushes=0, min_plan=2, max_plan=4 must ascend from 1"),
        ({"min_plan": 5}, "min_pushes=1, min_plan=5, max_plan=4 must ascend from 1"),
    ],
)
def test_impossible_difficulties_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        sokoban.Difficulty(**fields)


def transformed(puzzle: sokoban.Puzzle, turns: int, mirror: bool) -> sokoban.Puzzle:
    """The same level rotated and mirrored, with no solution."""

    def turn(cells: np.ndarray) -> np.ndarray:
        grid = np.rot90(cells.reshape(puzzle.rows, puzzle.cols), turns)
        return grid.T if mirror else grid

    ground = turn(np.frombuffer(puzzle.ground, np.uint8))
    goes_to = np.argsort(turn(np.arange(ground.size)).ravel())
    boxes = tuple(sorted(goes_to[list(puzzle.boxes)].tolist()))
    return sokoban.Puzzle(*ground.shape, ground.tobytes(), int(goes_to[puzzle.agent]), boxes, "")


@settings(max_examples=40, deadline=None)
@given(index=st.integers(0, 10_000), turns=st.integers(0, 3), mirror=st.booleans())
def test_symmetric_copies_share_their_key_and_the_length_of_their_plan(index, turns, mirror):
    puzzle = make(index, sokoban.Difficulty(3, 5, 1, 2, 6))
    copy = transformed(puzzle, turns, mirror)
    assert canonical(copy) == canonical(puzzle)
    assert len(sokoban.solve(copy)) == len(puzzle.solution)


def test_different_levels_have_different_keys():
    others = [replace(PUZZLE, agent=0), replace(PUZZLE, boxes=(6,)), replace(PUZZLE, ground=TWO.ground)]
    assert len({canonical(puzzle) for puzzle in (PUZZLE, *others)}) == 4


@pytest.mark.parametrize("lines", [["$ .", "  @", "   "], ["@#$.", "####", "    "], ["@$$..", "     "]])
def test_solve_refuses_the_unsolvable(lines):
    marks = bytes("# .$*@+".index(mark) for mark in "".join(lines))
    ground = bytes({BOX: FLOOR, AGENT: FLOOR}.get(mark, mark) for mark in marks)
    boxes = tuple(cell for cell, mark in enumerate(marks) if mark == BOX)
    puzzle = sokoban.Puzzle(len(lines), len(lines[0]), ground, marks.index(AGENT), boxes, "")
    with pytest.raises(ValueError, match="the level has no solution"):
        sokoban.solve(puzzle)
    with pytest.raises(ValueError, match="the level has no solution"):
        remaining_moves(puzzle)


def test_states_show_walks_and_pushes():
    shown = sokoban.states(PUZZLE, "RR").reshape(3, 12)[:, 4:8]
    np.testing.assert_array_equal(
        shown, [[AGENT, BOX, FLOOR, TARGET], [FLOOR, AGENT, BOX, TARGET], [FLOOR, FLOOR, AGENT, BOX_ON_TARGET]]
    )


@pytest.mark.parametrize("solution", ["L", "DD", "RRR", "RURD", "URDD", "x"])
def test_illegal_moves_are_refused(solution):
    with pytest.raises(ValueError, match=f"move {len(solution)} of '{solution}' is illegal"):
        sokoban.states(PUZZLE, solution)


def test_the_planner_scores_everything():
    verdict = judge(frames("RR", hold=3))
    assert verdict.solved
    assert verdict.components == {"solved": 1.0, "progress": 1.0, "error": 0.0}
    assert (verdict.broken_rule, verdict.frame, verdict.f1) == (None, None, 1.0)


def test_any_way_is_accepted_and_measured_against_the_planner():
    detour = judge(frames("UDRR"))
    assert (detour.solved, detour.precision, detour.recall) == (True, 1.0, 1.0)  # pushes count, walks do not
    other_order = judge(frames("DLLUDRU", puzzle=TWO), TWO)
    assert (other_order.solved, other_order.precision, other_order.recall) == (True, 0.5, 0.5)  # the final boxes


def test_the_agent_may_walk_on_when_all_is_solved():
    assert judge(frames("RRLLU")).solved


def test_progress_is_that_of_the_nearest_state_of_the_valid_prefix():
    assert judge(frames("R")).components["progress"] == 0.5
    assert judge(frames("U")).components["progress"] == 0.0
    assert judge(frames("RLU")).components["progress"] == 0.5
    assert judge(frames("RUR")).components["progress"] == 0.5


def test_a_dead_state_earns_nothing():
    level = {"task": "sokoban", "board": ["    ", " $. ", " @  "], "solution": "LUR"}
    puzzle = sokoban.Puzzle.from_json(level)
    verdict = judge(frames("U", puzzle=puzzle), puzzle)  # the box is at the upper edge for ever
    assert (verdict.broken_rule, verdict.components["progress"]) == ("not_solved", 0.0)


def test_standing_still_earns_nothing():
    verdict = judge(np.repeat(frames(""), 9, axis=0))
    assert verdict.components == {"solved": 0.0, "progress": 0.0, "error": 0.0}
    assert (verdict.broken_rule, verdict.frame, verdict.precision, verdict.recall) == ("not_solved", 8, 0.0, 0.0)


def test_the_unit_of_overlap_is_pushes_and_final_boxes():
    verdict = judge(frames("R"))  # one of two pushes; the final box is elsewhere
    assert (verdict.precision, verdict.recall) == (1 / 2, 1 / 3)


def put(frame: int, *cells: tuple[int, int]) -> Callable[[np.ndarray], None]:
    """An edit of a video: cells (index, label) of one frame."""

    def edit(labels_TRK: np.ndarray) -> None:
        for cell, label in cells:
            labels_TRK[frame].flat[cell] = label

    return edit


# Name: the walk, the edit of its video, and the rule and frame that it breaks.
# In cells 4 to 7, "RR" shows agent, box, floor, target; then floor, agent, box, target; then floor, floor, agent, box.
BROKEN = {
    "unreadable": ("RR", put(1, (0, board.UNREADABLE)), "unreadable_cell", 1),
    "unreadable start": ("RR", put(0, (0, board.UNREADABLE)), "unreadable_cell", 0),
    "agent starts elsewhere": ("RR", put(0, (4, FLOOR), (0, AGENT)), "start_changed", 0),
    "box starts elsewhere": ("RR", put(0, (5, FLOOR), (6, BOX)), "start_changed", 0),
    "starts in another level": ("RR", put(0, (3, FLOOR)), "start_changed", 0),
    "agent vanishes": ("RR", put(1, (5, FLOOR)), "no_agent", 1),
    "two agents": ("RR", put(1, (0, AGENT)), "two_agents", 1),
    "agent onto a wall": ("URRD", put(3, (2, FLOOR), (3, AGENT)), "walked_through_wall", 3),
    "teleport": ("U", put(1, (0, FLOOR), (11, AGENT)), "teleport", 1),
    "box vanishes": ("RR", put(1, (6, FLOOR)), "box_vanished", 1),
    "agent walks over the box": ("R", put(1, (5, AGENT), (6, FLOOR)), "box_vanished", 1),
    "one more box": ("RR", put(1, (0, BOX)), "box_added", 1),
    "box moves by itself": ("U", put(1, (5, FLOOR), (6, BOX)), "box_moved", 1),
    "box moves while the agent stands": ("", put(1, (5, FLOOR), (6, BOX)), "box_moved", 1),
    "box jumps to the target": ("R", put(1, (6, FLOOR), (7, BOX_ON_TARGET)), "box_moved", 1),
    "box is pulled": ("RL", put(2, (6, FLOOR), (5, BOX)), "box_moved", 2),
    "box in a wall": ("RR", put(1, (6, FLOOR), (3, BOX)), "box_in_wall", 1),
    "wall erased": ("RR", put(1, (3, FLOOR)), "wall_changed", 1),
    "wall built": ("RR", put(1, (0, WALL)), "wall_changed", 1),
    "target erased": ("RR", put(1, (7, FLOOR)), "target_moved", 1),
    "target comes to the box": ("R", put(1, (6, BOX_ON_TARGET), (7, FLOOR)), "target_moved", 1),
    "target under the agent": ("RR", put(1, (5, AGENT_ON_TARGET)), "target_moved", 1),
    "box leaves the target": ("RR", put(3, (7, TARGET), (0, BOX)), "solution_left", 3),
}


@pytest.mark.parametrize("name", BROKEN)
def test_each_rule_is_named_with_its_frame(name):
    walk, edit, rule, frame = BROKEN[name]
    shown = frames(walk, hold=2)
    edit(shown)
    verdict = judge(shown)
    assert (verdict.solved, verdict.broken_rule, verdict.frame) == (False, rule, frame)


def test_two_boxes_may_not_be_pushed_at_once():
    with pytest.raises(ValueError, match="move 1 of 'L' is illegal"):
        sokoban.states(TWO, "L")
    shown = frames("", hold=2, puzzle=TWO)
    put(1, (4, BOX), (5, BOX), (6, AGENT), (7, FLOOR))(shown)
    assert judge(shown, TWO).broken_rule == "box_moved"


@settings(max_examples=300, deadline=None)
@given(
    index=st.integers(0, 200),
    frame=st.integers(0, 4),
    cell=st.integers(0, 19),
    label=st.integers(-1, AGENT_ON_TARGET),
)
def test_any_changed_cell_unsolves_a_video(index, frame, cell, label):
    puzzle = make(index)
    shown = board.hold(sokoban.states(puzzle, puzzle.solution), 5, 1).astype(np.int16)
    before = shown[frame].flat[cell]
    shown[frame].flat[cell] = label
    assert judge(shown, puzzle).solved == (label == before)


def test_json_round_trip():
    assert PUZZLE.to_json() == BOARD
    for index in range(20):
        puzzle = make(index, sokoban.Difficulty(4, 7, 2, 2, 9))
        assert sokoban.Puzzle.from_json(puzzle.to_json()) == puzzle
    on_targets = {"task": "sokoban", "board": ["+$  ", "   *"], "solution": "DRRUL"}
    assert sokoban.Puzzle.from_json(on_targets).to_json() == on_targets


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "maze"}, "task is 'maze'"),
        ({"board": None}, "board must be a list of strings"),
        ({"board": ["   #", "@$.", "    "]}, "row 2 has 3 cells, row 1 has 4"),
        ({"board": ["   #", "@$x.", "    "]}, "row 2 has the character 'x'"),
        ({"board": ["   #", " $ .", "    "]}, "0 agents"),
        ({"board": ["@  #", "@$ .", "    "]}, "2 agents"),
        ({"board": ["   #", "@  .", "    "]}, "0 boxes and 1 targets"),
        ({"board": ["   #", "@$  ", "    "]}, "1 boxes and 0 targets"),
        ({"board": ["   #", "@$$.", "    "]}, "2 boxes and 1 targets"),
        ({"board": ["   #", "@*  ", "    "]}, "every box is on a target already"),
        ({"solution": "R"}, "solution 'R' does not end with every box on a target"),
        ({"solution": "RRR"}, "move 3 of 'RRR' is illegal"),
        ({"solution": "L"}, "move 1 of 'L' is illegal"),
        ({"solution": 3}, "solution is 3; it must be a string"),
    ],
)
def test_broken_json_is_refused_with_one_line(change, message):
    with pytest.raises(ValueError, match=message) as error:
        sokoban.Puzzle.from_json(BOARD | change)
    assert "\n" not in str(error.value)


def test_verify_reads_any_size():
    states = board.hold(sokoban.states(PUZZLE, "RR"), 9, 2)
    for height, width in ((12, 16), (31, 50), (240, 320)):
        assert verify(PUZZLE, board.render(states, sokoban.LOOKS, height, width)).solved
