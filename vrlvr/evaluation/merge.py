"""`vrlvr table`: results.json files beside the published rows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from vrlvr.atomic_write import write_text
from vrlvr.evaluation.comparison import NAMES, Name, build, entries_of
from vrlvr.evaluation.entries import read_entries
from vrlvr.evaluation.formats import to_csv, to_html, to_latex, to_markdown
from vrlvr.evaluation.metrics import Row
from vrlvr.evaluation.tables import checked_row
from vrlvr.evaluation.vbvr_rows import VbvrRow, checked_vbvr_row, is_vbvr

Format = Literal["markdown", "latex", "csv", "html"]


def table(
    results: Sequence[Path],
    format: Format = "markdown",
    out: Path | None = None,
    table: Literal["all", "main", "vbvr", "llm"] = "all",
) -> None:
    """Writes the paper's tables with the rows of all results beside the published ones, or prints them.

    results: results.json files; none gives the published tables. out: the file to write, printed where it is not given.
    table: one of the three, or all. Raises UserError with one line for a file that is no results.json.
    """
    rows, vbvr_rows = read_all(results)
    names: Sequence[Name] = NAMES if table == "all" else (table,)
    text = render(format, names, rows, vbvr_rows)
    if out is None:
        print(text, end="")
    else:
        write_text(out, text)


def read_all(paths: Sequence[Path]) -> tuple[list[Row], list[VbvrRow]]:
    """The rows of many results.json files, of puzzles and of VBVR. Raises UserError if one is not as it must be."""
    rows, vbvr_rows = [], []
    for path in paths:
        for i, entry in enumerate(read_entries(path)):
            if is_vbvr(entry):
                vbvr_rows.append(checked_vbvr_row(entry, f"{path}: row {i}"))
            else:
                rows.append(checked_row(entry, f"{path}: row {i}"))
    return rows, vbvr_rows


def render(format: Format, names: Sequence[Name], rows: Sequence[Row], vbvr_rows: Sequence[VbvrRow]) -> str:
    """The tables as one text."""
    entries = [(name, entries_of(name, rows, vbvr_rows)) for name in names]
    if format == "csv":
        return to_csv(entries)
    writers = {"markdown": to_markdown, "latex": to_latex, "html": to_html}
    return writers[format]([build(name, found) for name, found in entries])
