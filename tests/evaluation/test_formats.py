"""Markdown, LaTeX, CSV and HTML of tables whose names come from anyone."""

import csv
import io
import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt  # rich needs it

from vrlvr.evaluation import page
from vrlvr.evaluation.comparison import Cell, Entry, Line, Table
from vrlvr.evaluation.consistency import Flag
from vrlvr.evaluation.escaping import csv_guard, csv_unguard, latex_text, markdown_text, one_line
from vrlvr.evaluation.formats import CSV_COLUMNS, to_csv, to_html, to_latex, to_markdown

NASTY = [
    "<script>alert(1)</script>",
    "a | b\n| c",
    '=HYPERLINK("http://x";"y")',
    "+1",
    "-1+2",
    "@SUM(A1)",
    "\t=1",
    "'=1",
    "\\input{/etc/passwd} $x^2$ 100 % & #1 _a_ {b} ~",
    "[link](javascript:alert(1)) ![i](http://x/y.png) `code` **bold**",
    'a"b,c\r\nd',
    "[1] *",
    "\u202eabc\x00\u200b",
    "&lt;b&gt;",
    "＝1",
]
names = st.one_of(
    st.sampled_from(NASTY),
    st.text(min_size=1, max_size=20),
    st.text("\\|`*_[]<>&#;~!:/w.x'\"{}$%^@=+- \t\n1", min_size=1),
)


def table(system: str, note: str = "a note") -> Table:
    cells = (Cell("1.0"), Cell("2.0", "[1.0, 3.0]", ("a", "b"), system), Cell())
    lines = (Line(system, "measured", cells), Line("plain", "published", (Cell("3.0"), Cell("4.0"), Cell("5.0"))))
    groups = ((system, 2), ("other", 1))
    return Table("main", "A title", "How to read it.", groups, ("P", "R", "F"), lines, (("a", note), ("b", system)))


def entry(system: str) -> Entry:
    flags = [Flag("f1", system)]
    return Entry(system, system, "measured", {"f1": 12.5}, {"f1": [1.0, 20.0]}, {"verifier": system}, flags)


class Cells(HTMLParser):
    """The text of every cell, row by row, and every tag there is."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.titles: list[str] = []
        self.tags: set[str] = set()
        self._in_cell = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._in_cell = True
            self.titles += [value or "" for name, value in attrs if name == "title"]

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self._in_cell = False

    def handle_data(self, data):
        if self._in_cell:
            self.rows[-1][-1] += data


def markdown_cells(text: str) -> tuple[list[list[str]], set[str]]:
    """The text of every cell as a Markdown parser reads it, row by row, and the kinds of tokens inside cells."""
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)
    rows: list[list[str]] = []
    kinds = set()
    for before, token in pairwise(tokens):
        if token.type == "tr_open":
            rows.append([])
        if before.type in ("td_open", "th_open"):
            inner = token.children or []
            kinds |= {child.content if child.type == "html_inline" else child.type for child in inner}
            rows[-1].append("".join(child.content for child in inner if child.type in ("text", "text_special")))
    return rows, kinds


def unescaped_pipes(line: str) -> int:
    return len(re.findall(r"(?<!\\)(?:\\\\)*\|", line))


@given(names)
def test_markdown_keeps_its_rows_and_columns(name: str) -> None:
    text = to_markdown([table(name)])
    lines = text.splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 4
    assert {unescaped_pipes(row) for row in rows} == {6}
    assert [line for line in lines if line.startswith(("- ", "#"))][1].startswith("- <sup>a</sup>")
    assert len(lines) == 13, "a name opened a line of its own"


@given(names)
def test_markdown_reads_back_as_the_same_cells(name: str) -> None:
    shown = one_line(name, longest=1000)
    rows, kinds = markdown_cells(to_markdown([table(name)]))
    assert rows == [
        ["System", "Source", f"{shown} P".strip(), "R", "other F"],
        [shown, "measured", "1.0", "2.0 [1.0, 3.0]a b", ""],
        ["plain", "published", "3.0", "4.0", "5.0"],
    ]
    assert kinds <= {"text", "text_special", "<sup>", "</sup>"}


@pytest.mark.parametrize("name", NASTY)
def test_markdown_holds_no_markup_of_a_name(name: str) -> None:
    escaped = markdown_text(name)
    assert "\n" not in escaped
    plain = re.sub(r"\\[!-/:-@\[-`{-~]", "", escaped)
    assert not set(plain) & set("<>[]`*_|&$@#~!\\{}")
    assert "://" not in plain


def test_markdown_leaves_ordinary_names_alone() -> None:
    for name in ("Sora 2", "Wan2.2-TI2V-5B", "VideoRLVR (ours)", "F1 29.4: no mean, 18.3"):
        assert markdown_text(name) == name
    assert markdown_text("see www.x.org") == r"see www\.x.org"


@given(names)
def test_latex_keeps_its_rows_and_columns(name: str) -> None:
    text = to_latex([table(name)])
    body = text[text.index(r"\midrule") : text.index(r"\bottomrule")].splitlines()[1:]
    assert len(body) == 3  # the second has the intervals of the first
    assert all(line.endswith(r" \\") for line in body)
    assert [len(re.findall(r"(?<!\\)&", line)) for line in body] == [4, 4, 4]
    assert body[1] == r"& &  & \tiny {[}1.0, 3.0{]} &  \\"
    assert r"\begin{tabular}{llrrr}" in text
    assert r"\cmidrule(lr){3-4} \cmidrule(lr){5-5}" in text
    assert text.count(r"\begin{") == text.count(r"\end{")


@given(names)
def test_latex_of_a_name_has_no_command_but_those_of_escapes(name: str) -> None:
    escaped = latex_text(name)
    known = r"\\(?:textbackslash|textasciitilde|textasciicircum|textless|textgreater|textbar|char34)\{\}|\\[{}$&#%_]"
    rest = re.sub(known, "", escaped)
    assert not set(re.sub(r"\{[\[\]*]\}", "", rest)) & set('\\{}$&#%_^~<>|[]*"\n')


def test_latex_needs_no_package_but_booktabs() -> None:
    text = to_latex([table("plain")])
    commands = set(re.findall(r"\\([a-z]+)", text))
    assert commands <= {
        *(
            "begin",
            "centering",
            "scriptsize",
            "setlength",
            "tabcolsep",
            "caption",
            "toprule",
            "tiny",
            "multicolumn",
            "cmidrule",
        ),
        *("midrule", "bottomrule", "end", "par", "raggedright", "textsuperscript", "usepackage"),
    }


@given(names)
def test_csv_reads_back_as_the_same_cells(name: str) -> None:
    head, record = csv.reader(io.StringIO(to_csv([("main", [entry(name)])]), newline=""))
    assert tuple(head) == CSV_COLUMNS
    read = dict(zip(head, record, strict=True))
    assert [csv_unguard(read[field]) for field in ("system", "task", "verifier", "audit")] == [name] * 4
    assert (read["table"], read["metric"], read["value"], read["ci95_low"]) == ("main", "f1", "12.5", "1.0")


@given(names)
def test_no_field_of_csv_is_a_formula(name: str) -> None:
    assert csv_unguard(csv_guard(name)) == name
    for field in next(csv.reader(io.StringIO(to_csv([("main", [entry(name)])]).split("\n", 1)[1], newline=""))):
        assert not field.startswith(("=", "+", "-", "@", "\t", "\r", "＝", "＋", "－", "＠"))


@given(names)
def test_html_reads_back_as_the_same_cells(name: str) -> None:
    parsed = Cells(to_html([table(name)]))
    assert parsed.rows == [
        ["", "", name, "other"],
        ["System", "Source", "P", "R", "F"],
        [name, "measured", "1.0", "2.0 [1.0, 3.0]a b", ""],
        ["plain", "published", "3.0", "4.0", "5.0"],
    ]
    assert name in parsed.titles
    allowed = {"html", "head", "meta", "title", "style", "body", "main", "section", "h1", "h2", "p", "div"}
    assert parsed.tags == allowed | {"table", "tr", "th", "td", "small", "sup", "dl", "dt", "dd"}


def test_html_is_one_file_that_loads_nothing() -> None:
    text = to_html([table("plain")])
    assert page.POLICY.startswith("default-src 'none'")
    assert not re.search(r"https?://|src=|href=", text)


def test_one_line_shows_what_hides() -> None:
    assert one_line("a\n b\t c") == "a b c"
    assert one_line("\u202eabc\x00\u200b") == "�abc��"
    assert one_line("x" * 200) == "x" * 99 + "…"
    assert one_line("\ud800") == "�"
