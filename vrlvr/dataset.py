"""Data sets on disk, in the public layout of the paper: planner's videos with their puzzles.

    OUT/{train,test}/{maze,flowfree,sokoban}/00000.mp4   the planner's video
                                             00000.png   its first frame: the puzzle alone
                                             00000.json  the puzzle's state and solution
    OUT/metadata_{all,maze,flowfree,sokoban}.csv         video, prompt, input_image, puzzle: paths relative to OUT,
                                                         train before test
    OUT/manifest.json                                    the arguments that made it

An instance is complete once its JSON exists, which is written last: a build that was broken off goes on from there.
"""

import csv
import io
import json
import multiprocessing
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vrlvr import puzzles
from vrlvr.atomic_write import replacing, write_text
from vrlvr.errors import UserError
from vrlvr.puzzles import ROOMS, Puzzle, board
from vrlvr.video_io import write_mp4

FPS = 16
COLUMNS = ("video", "prompt", "input_image", "puzzle")
_CHUNK = 8  # instances that a worker makes between two reports


@dataclass(frozen=True)
class Instance:
    """One video to make."""

    split: str
    task: str
    index: int

    @property
    def stem(self) -> str:
        """Its files' common path, relative to the data set."""
        return f"{self.split}/{self.task}/{self.index:05d}"


@dataclass(frozen=True)
class Recipe:
    """Everything that the content of a data set depends on."""

    num_train: int
    num_test: int
    seed: int
    height: int
    width: int
    num_frames: int
    frames_per_move: int
    tasks: tuple[str, ...]
    difficulties: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """As the manifest holds it."""
        return json.loads(json.dumps(asdict(self)))

    def instances(self) -> list[Instance]:
        """All videos, in the order of the metadata."""
        counts = {"train": self.num_train, "test": self.num_test}
        return [
            Instance(split, task, i) for split, count in counts.items() for task in self.tasks for i in range(count)
        ]


def frames_per_move(num_frames: int) -> int:
    """Frames that a move lasts: 4, which is a group of the video codec, where that leaves 8 moves or more; else 1."""
    return 4 if num_frames >= 1 + 4 * 8 else 1


def full_size_difficulties(num_frames: int = 81) -> dict[str, Any]:
    """Boards for full-size frames whose plans fit the video: 20 moves in 81 frames."""
    moves = max(1, (num_frames - 1) // frames_per_move(num_frames))
    fewest = max(1, min(8, moves // 2))
    flow = ((5, 20), (6, 16), (7, 12))
    return {
        "maze": puzzles.maze.Difficulty(9, 9, min_plan=fewest, max_plan=moves),
        "flowfree": puzzles.flow_free.Difficulty(
            7, 7, mixes=flow, max_moves=moves, cells_per_move=-(-18 // moves), alongside=0.1
        ),
        "sokoban": puzzles.sokoban.Difficulty(
            7, 7, boxes=2, min_plan=fewest, max_plan=moves, min_pushes=min(3, fewest)
        ),
    }


def build(
    out: Path,
    num_train: int,
    num_test: int,
    seed: int = 0,
    height: int = 480,
    width: int = 832,
    num_frames: int = 81,
    tasks: Sequence[str] = tuple(ROOMS),
    difficulties: Mapping[str, Any] | None = None,
    workers: int | None = None,
) -> None:
    """Makes a data set in `out`, or completes one that was begun with the same arguments.

    difficulties: by task; full_size_difficulties by default. workers: processes, one per core by default.
    Raises UserError with one line for arguments that cannot be met, for a folder of other content, and where the file
    system refuses; what was complete by then stays and counts in the next call.
    """
    chosen = dict(difficulties if difficulties is not None else full_size_difficulties(num_frames))
    _check(num_train, num_test, seed, height, width, num_frames, tasks, chosen)
    recipe = Recipe(
        num_train, num_test, seed, height, width, num_frames, frames_per_move(num_frames), tuple(tasks),
        {task: chosen[task] for task in tasks},
    )  # fmt: skip
    _open(out, recipe)
    instances = recipe.instances()
    missing = [instance for instance in instances if not (out / f"{instance.stem}.json").exists()]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        bar = progress.add_task(str(out), total=len(instances), completed=len(instances) - len(missing))
        for done in _make_all(out, recipe, missing, workers or os.cpu_count() or 1):
            progress.advance(bar, done)
    write_metadata(out, recipe.tasks, instances)


def make(out: Path, recipe: Recipe, instance: Instance) -> None:
    """Writes the three files of an instance, the JSON last."""
    try:
        puzzle = puzzles.generate(
            instance.task, recipe.difficulties[instance.task], recipe.seed, instance.split, instance.index
        )
        write_files(out / instance.stem, puzzle, recipe.height, recipe.width, recipe.num_frames, recipe.frames_per_move)
    except ValueError as error:
        raise UserError(f"{instance.stem} cannot be made: {error}") from error


def write_files(stem: Path, puzzle: Puzzle, height: int, width: int, num_frames: int, frames_per_move: int) -> None:
    """Writes a puzzle's three files, the JSON last. Raises ValueError if the plan does not fit the frames."""
    room = puzzles.room_of(puzzle)
    states = room.states(puzzle, puzzle.solution)
    order = board.hold(np.arange(len(states)), num_frames, frames_per_move)
    stills = board.render(states, room.LOOKS, height, width)
    write_mp4(stem.with_suffix(".mp4"), stills, FPS, holds=np.bincount(order).tolist())
    with replacing(stem.with_suffix(".png")) as path:
        Image.fromarray(stills[0]).save(path, format="PNG", compress_level=3)
    with replacing(stem.with_suffix(".json")) as path:
        puzzles.save(puzzle, path)


def _make_chunk(out: Path, recipe: Recipe, chunk: Sequence[Instance]) -> int:
    for instance in chunk:
        make(out, recipe, instance)
    return len(chunk)


def _make_all(out: Path, recipe: Recipe, missing: Sequence[Instance], workers: int) -> Iterator[int]:
    """Makes all instances, yielding how many more are complete. After a failure, nothing new is begun."""
    chunks = (missing[i : i + _CHUNK] for i in range(0, len(missing), _CHUNK))
    job = partial(_make_chunk, out, recipe)
    if workers == 1 or len(missing) <= _CHUNK:
        yield from map(job, chunks)
        return
    # Fresh processes: a forked one could inherit a lock that a thread of a numerical library held.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _ignore_interrupts) as pool:
        running: set[Future[int]] = {pool.submit(job, chunk) for chunk in islice(chunks, 2 * workers)}
        try:
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
                running |= {pool.submit(job, chunk) for chunk in islice(chunks, len(done))}
        except BrokenProcessPool as error:
            raise UserError(f"a worker died, as for lack of memory; run again with fewer than {workers}") from error
        finally:
            pool.shutdown(cancel_futures=True)


def _ignore_interrupts() -> None:
    """Leaves Ctrl-C to the parent, which lets the workers finish their instances."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _check(
    num_train: int,
    num_test: int,
    seed: int,
    height: int,
    width: int,
    num_frames: int,
    tasks: Sequence[str],
    difficulties: Mapping[str, Any],
) -> None:
    """Raises UserError for arguments that no data set can have."""
    for name, value, least in (("num_train", num_train, 0), ("num_test", num_test, 0), ("seed", seed, 0)):
        if value < least:
            raise UserError(f"{name}={value} must be {least} or more")
    if num_frames < 5 or num_frames % 4 != 1:
        near = max(5, num_frames // 4 * 4 + 1)
        raise UserError(f"num_frames={num_frames} must be 1 + 4k and at least 5, as the video codec needs; use {near}")
    if unknown := [task for task in tasks if task not in ROOMS]:
        raise UserError(f"task {unknown[0]!r} is unknown; use any of {', '.join(ROOMS)}")
    if not tasks or len(set(tasks)) != len(tasks):
        raise UserError(f"tasks={list(tasks)} must name at least one task, each once")
    for task in tasks:
        if task not in difficulties:
            raise UserError(f"difficulties lack {task}; give one for every task")
        try:
            board.layout(difficulties[task].rows, difficulties[task].cols, height, width)
        except ValueError as error:
            raise UserError(str(error)) from error
    if height % 2 or width % 2:
        raise UserError(f"{height}x{width} has an odd side, which H.264 cannot hold; use even height and width")


def _open(out: Path, recipe: Recipe) -> None:
    """Prepares the folders and the manifest. Raises UserError if the folder holds anything but this data set."""
    manifest = out / "manifest.json"
    wanted = recipe.to_json()
    try:
        if manifest.exists():
            _compare(out, json.loads(manifest.read_text(encoding="utf-8")), wanted)
        elif out.is_dir() and any(out.iterdir()):
            raise UserError(f"{out} has files but no manifest.json, so it is no data set; choose an empty folder")
        else:
            out.mkdir(exist_ok=True)
            write_text(manifest, json.dumps(wanted, indent=2) + "\n")
        for split in ("train", "test"):
            for task in recipe.tasks:
                (out / split / task).mkdir(parents=True, exist_ok=True)
    except json.JSONDecodeError as error:
        raise UserError(f"{manifest} is broken ({error}); choose another folder") from error
    except OSError as error:
        raise UserError(f"{out} cannot be used ({error.strerror}); choose a folder whose parent exists") from error


def _compare(out: Path, former: dict[str, Any], wanted: dict[str, Any]) -> None:
    differing = [key for key in sorted(former.keys() | wanted.keys()) if former.get(key) != wanted.get(key)]
    if differing:
        key = differing[0]
        raise UserError(
            f"{out} was made with {key}={former.get(key)}, not {wanted.get(key)}; repeat the former arguments or choose "
            "another folder"
        )


def write_metadata(out: Path, tasks: Sequence[str], instances: Sequence[Instance]) -> None:
    """One CSV of all instances, and one a task."""
    rows = []
    for instance in instances:
        stem = instance.stem
        prompt = ROOMS[instance.task].prompt(puzzles.load(out / f"{stem}.json"))
        rows.append((instance.task, (f"{stem}.mp4", prompt, f"{stem}.png", f"{stem}.json")))
    for name in ("all", *tasks):
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(row for task, row in rows if name in ("all", task))
        write_text(out / f"metadata_{name}.csv", text.getvalue())
