"""Maze, FlowFree and Sokoban: generated, solved, rendered and verified with numpy alone.

Each puzzle is a room (a package) with the same files and the same names, so that everything else is written once:

    NAME            its name in tables and folders
    Difficulty      frozen dataclass: board size, plan length, ...
    Puzzle          frozen dataclass with rows, cols, solution; to_json() -> dict, from_json(dict) -> Puzzle
    LOOKS           uint8 (labels, 2, 3): rim and core colour of every label
    COMPONENTS      names of the dense reward components that `judge` gives
    generate(difficulty, rng, accept) -> Puzzle     solvable, within the difficulty, with accept(canonical key) true
    canonical(puzzle) -> bytes                      equal for all symmetric copies of a puzzle
    solve(puzzle) -> solution                       the planner; ValueError if there is no solution
    states(puzzle, solution) -> int8 (M+1, R, K)    labels after each of M moves, [0] the puzzle alone
    prompt(puzzle) -> str
    judge(puzzle, labels_TRK, rmse_TRK) -> Verdict  the rules
"""

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vrlvr.puzzles import board, flow_free, maze, sokoban
from vrlvr.puzzles.splits import rng_for, split_of
from vrlvr.puzzles.verdict import Verdict

ROOMS: dict[str, Any] = {"maze": maze, "flowfree": flow_free, "sokoban": sokoban}
MAX_FILE_BYTES = 1 << 20  # of a puzzle's JSON; the largest boards take a tenth of it
Puzzle = maze.Puzzle | flow_free.Puzzle | sokoban.Puzzle


class Reading(NamedTuple):
    """The boards that a video shows: labels_TRK int16 and rmse_TRK float32, see `board.read`."""

    labels_TRK: NDArray[np.int16]
    rmse_TRK: NDArray[np.float32]


# Default weights of the components, {task: {component: weight}}; a solved, clean video earns 1.
DENSE_REWARD = {
    "maze": {"solved": 0.6, "progress": 0.4, "error": -0.2},
    "flowfree": {"solved": 0.4, "progress": 0.2, "filled": 0.2, "process": 0.2, "error": -0.2},
    "sokoban": {"solved": 0.6, "progress": 0.4, "error": -0.2},
}


def room_of(puzzle: Puzzle) -> Any:
    """The room that a puzzle belongs to."""
    return ROOMS[puzzle.task]


def generate(task: str, difficulty: Any, seed: int, split: str, index: int) -> Puzzle:
    """Instance `index` of a split: a pure function of its arguments."""
    return ROOMS[task].generate(difficulty, rng_for(seed, split, index), lambda key: split_of(key) == split)


def canonical(puzzle: Puzzle) -> bytes:
    """A key that all symmetric copies of a puzzle share."""
    return room_of(puzzle).canonical(puzzle)


def render(puzzle: Puzzle, height: int, width: int, num_frames: int, frames_per_move: int) -> NDArray[np.uint8]:
    """The planner's video, video_TYXC uint8. Frame 0 shows the puzzle alone; the solved state is held to the end."""
    room = room_of(puzzle)
    states = board.hold(room.states(puzzle, puzzle.solution), num_frames, frames_per_move)
    return board.render(states, room.LOOKS, height, width)


def render_first_frame(puzzle: Puzzle, height: int, width: int) -> NDArray[np.uint8]:
    """The puzzle alone, uint8 (Y, X, 3)."""
    return render_states(puzzle, room_of(puzzle).states(puzzle, puzzle.solution)[:1], height, width)[0]


def render_states(puzzle: Puzzle, states: NDArray[np.integer], height: int, width: int) -> NDArray[np.uint8]:
    """Any states of a puzzle (T, R, K), drawn frame by frame."""
    return board.render(states, room_of(puzzle).LOOKS, height, width)


@lru_cache(maxsize=4096)
def _start(puzzle: Puzzle) -> NDArray[np.int8]:
    """The labels of a puzzle's first frame (R, K)."""
    return room_of(puzzle).states(puzzle, puzzle.solution)[0]


def verify(puzzle: Puzzle, video: NDArray[np.uint8]) -> Verdict:
    """Judges video_TYXC (uint8 RGB) of any size that the board fits, by the puzzle's own state and rules.

    Every frame counts and between two frames at most one move is made, whatever the frame rate: a video that lost frames is
    lawful as long as each state is still shown. Colours may be off by as much as `calibrate` allows, told by frame 0.
    """
    return judge(puzzle, read(puzzle, video))


def judge(puzzle: Puzzle, reading: Reading) -> Verdict:
    """What `verify` says of a video that was read."""
    return room_of(puzzle).judge(puzzle, *reading)


def read(puzzle: Puzzle, video: NDArray[np.uint8], size: tuple[int, int] | None = None) -> Reading:
    """The boards that video_TYXC shows. size: height and width in which they were drawn, if it was scaled since."""
    return Reading(*board.read(video, room_of(puzzle).LOOKS, puzzle.rows, puzzle.cols, size, _start(puzzle)))


def read_many(
    puzzles: Sequence[Puzzle], videos: NDArray[np.uint8], size: tuple[int, int] | None = None
) -> list[Reading]:
    """`read` over videos_BTYXC, all boards of a kind at once."""
    kinds: dict[tuple[str, int, int], list[int]] = {}
    for i, puzzle in enumerate(puzzles):
        kinds.setdefault((puzzle.task, puzzle.rows, puzzle.cols), []).append(i)
    readings: dict[int, Reading] = {}
    for (task, rows, cols), indices in kinds.items():
        starts = np.stack([_start(puzzles[i]) for i in indices])
        read_BTRK = board.read(videos[indices], ROOMS[task].LOOKS, rows, cols, size, starts)
        readings |= {i: Reading(*of_one) for i, *of_one in zip(indices, *read_BTRK, strict=True)}
    return [readings[i] for i in range(len(puzzles))]


def verify_many(
    puzzles: Sequence[Puzzle], videos: NDArray[np.uint8], size: tuple[int, int] | None = None
) -> list[Verdict]:
    """`verify` over videos_BTYXC. size: see `read`."""
    return [judge(*pair) for pair in zip(puzzles, read_many(puzzles, videos, size), strict=True)]


def to_text(puzzle: Puzzle) -> str:
    """A puzzle's state and solution as its file holds them: equal for equal puzzles."""
    return json.dumps(puzzle.to_json(), sort_keys=True) + "\n"


def save(puzzle: Puzzle, path: Path) -> None:
    """Writes a puzzle's state and solution as JSON."""
    path.write_text(to_text(puzzle), encoding="utf-8")


def from_json(data: Any) -> Puzzle:
    """The puzzle of a `to_json`. Raises ValueError with one line if it is none."""
    if not isinstance(data, dict):
        raise ValueError(f"it is a {type(data).__name__}, a puzzle is an object")
    try:
        task = data["task"]
        if not isinstance(task, str) or task not in ROOMS:
            raise ValueError(f"task {task!r:.40} is unknown; known are {', '.join(ROOMS)}")
        return ROOMS[task].Puzzle.from_json(data)
    except KeyError as error:
        raise ValueError(f"it has no {error}") from None


def load(path: Path) -> Puzzle:
    """Reads a puzzle written by `save`. Raises ValueError with one line if the file is no puzzle."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_FILE_BYTES + 1)
        if len(text) > MAX_FILE_BYTES:
            raise ValueError(f"larger than {MAX_FILE_BYTES} bytes")
        return from_json(json.loads(text))
    except (OSError, ValueError, RecursionError) as error:
        why = getattr(error, "strerror", None) or error
        raise ValueError(f"{path} is no puzzle file ({why}); use one written by `vrlvr data`") from error
