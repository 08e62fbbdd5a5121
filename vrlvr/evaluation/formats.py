"""A table of `comparison` as Markdown, LaTeX, CSV or HTML. What comes from results.json is escaped in each."""

import csv
import io
from collections.abc import Sequence

from vrlvr.evaluation import page
from vrlvr.evaluation.comparison import FACTS, Cell, Entry, Line, Name, Table
from vrlvr.evaluation.escaping import csv_guard, html_text, latex_text, markdown_text

LEGEND = (
    "Every line says whether its numbers are published (arXiv 2605.15458, as printed) or measured; a note tells the day, the "
    "number of puzzles and the verifier. In brackets: 95 % interval. Published numbers have none."
)
CSV_COLUMNS = ("table", "system", "task", "metric", "value", "ci95_low", "ci95_high", "source", *FACTS, "audit")


def to_markdown(tables: Sequence[Table]) -> str:
    """GitHub-flavoured, one section a table."""
    sections = (
        f"\n## {markdown_text(table.title)}\n\n{markdown_text(table.reading)}\n\n{_markdown(table)}" for table in tables
    )
    return f"{LEGEND}\n{''.join(sections)}"


def to_latex(tables: Sequence[Table]) -> str:
    r"""Tables for `\input`; they need `\usepackage{booktabs}`."""
    needs = r"Needs \usepackage{booktabs}; names in other than Latin letters need XeLaTeX or LuaLaTeX."
    return f"% {LEGEND}\n% {needs}\n" + "".join(map(_latex, tables))


def to_html(tables: Sequence[Table]) -> str:
    """One self-contained page."""
    sections = [page.section(table.title, _html(table), table.reading) for table in tables]
    return page.page("VideoRLVR: results", ["<h1>Results</h1>", page.paragraph(LEGEND, "note"), *sections])


def to_csv(tables: Sequence[tuple[Name, Sequence[Entry]]]) -> str:
    """Long format, a line a number, at full precision. Text that a spreadsheet would take for a formula starts with '."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)  # else a name's \r would end its line
    writer.writerow(CSV_COLUMNS)
    for name, entries in tables:
        for entry in entries:
            writer.writerows(_records(name, entry))
    return text.getvalue()


def _records(name: str, entry: Entry) -> list[list[str]]:
    facts = [_field(str(entry.facts.get(fact, ""))) for fact in FACTS]
    records = []
    for metric, value in entry.numbers.items():
        low, high = entry.intervals.get(metric, ("", ""))
        said = "; ".join(flag.text for flag in entry.flags if flag.column == metric)
        words = [_field(word) for word in (name, entry.system, entry.task, metric)]
        records.append([*words, str(value), str(low), str(high), entry.source, *facts, _field(said)])
    return records


def _field(text: str) -> str:
    """JSON can hold half a surrogate pair, which no file can."""
    return csv_guard(text.encode("utf-8", "replace").decode("utf-8"))


def _markdown(table: Table) -> str:
    head = ["System", "Source"]
    for (group, width), start in zip(table.groups, _starts(table), strict=True):
        first, *others = table.columns[start : start + width]
        head += [f"{markdown_text(group)} {first}", *others]
    lines = [head, ["---", "---", *["---:"] * len(table.columns)]]
    for line in table.lines:
        cells = [_joined(cell, "<sup>", "</sup>") for cell in line.cells]
        lines.append([markdown_text(line.system), line.source, *cells])
    notes = "".join(f"- <sup>{mark}</sup> {markdown_text(text)}\n" for mark, text in table.notes)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) + (f"\n{notes}" if notes else "")


def _latex(table: Table) -> str:
    heads = [rf"\multicolumn{{{width}}}{{c}}{{{latex_text(group)}}}" for group, width in table.groups]
    rules = [
        rf"\cmidrule(lr){{{start + 3}-{start + width + 2}}}"
        for (_, width), start in zip(table.groups, _starts(table), strict=True)
    ]
    lines = [
        r"\begin{table*}",
        r"\centering\scriptsize\setlength{\tabcolsep}{3pt}",
        rf"\caption{{{latex_text(table.title)}. {latex_text(table.reading)}}}",
        rf"\begin{{tabular}}{{ll{'r' * len(table.columns)}}}",
        r"\toprule",
        f"& & {' & '.join(heads)} \\\\",
        " ".join(rules),
        f"System & Source & {' & '.join(map(latex_text, table.columns))} \\\\",
        r"\midrule",
    ]
    for line in table.lines:
        cells = [_joined(cell, r"\textsuperscript{", "}", interval="") for cell in line.cells]
        lines.append(f"{latex_text(line.system)} & {line.source} & {' & '.join(cells)} \\\\")
        if any(cell.interval for cell in line.cells):  # below the numbers: beside all of them they would leave the page
            below = (rf"\tiny {latex_text(cell.interval)}" if cell.interval else "" for cell in line.cells)
            lines.append(f"& & {' & '.join(below)} \\\\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += [rf"\par\raggedright\textsuperscript{{{mark}}} {latex_text(text)}" for mark, text in table.notes]
    return "\n".join([*lines, r"\end{table*}", ""])


def _html(table: Table) -> str:
    starts = set(_starts(table))
    groups = "".join(f'<th class="group" colspan="{width}">{html_text(group)}</th>' for group, width in table.groups)
    names = "".join(f"<th{_group(i in starts)}>{html_text(name)}</th>" for i, name in enumerate(table.columns))
    head = f"<tr><th></th><th></th>{groups}</tr><tr><th>System</th><th>Source</th>{names}</tr>"
    body = "".join(_html_line(line, starts) for line in table.lines)
    notes = "".join(f"<dt>{mark}</dt><dd>{html_text(text)}</dd>" for mark, text in table.notes)
    return f'<div class="scroll"><table>{head}{body}</table></div>' + (f"<dl>{notes}</dl>" if notes else "")


def _html_line(line: Line, starts: set[int]) -> str:
    cells = "".join(
        f'<td{_group(i in starts)} title="{html_text(cell.origin)}">{html_text(cell.text)}'
        + (f" <small>{html_text(cell.interval)}</small>" if cell.interval else "")
        + (f"<sup>{' '.join(cell.marks)}</sup>" if cell.marks else "")
        + "</td>"
        for i, cell in enumerate(line.cells)
    )
    dim = ' class="dim"' if line.source == "published" else ""
    return f"<tr{dim}><td>{html_text(line.system)}</td><td>{line.source}</td>{cells}</tr>"


def _joined(cell: Cell, before_marks: str, after_marks: str, interval: str | None = None) -> str:
    shown = " ".join(part for part in (cell.text, cell.interval if interval is None else interval) if part)
    return shown + (f"{before_marks}{' '.join(cell.marks)}{after_marks}" if cell.marks else "")


def _starts(table: Table) -> list[int]:
    """The first column of each group, counted without the two of words."""
    return [sum(width for _, width in table.groups[:i]) for i in range(len(table.groups))]


def _group(first: bool) -> str:
    return ' class="group"' if first else ""
