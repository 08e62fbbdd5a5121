"""Names from outside, made harmless in each format that a table is written in.

results.json may come from anyone: a system's name can hold a pipe, a script, a formula, a TeX command, or characters that
turn the text around. Each function here takes any text and gives text that the format shows as it is.
"""

import html
import re
import unicodedata

# What starts a formula in a spreadsheet (OWASP, CSV Injection), the full-width forms too, and the guard itself.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠", "'")
_MARKDOWN = re.compile(r"([\\`*_\[\]<>&#~!$|@{}]|:(?=\S)|(?<=www)\.)", re.IGNORECASE)
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\char34{}",  # an active character under some languages of babel
    "[": "{[}",  # at the start of a line of a table it would be an argument of the \\ before, as * would
    "]": "{]}",
    "*": "{*}",
    **{character: f"\\{character}" for character in "{}$&#%_"},
}
_HIDDEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")  # control, direction and other format characters, halves of pairs


def one_line(text: str, longest: int = 100) -> str:
    """Printable text of one line: white space as single blanks, what cannot be seen as �, cut to `longest` characters."""
    words = " ".join(text.split())
    seen = "".join("�" if unicodedata.category(character) in _HIDDEN else character for character in words)
    return seen if len(seen) <= longest else f"{seen[: longest - 1]}…"


def markdown_text(text: str) -> str:
    """For a cell or a line of GitHub-flavoured Markdown: no markup, HTML, link, mention or end of the cell is left."""
    return _MARKDOWN.sub(r"\\\1", _visible(text))


def latex_text(text: str) -> str:
    """For text mode: every special character as a command. What cannot be seen is a question mark, which every font has."""
    return "".join(_LATEX.get(character, character) for character in _visible(text).replace("�", "?"))


def html_text(text: str) -> str:
    """For element content and quoted attributes."""
    return html.escape(text, quote=True)


def csv_guard(text: str) -> str:
    """For a field that a spreadsheet may open: text that could be a formula starts with ', which `csv_unguard` takes off."""
    return f"'{text}" if text.startswith(_FORMULA) else text


def csv_unguard(text: str) -> str:
    """The inverse of `csv_guard`."""
    return text.removeprefix("'")


def _visible(text: str) -> str:
    return one_line(text, longest=len(text) + 1)
