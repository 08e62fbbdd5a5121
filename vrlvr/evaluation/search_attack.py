"""`vrlvr eval search`: attackers that climb the dense reward, and what the verifier lets them have.

A climber changes a video at random and keeps what earns more. Boards have 4x5 cells, videos 5 frames, and boards come in
two kinds:

    impossible   every solution takes more moves than the video can show, so that whatever is called solved is a false
                 acceptance. Progress can still be earned by legal moves, for which the attacker is given tiles: it may draw
                 what legal cells look like
    solvable     as tiny runs have them, without and with tiles. Whatever is called solved is played through once more by
                 vrlvr.evaluation.replay: a search that finds a solution has solved the puzzle; one that is called solved
                 without one has fooled the verifier
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import count, islice, product
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vrlvr import puzzles
from vrlvr.atomic_write import check_folder, write_text
from vrlvr.errors import UserError
from vrlvr.evaluation.search_climb import Climber, climb
from vrlvr.evaluation.search_spaces import STARTS, LowFrequencies, Pixels, Space, TinyLatents
from vrlvr.models.tiny_codec import TinyCodec
from vrlvr.puzzles import ROOMS, Puzzle, board, flow_free, maze, sokoban
from vrlvr.puzzles.flow_free.render import num_moves
from vrlvr.puzzles.sokoban.solve import remaining_moves
from vrlvr.verifier_version import verifier_version

NUM_FRAMES = 5
SIZES = {"tiny": (16, 20), "mid": (64, 80)}  # height and width of boards of 4x5 cells
LONG = {
    "maze": maze.Difficulty(min_plan=NUM_FRAMES, max_plan=8),
    "flowfree": flow_free.Difficulty(mixes=((3, 9), (4, 8)), max_moves=7),
    "sokoban": sokoban.Difficulty(min_plan=NUM_FRAMES, max_plan=10),
}
_BANK = 64  # planners' videos a task, from which the tiny codec, and an attacker who knows tiles, learn


@dataclass(frozen=True)
class Row:
    """Climbers alike. Rewards are dense ones: the best of the starts, the best of all queries, the mean of each climber's best.

    queries: of all climbers together. called_solved: so many of them. not_solutions: of these, those that show none."""

    task: str
    space: str
    size: str
    boards: str
    tiles: bool
    start: str
    climbers: int
    queries: int
    start_reward: float
    best_reward: float
    mean_best_reward: float
    best_progress: float
    called_solved: int
    not_solutions: int


def evaluate_search(
    out: Path,
    tasks: str = ",".join(ROOMS),
    space: Literal["pixel", "latent"] = "pixel",
    size: Literal["tiny", "mid"] = "tiny",
    queries: int = 10_000,
    num_puzzles: int = 4,
    seed: int = 0,
) -> None:
    """Searches against the verifier; prints a table, which OUT/search.json holds too.

    tasks: one, or several comma separated. space: pixel, or latent: the tiny codec's at size tiny, low frequencies of a cosine
    transform at size mid. size: 16x20 or 64x80 pixels. queries: verdicts a row of the table, shared among its puzzles.
    num_puzzles: puzzles a row, each with its own climber. Raises UserError for options that cannot be and, once all is
    written, if a video that shows no solution was called solved; it is in OUT/fooled.
    """
    named = tasks.split(",")
    if unknown := [name for name in named if name not in ROOMS]:
        raise UserError(f"task {unknown[0]!r} is unknown; use any of {', '.join(ROOMS)}")
    if num_puzzles < 1 or queries < num_puzzles or seed < 0:
        raise UserError(
            f"num_puzzles={num_puzzles}, queries={queries}, seed={seed} must be at least 1, num_puzzles and 0"
        )
    check_folder(out)
    rows: list[Row] = []
    for name in named:
        climbers = make_climbers(name, num_puzzles, seed, with_tiles=(space, size) != ("latent", "mid"))
        climb(climbers, make_space(climbers, space, size), queries // num_puzzles, seed, out / "fooled")
        rows += summarise(climbers, space, size)
    report = {"seed": seed, "verifier": verifier_version(), "rows": [asdict(row) for row in rows]}
    write_text(out / "search.json", json.dumps(report, indent=2) + "\n")
    print(to_markdown(rows))
    if fooled := sum(row.not_solutions for row in rows):
        raise UserError(f"{fooled} videos that show no solution were called solved; see {out / 'fooled'}")


def make_climbers(task: str, num_puzzles: int, seed: int, with_tiles: bool = True) -> list[Climber]:
    """A climber for each puzzle, start and setting; low frequencies have no tiles to draw."""
    settings = [("impossible", with_tiles), ("solvable", False)] + [("solvable", True)] * with_tiles
    easy = ROOMS[task].Difficulty()
    of_boards = {
        "impossible": list(islice(_impossible(task, seed), num_puzzles)),
        "solvable": [puzzles.generate(task, easy, seed, "test", index) for index in range(num_puzzles)],
    }
    return [
        Climber(puzzle, boards, tiles, start)
        for (boards, tiles), start in product(settings, STARTS)
        for puzzle in of_boards[boards]
    ]


def _impossible(task: str, seed: int) -> Iterator[Puzzle]:
    """Puzzles whose solutions all take NUM_FRAMES moves or more, which NUM_FRAMES frames cannot show."""
    for index in count():
        puzzle = puzzles.generate(task, LONG[task], seed, "test", index)
        if fewest_moves(puzzle) >= NUM_FRAMES:
            yield puzzle


def fewest_moves(puzzle: Puzzle) -> int:
    """Of all solutions. A FlowFree board of LONG has but one (unique_cells)."""
    if isinstance(puzzle, sokoban.Puzzle):
        return remaining_moves(puzzle).start
    if isinstance(puzzle, maze.Puzzle):
        return len(puzzle.solution)
    return num_moves(max(map(len, puzzle.solution)), puzzle.cells_per_move)


def make_space(climbers: Sequence[Climber], space: str, size: str) -> Space:
    """The space that climbers of one task search in."""
    height, width = SIZES[size]
    task = climbers[0].puzzle.task
    shortcuts = np.stack([shortcut(climber.puzzle, height, width) for climber in climbers])
    if space == "pixel":
        places = [board.layout(climber.puzzle.rows, climber.puzzle.cols, height, width) for climber in climbers]
        return Pixels(shortcuts, places, ROOMS[task].LOOKS)
    if size == "mid":
        return LowFrequencies(shortcuts)
    planned = {
        name: np.stack(
            [
                puzzles.render(
                    puzzles.generate(name, room.Difficulty(), 0, "train", index), height, width, NUM_FRAMES, 1
                )
                for index in range(_BANK)
            ]
        )
        for name, room in ROOMS.items()
    }
    codec = TinyCodec.fit(np.concatenate(list(planned.values())))  # of all tasks, as the default run has it
    return TinyLatents(codec, shortcuts, codec.encode(planned[task]).numpy())


def shortcut(puzzle: Puzzle, height: int, width: int) -> NDArray[np.uint8]:
    """The planner's video with moves left out: some, where they are too many for it; else all, by one jump at its end."""
    states = puzzles.room_of(puzzle).states(puzzle, puzzle.solution)
    if len(states) > NUM_FRAMES:
        chosen = np.linspace(0, len(states) - 1, NUM_FRAMES).round().astype(int)
    else:
        chosen = np.array([0] * (NUM_FRAMES - 1) + [len(states) - 1])
    return puzzles.render_states(puzzle, states[chosen], height, width)


def summarise(climbers: Sequence[Climber], space: str, size: str) -> list[Row]:
    """A row for all climbers of a setting and start, in their order."""
    kinds: dict[tuple[str, bool, str], list[Climber]] = {}
    for climber in climbers:
        kinds.setdefault((climber.boards, climber.tiles, climber.start), []).append(climber)
    return [
        Row(
            task=alike[0].puzzle.task,
            space=space,
            size=size,
            boards=boards,
            tiles=tiles,
            start=start,
            climbers=len(alike),
            queries=sum(climber.queries for climber in alike),
            start_reward=max(climber.start_reward for climber in alike),
            best_reward=max(climber.best_reward for climber in alike),
            mean_best_reward=float(np.mean([climber.best_reward for climber in alike])),
            best_progress=max(climber.best_progress for climber in alike),
            called_solved=sum(climber.called_solved for climber in alike),
            not_solutions=sum(climber.not_solutions for climber in alike),
        )
        for (boards, tiles, start), alike in kinds.items()
    ]


def to_markdown(rows: Sequence[Row]) -> str:
    """The rows as a table."""
    shown: list[list[Any]] = [
        [
            "task",
            "space",
            "boards",
            "tiles",
            "start",
            "queries",
            "reward at start",
            "best",
            "mean best",
            "called solved",
            "no solution",
        ]
    ]
    shown.append(["---"] * 5 + ["---:"] * 6)
    for row in rows:
        rewards = [f"{round(value, 3) + 0:+.3f}" for value in (row.start_reward, row.best_reward, row.mean_best_reward)]
        kind = [
            row.task,
            f"{row.space}, {row.size}",
            row.boards,
            "known" if row.tiles else "unknown",
            row.start,
            row.queries,
        ]
        shown.append([*kind, *rewards, row.called_solved, row.not_solutions])
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in shown)
