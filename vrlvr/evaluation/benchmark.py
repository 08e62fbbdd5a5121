"""The puzzles that every system is asked, and what became of each: the one way from any system's answers to results.json."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Literal

from vrlvr import puzzles
from vrlvr.atomic_write import write_text
from vrlvr.errors import UserError
from vrlvr.evaluation.metrics import Row, summarise
from vrlvr.evaluation.overlap_intervals import overlap_intervals
from vrlvr.evaluation.tables import write_results
from vrlvr.puzzles import ROOMS, Puzzle
from vrlvr.puzzles.verdict import Verdict
from vrlvr.verifier_version import verifier_version

Status = Literal["judged", "missing", "undecodable"]


@dataclass(frozen=True)
class Item:
    """A test puzzle as a system gets it. id: `maze-00017`, which names its video: the task and the number of its file."""

    id: str
    puzzle: Puzzle
    prompt: str
    first_frame: Path  # PNG


@dataclass(frozen=True)
class Outcome:
    """What became of one item. A missing or undecodable answer has a verdict too: not solved, precision and recall 0.

    note: why it could not be decoded, or what was done to its size. gliding: the verdict where moves may glide, see
    vrlvr.evaluation.gliding; None if that is the same.
    """

    item: Item
    status: Status
    verdict: Verdict
    note: str = ""
    gliding: Verdict | None = None


def read_items(data: Path, tasks: Sequence[str] | None = None, num_puzzles: int | None = None) -> list[Item]:
    """The test puzzles of a data set made by `vrlvr data`, the first num_puzzles of each task (None: all).

    Raises UserError with one line where data holds no such puzzles, or a file is damaged.
    """
    if num_puzzles is not None and num_puzzles < 1:
        raise UserError(f"num_puzzles={num_puzzles} must be at least 1")
    if tasks and len(set(tasks)) != len(tasks):
        raise UserError(f"tasks {','.join(tasks)} must name each task once")
    if unknown := [task for task in tasks or () if task not in ROOMS]:
        raise UserError(f"task {unknown[0]!r} is unknown; use any of {', '.join(ROOMS)}")
    items = []
    for task in tasks or [task for task in ROOMS if (data / "test" / task).is_dir()]:
        paths = sorted((data / "test" / task).glob("*.json"))[:num_puzzles]
        if len(paths) < (num_puzzles or 1):
            raise UserError(
                f"{data}/test/{task} holds {len(paths)} puzzles, {num_puzzles or 1} are asked for; make more with `vrlvr data`"
            )
        items += [_item(task, path) for path in paths]
    if not items:
        raise UserError(f"{data} has no folder test/ with puzzles; make one with `vrlvr data --out {data}`")
    return items


def check_system(system: str) -> None:
    """Raises UserError for a name that no table can show; to be called before hours of work find that."""
    if not system.strip():
        raise UserError("system is empty; give the name that tables shall show")


def failed(item: Item, status: Status) -> Outcome:
    """The outcome of an answer that is missing or that nobody can read."""
    components = {name: float(name == "error") for name in puzzles.room_of(item.puzzle).COMPONENTS}
    return Outcome(item, status, Verdict(False, components, status, 0, 0.0, 0.0))


def rows_of(system: str, outcomes: Sequence[Outcome]) -> list[Row]:
    """A row a task, with what tells how it was measured. Several outcomes of one item are samples of one puzzle."""
    rows = []
    for task in dict.fromkeys(outcome.item.puzzle.task for outcome in outcomes):
        of_task = [outcome for outcome in outcomes if outcome.item.puzzle.task == task]
        by_item: dict[str, list[Verdict]] = {}
        for outcome in of_task:
            by_item.setdefault(outcome.item.id, []).append(outcome.verdict)
        row = summarise(system, task, list(by_item.values()))
        row["num_samples"] = len(of_task)
        row["num_missing"], row["num_undecodable"] = (
            sum(outcome.status == status for outcome in of_task) for status in ("missing", "undecodable")
        )
        row["precision_ci95"], row["recall_ci95"], row["f1_ci95"] = overlap_intervals(list(by_item.values()))
        row["date"], row["verifier"] = datetime.now(UTC).date().isoformat(), verifier_version()
        row["test_set"] = puzzle_digest({outcome.item.id: outcome.item.puzzle for outcome in of_task}.values())
        rows.append(row)
    return rows


def puzzle_digest(tested: Iterable[Puzzle]) -> str:
    """What tells one set of puzzles from another: equal where the same ones were asked, in whatever order."""
    return sha256("".join(sorted(map(puzzles.to_text, tested))).encode()).hexdigest()[:12]


def write_outcomes(out: Path, system: str, outcomes: Sequence[Outcome]) -> list[Row]:
    """Writes out/results.json (the rows, which it returns) and out/outcomes.jsonl (a line an answer).

    Where a video solves its puzzle by moves that glide, the system has a second row for each task, which allows them.
    """
    lines = [
        json.dumps(
            {
                "id": outcome.item.id,
                "task": outcome.item.puzzle.task,
                "status": outcome.status,
                "solved": outcome.verdict.solved,
                "solved_gliding": (outcome.gliding or outcome.verdict).solved,
                "broken_rule": outcome.verdict.broken_rule,
                "frame": outcome.verdict.frame,
                "precision": outcome.verdict.precision,
                "recall": outcome.verdict.recall,
                "components": dict(outcome.verdict.components),
                "note": outcome.note,
            },
            sort_keys=True,
        )
        for outcome in outcomes
    ]
    write_text(out / "outcomes.jsonl", "".join(f"{line}\n" for line in lines))
    rows = rows_of(system, outcomes)
    if any(outcome.gliding is not None and outcome.gliding.solved for outcome in outcomes):
        allowed = [replace(outcome, verdict=outcome.gliding or outcome.verdict) for outcome in outcomes]
        rows += rows_of(f"{system} (gliding)", allowed)
    write_results(out / "results.json", rows)
    return rows


def _item(task: str, path: Path) -> Item:
    try:
        puzzle = puzzles.load(path)
    except ValueError as error:
        raise UserError(str(error)) from error
    if puzzle.task != task:
        raise UserError(
            f"{path} is a puzzle of {puzzle.task} among those of {task}; make the data set anew with `vrlvr data`"
        )
    return Item(f"{puzzle.task}-{path.stem}", puzzle, puzzles.room_of(puzzle).prompt(puzzle), path.with_suffix(".png"))
