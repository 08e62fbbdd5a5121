"""`vrlvr table`: results.json files beside the published rows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from vrlvr.atomic_write import write_text
from vrlvr.errors import UserError
from vrlvr.evaluation.comparison import NAMES, Entry, Name, build, entries_of
from vrlvr.evaluation.entries import read_entries, read_json
from vrlvr.evaluation.formats import to_csv, to_html, to_latex, to_markdown
from vrlvr.evaluation.metrics import Row
from vrlvr.evaluation.published import published_rows, published_vbvr_rows
from vrlvr.evaluation.tables import checked_row
from vrlvr.evaluation.vbvr_rows import VbvrRow, checked_vbvr_row, is_vbvr

Format = Literal["markdown", "latex", "csv", "html"]
_FORMATS: dict[str, Format] = {
    ".md": "markdown",
    ".tex": "latex",
    ".csv": "csv",
    ".html": "html",
}  # by the file's ending
_PRINTED: Sequence[object] = [*published_rows(), *published_vbvr_rows()]


def table(
    results: Sequence[Path],
    format: Format | None = None,
    out: Path | None = None,
    table: Literal["all", "main", "vbvr", "llm"] = "all",
) -> None:
    """Writes the paper's tables with the measured rows of all results beside the published ones, or prints them.

    results: results.json files, or folders that hold one; none gives the published tables. format: by default what the name of
    `out` ends in (.md, .tex, .csv, .html), else markdown. out: the file to write, printed where it is not given. table: one of
    the three, or all. Raises UserError with one line for a file that is no results.json.
    """
    if out is not None and format is None and out.suffix not in _FORMATS:
        raise UserError(f"out={out} must end in one of {', '.join(_FORMATS)}; or name the --format")
    rows, vbvr_rows = read_all([path / "results.json" if path.is_dir() else path for path in results])
    names: Sequence[Name] = NAMES if table == "all" else (table,)
    entries = [(name, entries_of(name, rows, vbvr_rows)) for name in names]
    text = render(format or _FORMATS.get(out.suffix if out else "", "markdown"), entries)
    if out is None:
        print(text, end="")
    else:
        write_text(out, text)
        found = [entry for _, of_table in entries for entry in of_table]
        measured, remarks = sum(e.source == "measured" for e in found), sum(len(e.flags) for e in found)
        print(f"{out}: {len(found)} rows, {measured} of them measured; {remarks} remarks of the audit")


def read_all(paths: Sequence[Path]) -> tuple[list[Row], list[VbvrRow]]:
    """The rows of many results.json files, of puzzles and of VBVR. Raises UserError if one is not as it must be, or calls
    itself published while the paper prints another, or none.
    """
    rows, vbvr_rows = [], []
    for path in paths:
        for i, entry in enumerate(read_entries(path)):
            if isinstance(entry, dict) and entry.get("source") == "published" and entry not in _PRINTED:
                raise UserError(
                    f"{path}: row {i} calls itself published, but arXiv 2605.15458 prints no such row; correct its source"
                )
            if is_vbvr(entry):
                vbvr_rows.append(checked_vbvr_row(entry, f"{path}: row {i}"))
            else:
                row = checked_row(entry, f"{path}: row {i}")
                if "date" not in row and row["source"] == "measured" and (date := _date_of_run(path.parent)):
                    row["date"] = date
                rows.append(row)
    return rows, vbvr_rows


def _date_of_run(folder: Path) -> str | None:
    """The day in the run.json that a training run writes beside its results, whose rows have none."""
    try:
        date = read_json(folder / "run.json")["date"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return date if isinstance(date, str) else None


def render(format: Format, tables: Sequence[tuple[Name, Sequence[Entry]]]) -> str:
    """The tables as one text."""
    if format == "csv":
        return to_csv(tables)
    writers = {"markdown": to_markdown, "latex": to_latex, "html": to_html}
    return writers[format]([build(name, entries) for name, entries in tables])
