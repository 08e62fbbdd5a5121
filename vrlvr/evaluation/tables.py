"""Results on disk (results.json, gains.json) and as tables: Markdown for pages, rich for the terminal.

results.json is a list of rows {system, task, precision, recall, f1, success_rate, success_rate_ci95, num_puzzles,
source}: rates in 0..100, source `measured` (here) or `published` (as printed elsewhere); see `metrics.Row` for the rest.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vrlvr.evaluation.entries import (
    COUNT_OR_ZERO,
    NAME,
    OPTIONAL_COUNT,
    OPTIONAL_INTERVAL,
    RATE,
    Schema,
    checked,
    is_count,
    is_interval,
    is_number,
    read_entries,
    write_entries,
)
from vrlvr.evaluation.escaping import markdown_text, one_line
from vrlvr.evaluation.metrics import Gain, Row
from vrlvr.evaluation.published import published_rows

__all__ = [
    "checked_row",
    "markdown",
    "print_table",
    "published_rows",
    "read_gains",
    "read_results",
    "systems_of",
    "task_title",
    "tasks_of",
    "write_gains",
    "write_results",
]

TITLES = {"maze": "Maze", "flowfree": "FlowFree", "sokoban": "Sokoban"}
COLUMNS = {"Prec": "precision", "Rec": "recall", "F1": "f1", "SR": "success_rate"}
SOURCES = ("measured", "published")


def task_title(task: str) -> str:
    """How a task is written in a heading."""
    return TITLES.get(task, task)


def tasks_of(rows: Iterable[Row]) -> list[str]:
    """The tasks of some rows: the three puzzles in their usual order, then any others as they come."""
    found = list(dict.fromkeys(row["task"] for row in rows))
    return [task for task in TITLES if task in found] + [task for task in found if task not in TITLES]


def systems_of(rows: Iterable[Row]) -> list[tuple[str, str]]:
    """The (system, source) pairs of some rows: measured ones first, otherwise as they come."""
    found = dict.fromkeys((row["system"], row["source"]) for row in rows)
    return sorted(found, key=lambda pair: SOURCES.index(pair[1]))


def write_results(path: Path, rows: Sequence[Row]) -> None:
    """Writes results.json. Raises UserError if a row is not as described above."""
    write_entries(path, [checked_row(row, f"{path}: row {i}") for i, row in enumerate(rows)])


def read_results(path: Path) -> list[Row]:
    """Reads results.json. Raises UserError if it is missing, no JSON, or a row is not as described above."""
    return [checked_row(row, f"{path}: row {i}") for i, row in enumerate(read_entries(path))]


def checked_row(row: Any, where: str) -> Row:
    """The row itself, if it is as described above. Raises UserError, which names it by `where`."""
    return cast(Row, checked(row, _ROW, where, optional=_HOW_MEASURED))


def write_gains(path: Path, gains: Sequence[Gain]) -> None:
    """Writes gains.json: differences with paired intervals, which rows alone cannot give. Raises UserError as above."""
    write_entries(path, [checked(gain, _GAIN, f"{path}: gain {i}") for i, gain in enumerate(gains)])


def read_gains(path: Path) -> list[Gain]:
    """Reads gains.json. Raises UserError as `read_results` does."""
    return [cast(Gain, checked(gain, _GAIN, f"{path}: gain {i}")) for i, gain in enumerate(read_entries(path))]


def markdown(rows: Sequence[Row]) -> str:
    """Systems as lines; for each task Prec, Rec, F1 and SR, with their 95 % intervals in brackets; all in percent."""
    tasks = tasks_of(rows)
    cells = {(row["system"], row["source"], row["task"]): row for row in rows}
    head = ["system", "source"]
    for task in tasks:
        first, *others = COLUMNS
        head += [f"{markdown_text(task_title(task))} {first}", *others]
    lines = [head, ["---", "---", *["---:"] * (len(head) - 2)]]
    for system, source in systems_of(rows):
        line = [markdown_text(system), source]
        for task in tasks:
            line += _cells(cells.get((system, source, task)))
        lines.append(line)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def print_table(rows: Sequence[Row], console: Console | None = None) -> None:
    """The same in a terminal, one block a task, so that 80 columns are enough."""
    table = Table(
        title="Percent of held-out puzzles; N of them; SR = success rate with its 95 % interval",
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=0,
    )
    table.add_column("task", no_wrap=True)
    table.add_column("system", overflow="fold")  # long names give way, never numbers
    for name in COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("95 %", justify="right", no_wrap=True)
    table.add_column("N", justify="right", no_wrap=True)
    table.add_column("source", no_wrap=True)
    cells = {(row["system"], row["source"], row["task"]): row for row in rows}
    for task in tasks_of(rows):
        block = [cells[*pair, task] for pair in systems_of(rows) if (*pair, task) in cells]
        for i, row in enumerate(block):
            rates = [f"{row[key]:.1f}" for key in COLUMNS.values()]  # type: ignore[literal-required]
            table.add_row(
                Text(one_line(task_title(task)) if i == 0 else ""),
                Text(one_line(row["system"])),  # no markup of rich's
                *rates,
                _interval(row),
                "" if row["num_puzzles"] is None else str(row["num_puzzles"]),
                row["source"],
                style="dim" if row["source"] == "published" else "",
                end_section=i == len(block) - 1,
            )
    (console or Console()).print(table)


def _cells(row: Row | None) -> list[str]:
    if row is None:
        return [""] * len(COLUMNS)
    return [f"{row[key]:.1f} {_interval(row, key)}".rstrip() for key in COLUMNS.values()]  # type: ignore[literal-required]


def _interval(row: Row, column: str = "success_rate") -> str:
    bounds = cast(Mapping[str, Any], row).get(f"{column}_ci95")
    return "" if bounds is None else f"[{bounds[0]:.1f}, {bounds[1]:.1f}]"


_ROW: Schema = {
    "system": NAME,
    "task": NAME,
    "precision": RATE,
    "recall": RATE,
    "f1": RATE,
    "success_rate": RATE,
    "success_rate_ci95": OPTIONAL_INTERVAL,
    "num_puzzles": OPTIONAL_COUNT,
    "source": (f"one of {', '.join(SOURCES)}", lambda value: value in SOURCES),
}
_HOW_MEASURED: Schema = {  # which a row may lack
    **dict.fromkeys(("num_samples", "num_missing", "num_undecodable"), COUNT_OR_ZERO),
    **dict.fromkeys(("date", "verifier", "test_set"), NAME),
    "answers": ("text or video", lambda value: value in ("text", "video")),
    **dict.fromkeys(("precision_ci95", "recall_ci95", "f1_ci95"), OPTIONAL_INTERVAL),
}
_GAIN: Schema = {
    "before": NAME,
    "after": NAME,
    "task": NAME,
    "gain": ("a number in -100..100", lambda value: is_number(value) and -100 <= value <= 100),
    "gain_ci95": ("[low, high] in -100..100", lambda value: is_interval(value, -100, 100)),
    "num_puzzles": ("a positive integer", is_count),
    "paired": ("true or false", lambda value: isinstance(value, bool)),
}
