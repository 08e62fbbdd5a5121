"""Puzzles as the model sees them: task numbers, first frames, planner's videos."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from vrlvr import puzzles
from vrlvr.config import Config, DataConfig
from vrlvr.distributed import World
from vrlvr.errors import UserError
from vrlvr.puzzles import Puzzle

_MAX_DRAWS = 10  # draws a wanted puzzle, before a split is taken to be exhausted


def difficulty(data: DataConfig, task: str) -> object:
    """The configured difficulty of a task."""
    return getattr(data, task)


@contextmanager
def _user_errors() -> Iterator[None]:
    """What the puzzles refuse (a difficulty, a file, a frame too small) is the user's to mend."""
    try:
        yield
    except ValueError as error:
        raise UserError(str(error)) from error


def generate(config: Config, split: str, task: str, index: int) -> Puzzle:
    """Puzzle `index` of a split of a task. Raises UserError if none of the configured difficulty is found."""
    with _user_errors():
        return puzzles.generate(task, difficulty(config.data, task), config.seed, split, index)


def generate_all(config: Config, world: World, split: str, number: int) -> dict[str, list[Puzzle]]:
    """`number` puzzles of every task, each rank making its share; with data.dir set, `train` and `test` are read there.

    With data.encoded set `val` is read there too: the last of the training split, which no other split then holds.
    """
    data = config.data
    if data.dir and (data.encoded or split in ("train", "test")):
        return {task: _read(Path(data.dir), split, task, number, data) for task in data.tasks}
    return {task: _draw(config, world, split, task, number) for task in config.data.tasks}


def _draw(config: Config, world: World, split: str, task: str, number: int) -> list[Puzzle]:
    """The split's first puzzles; for `test` no two that are symmetric copies, so that every one counts once."""
    drawn: dict[bytes | int, Puzzle] = {}
    for start in range(0, _MAX_DRAWS * number, number):
        mine = [generate(config, split, task, start + i) for i in world.share(number)]
        for puzzle in (puzzle for part in world.gather(mine) for puzzle in part):
            drawn.setdefault(puzzles.canonical(puzzle) if split == "test" else len(drawn), puzzle)
        if len(drawn) >= number:
            return list(drawn.values())[:number]
    raise UserError(
        f"only {len(drawn)} distinct {task} puzzles were found for the {split} split, {number} are asked for; "
        f"lower data.num_{split} or enlarge the boards of data.{task}"
    )


def read_split(run_dir: Path, split: str) -> dict[str, list[Puzzle]]:
    """The puzzles of a run's split, by task. Raises UserError if the data stage has not been run, or its file is damaged."""
    path = run_dir / "puzzles" / f"{split}.jsonl"
    if not path.exists():
        raise UserError(f"{path} is missing; run --stage data first")
    by_task: dict[str, list[Puzzle]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            puzzle = puzzles.from_json(json.loads(line))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: line {number} is no puzzle ({error}); run --stage data anew") from error
        by_task.setdefault(puzzle.task, []).append(puzzle)
    return by_task


def _read(folder: Path, split: str, task: str, number: int, data: DataConfig) -> list[Puzzle]:
    where = folder / ("train" if split == "val" else split) / task
    paths = sorted(where.glob("*.json"))
    kept = data.num_val if data.encoded and split == "train" else 0  # for validation
    if len(paths) < number + kept:
        raise UserError(
            f"{where} holds {len(paths)} puzzles, {number + kept} are asked for; make more with `vrlvr data` or lower "
            f"data.num_{split}"
        )
    with _user_errors():
        return [puzzles.load(path) for path in (paths[-number:] if split == "val" else paths[:number])]


def videos_of(batch: Sequence[Puzzle], data: DataConfig) -> np.ndarray:
    """The planner's videos_BTYXC, uint8. Raises UserError if a board does not fit the frame, or a plan the video."""
    size = (data.height, data.width, data.num_frames, data.frames_per_move)
    with _user_errors():
        return np.stack([puzzles.render(p, *size) for p in batch])


@dataclass(frozen=True)
class Prompts:
    """What conditions the model on B puzzles. prompt_B: int64 rows of the policy's text table."""

    puzzles: list[Puzzle]
    first_BC1HW: Tensor
    prompt_B: Tensor

    def part(self, rows: slice) -> "Prompts":
        """Some of them."""
        return Prompts(self.puzzles[rows], self.first_BC1HW[rows], self.prompt_B[rows])
