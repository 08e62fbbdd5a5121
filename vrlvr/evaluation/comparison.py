"""The paper's three tables, with measured rows beside the published ones: what they say, in no format yet.

A system that was measured has its own line above the published one, which stays. Every cell says where it comes from: its
line is `published` or `measured`, and a note tells the day, how many puzzles, and the verifier of a measured cell.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, product
from string import ascii_lowercase
from typing import Any, Literal, cast

from vrlvr.evaluation.consistency import Flag, audit, audit_vbvr
from vrlvr.evaluation.escaping import one_line
from vrlvr.evaluation.metrics import Row
from vrlvr.evaluation.published import canonical_name, language_models, published_rows, published_vbvr_rows
from vrlvr.evaluation.tables import COLUMNS, TITLES, task_title
from vrlvr.evaluation.vbvr_rows import CATEGORIES, VbvrRow

Name = Literal["main", "vbvr", "llm"]
NAMES: tuple[Name, ...] = ("main", "vbvr", "llm")
TITLE = {
    "main": "Puzzles: precision, recall, F1 and success rate in percent",
    "vbvr": "VBVR's out-of-domain set: mean scores in percent",
    "llm": "Language models on Maze: precision, recall, F1 and success rate in percent",
}
VBVR_COLUMNS = dict(zip(("Avg", "Abst", "Know", "Perc", "Spat", "Trans"), ("average", *CATEGORIES), strict=True))
READING = {
    "main": "F1 = 2PR / (P + R) of the aggregated precision and recall; SR: solved by the rules, whatever the way. "
    "A system (gliding): moves may be drawn on their way from cell to cell.",
    "vbvr": "Avg is the mean over 250 videos: 8, 5, 19, 5 and 13 tasks of 5. A frozen first frame is reported to score about "
    "36 there: read every score against that floor.",
    "llm": "The models answer in text; the same metrics as above.",
}
_FACTS = ("date", "num_puzzles", "num_samples", "num_videos", "num_tasks", "num_missing", "num_undecodable")
FACTS = (*_FACTS, "verifier", "test_set", "scoring", "evaluator")


@dataclass(frozen=True)
class Entry:
    """A row of either kind with what the audit says of it.

    numbers: in percent, by the row's field or VBVR's category. intervals: 95 %, of some of them. facts: those of FACTS
    that the row tells.
    """

    system: str
    task: str
    source: str
    numbers: Mapping[str, float]
    intervals: Mapping[str, Sequence[float]]
    facts: Mapping[str, Any]
    flags: Sequence[Flag]

    @property
    def origin(self) -> str:
        """Where the numbers come from, in words: the day, how many, and who judged."""
        if self.source == "published":
            return "published"
        facts = {name: self.facts.get(name, "unknown") for name in FACTS}
        day = f"measured {self.facts.get('date', 'on an unknown day')}"
        if "average" in self.numbers:
            how = f"n = {facts['num_videos']} videos of {facts['num_tasks']} tasks, scoring {facts['scoring']}"
            return one_line(f"{day}, {how}, evaluator {facts['evaluator']}", 300)
        samples = f" ({facts['num_samples']} samples)" if "num_samples" in self.facts else ""
        how = f"n = {facts['num_puzzles']} puzzles{samples}, verifier {facts['verifier']}"
        return one_line(f"{day}, {how}, test set {facts['test_set']}", 300)


@dataclass(frozen=True)
class Cell:
    """A number as shown, its interval, the marks of its notes, and where it comes from."""

    text: str = ""
    interval: str = ""
    marks: tuple[str, ...] = ()
    origin: str = ""


@dataclass(frozen=True)
class Line:
    """One system from one source; a cell for every column of the table."""

    system: str
    source: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """reading: a sentence on how to read it. groups: heading and number of each group of columns. notes: mark and text."""

    name: Name
    title: str
    reading: str
    groups: tuple[tuple[str, int], ...]
    columns: tuple[str, ...]
    lines: tuple[Line, ...]
    notes: tuple[tuple[str, str], ...]


def entries_of(name: Name, rows: Sequence[Row], vbvr_rows: Sequence[VbvrRow]) -> list[Entry]:
    """What one table holds: the given rows that belong to it and all published ones, a system's together.

    Systems come in the paper's order, others after them; measured before published. The audit looks at all of a table.
    """
    if name == "vbvr":
        scores = _distinct([*vbvr_rows, *published_vbvr_rows()])
        entries = [_entry_of_scores(row, flags) for row, flags in zip(scores, audit_vbvr(scores), strict=True)]
    else:
        rates = [row for row in _distinct([*rows, *published_rows()]) if is_language_model(row) == (name == "llm")]
        entries = [_entry_of_rates(row, flags) for row, flags in zip(rates, audit(rates), strict=True)]
    ranks = {system: rank for rank, system in enumerate(dict.fromkeys(_published_systems()))}
    return sorted(
        entries,
        key=lambda entry: (ranks.get(canonical_name(entry.system), len(ranks)), entry.source == "published"),
    )


def build(name: Name, entries: Sequence[Entry]) -> Table:
    """The table of these entries."""
    marks, tasks = _Marks(), _tasks(entries)
    titles = VBVR_COLUMNS if name == "vbvr" else COLUMNS
    groups = tuple((one_line("VBVR-OOD" if name == "vbvr" else task_title(task)), len(titles)) for task in tasks)
    lines = []
    for system, source, of_task in _lines(entries):
        cells: list[Cell] = []
        for task in tasks:
            cells += _cells(of_task[task], list(titles.values()), marks) if task in of_task else [Cell()] * len(titles)
        lines.append(Line(one_line(system), source, tuple(cells)))
    return Table(name, TITLE[name], READING[name], groups, tuple(titles) * len(tasks), tuple(lines), marks.notes())


def is_language_model(row: Row) -> bool:
    """Whether a row belongs to the table of models that answer in text."""
    return row.get("answers") == "text" or canonical_name(row["system"]) in language_models()


@dataclass
class _Marks:
    """Marks a, b, ..., z, aa, ... of the notes, equal for equal texts."""

    texts: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._unused = ("".join(letters) for n in count(1) for letters in product(ascii_lowercase, repeat=n))

    def of(self, text: str) -> str:
        if text not in self.texts:
            self.texts[text] = next(self._unused)
        return self.texts[text]

    def notes(self) -> tuple[tuple[str, str], ...]:
        return tuple((mark, text) for text, mark in self.texts.items())


def _entry_of_rates(row: Row, flags: Sequence[Flag]) -> Entry:
    rates = {name: float(row[name]) for name in COLUMNS.values()}  # type: ignore[literal-required]
    known = cast(Mapping[str, Any], row)
    intervals = {name: known[f"{name}_ci95"] for name in rates if known.get(f"{name}_ci95") is not None}
    return Entry(row["system"], row["task"], row["source"], rates, intervals, _facts(row), flags)


def _entry_of_scores(row: VbvrRow, flags: Sequence[Flag]) -> Entry:
    bounds = row["average_ci95"]
    intervals = ({} if bounds is None else {"average": bounds}) | row.get("categories_ci95", {})
    scores = {"average": row["average"], **row["categories"]}
    return Entry(row["system"], row["task"], row["source"], scores, intervals, _facts(row), flags)


def _facts(row: Row | VbvrRow) -> dict[str, Any]:
    known = cast(Mapping[str, Any], row)
    return {name: known[name] for name in FACTS if known.get(name) is not None}


def _cells(entry: Entry, keys: Sequence[str], marks: _Marks) -> list[Cell]:
    """One cell a number. The number that the table is about carries the note on its origin."""
    cells = []
    for key in keys:
        if key not in entry.numbers:
            cells.append(Cell())
            continue
        texts = [entry.origin] if key in ("success_rate", "average") and entry.source == "measured" else []
        texts += [one_line(flag.text, 300) for flag in entry.flags if flag.column == key]
        bounds = entry.intervals.get(key)
        interval = "" if bounds is None else f"[{bounds[0]:.1f}, {bounds[1]:.1f}]"
        cells.append(Cell(f"{entry.numbers[key]:.1f}", interval, tuple(map(marks.of, texts)), entry.origin))
    return cells


def _lines(entries: Sequence[Entry]) -> list[tuple[str, str, dict[str, Entry]]]:
    """(system, source, {task: entry}): a system's entries of one source fill a line; one measured twice opens another."""
    lines: list[tuple[str, str, dict[str, Entry]]] = []
    for entry in entries:
        for system, source, of_task in lines:
            if (system, source) == (entry.system, entry.source) and entry.task not in of_task:
                of_task[entry.task] = entry
                break
        else:
            lines.append((entry.system, entry.source, {entry.task: entry}))
    return lines


def _tasks(entries: Sequence[Entry]) -> list[str]:
    """The three puzzles in their usual order, then any others as they come."""
    found = list(dict.fromkeys(entry.task for entry in entries))
    return [task for task in TITLES if task in found] + [task for task in found if task not in TITLES]


def _distinct(rows: Sequence[Any]) -> list[Any]:
    """Without repetitions, as of published rows that a results.json holds too."""
    found: list[Any] = []
    for row in rows:
        if row not in found:
            found.append(row)
    return found


def _published_systems() -> list[str]:
    return [row["system"] for row in published_rows()] + [row["system"] for row in published_vbvr_rows()]
