"""A board as a foreign file has it, before any rule is applied."""

from dataclasses import dataclass
from itertools import groupby

MAX_SIDE = 255


@dataclass(frozen=True)
class Level:
    """line: where the board begins in its file, from 1. rows: its text. solution: in the format's own notation, if any."""

    line: int
    rows: tuple[str, ...]
    solution: str | None = None


def numbered_lines(text: str) -> list[tuple[int, str]]:
    """The lines of a file, from 1, without what ends them."""
    return list(enumerate((line.rstrip("\r") for line in text.split("\n")), 1))


def blocks(text: str) -> list[Level]:
    """The runs of lines between blank ones."""
    found = []
    for filled, lines in groupby(numbered_lines(text), lambda line: bool(line[1].strip())):
        if filled:
            run = list(lines)
            found.append(Level(run[0][0], tuple(line for _, line in run)))
    return found


def padded(rows: tuple[str, ...]) -> list[str]:
    """Rows of one length, with spaces at their ends. Raises ValueError for a board beyond 255 cells a side."""
    width = max(map(len, rows))
    if max(width, len(rows)) > MAX_SIDE:
        raise ValueError(f"a board of {len(rows)}x{width} exceeds {MAX_SIDE} cells a side")
    return [row.ljust(width) for row in rows]
