"""What a language model's answer says the moves are: read strictly, as the prompt asks for, or leniently.

Strict: the last line is `MOVES:` followed by moves U, D, L, R, each after one blank; nothing else counts.
Lenient: the last passage anywhere that can be meant as the moves, one that is announced ("answer", "moves:", ...) before one
that is not: letters (`U, R`, `URRD`, `["U", "R"]`), words (`up, then right 3 times`), arrows, or cells as pairs of numbers.

An answer is hostile text: only its last 20,000 characters are read leniently, by patterns that take linear time.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vrlvr.puzzles.maze import Puzzle, judge_moves

MAX_LENIENT = 20_000  # characters
MAX_MOVES = 2_000
_MAX_GAP = 40  # characters between two moves of one passage

_STRICT = re.compile(r"MOVES:((?: [UDLR])+)")
_TOKENS = {
    "cell": re.compile(r"[(\[][ \t]{0,3}(\d{1,3})[ \t]{0,3},[ \t]{0,3}(\d{1,3})[ \t]{0,3}[)\]]"),
    "arrow": re.compile(r"[↑↓←→⬆⬇⬅➡]"),
    "word": re.compile(
        r"\b(up|down|left|right|north|south|west|east)(?:wards?)?\b(?:"
        r"[ \t]?\([ \t]?[x×*]?[ \t]?(\d{1,2})[^)\n]{0,8}\)|"  # right (3 times)
        r"[ \t]?[x×*]?[ \t]?(\d{1,2})(?!\d|[.:)][ \t]*[a-z])(?:[ \t]?(?:times|x|cells?|steps?)\b)?"  # but not: right 3. up
        r")?",
        re.IGNORECASE,
    ),
    "letters": re.compile(r"(?<![\w'’])(?:[UDLR]{1,500}|[udlr])(?![\w'’])"),
}
_LETTER_OF = dict(zip("↑⬆↓⬇←⬅→➡", "UUDDLLRR", strict=True)) | {
    word: "UDLR"[number % 4]
    for number, word in enumerate(("up", "down", "left", "right", "north", "south", "west", "east"))
}
# Words that may stand between two moves of one passage.
_FILLERS = {
    "cell": {"to", "then", "and", "go", "move"},
    "arrow": set(),
    "word": {"then", "and", "go", "move", "moves", "moving", "to", "the", "next", "finally", "again", "a", *"udlr"},
    "letters": {"then", "and"},
}
_ANNOUNCED = re.compile(r"(?:moves?|answer|path|solution|sequence|result)\W{0,12}$", re.IGNORECASE)
_WORD = re.compile(r"[^\W\d_]+")


@dataclass(frozen=True)
class _Passage:
    start: int
    end: int
    moves: str


def strict(answer: str) -> str | None:
    """The moves of an answer that keeps to the prompt's format, letters U, D, L, R; None if it does not."""
    last = answer.rstrip().rsplit("\n", 1)[-1]
    found = _STRICT.fullmatch(last) if len(last) <= len("MOVES:") + 2 * MAX_MOVES else None
    return found[1].replace(" ", "") if found else None


def lenient(answer: str, puzzle: Puzzle) -> str | None:
    """The moves that an answer most plausibly means; None if there are none in it. `strict` answers mean what they say.

    Cells may be counted from 0 or 1, as (row, column) or (x, y): of the ways by which they begin at the start (or beside it),
    the one with the longest legal walk is taken. A single move counts only where it is announced.
    """
    if (moves := strict(answer)) is not None:
        return moves
    text = answer[-MAX_LENIENT:]
    passages = [passage for kind in _TOKENS for passage in _passages(kind, text, puzzle)]
    announced = [passage for passage in passages if _ANNOUNCED.search(text[max(0, passage.start - 40) : passage.start])]
    plausible = announced or [passage for passage in passages if len(passage.moves) > 1]
    return max(plausible, key=lambda passage: (passage.end, -passage.start)).moves if plausible else None


def _passages(kind: str, text: str, puzzle: Puzzle) -> Iterator[_Passage]:
    """Runs of tokens of one kind with nothing of meaning between them."""
    run: list[re.Match[str]] = []
    for token in _TOKENS[kind].finditer(text):
        if run and not _joins(kind, text[run[-1].end() : token.start()]):
            yield from _passage(kind, run, puzzle)
            run = []
        run.append(token)
    if run:
        yield from _passage(kind, run, puzzle)


def _joins(kind: str, gap: str) -> bool:
    if len(gap) > _MAX_GAP or gap.count("\n") > 2:
        return False
    return {word.lower() for word in _WORD.findall(gap)} <= _FILLERS[kind]


def _passage(kind: str, run: Sequence[re.Match[str]], puzzle: Puzzle) -> Iterator[_Passage]:
    if kind == "cell":
        moves = _through([(int(token[1]), int(token[2])) for token in run[: MAX_MOVES + 1]], puzzle)
    elif kind == "letters":
        moves = "".join(token[0].upper() for token in run)
    elif kind == "arrow":
        moves = "".join(_LETTER_OF[token[0]] for token in run)
    else:
        moves = "".join(_LETTER_OF[token[1].lower()] * int(token[2] or token[3] or 1) for token in run)
    if moves:
        yield _Passage(run[0].start(), run[-1].end(), moves[:MAX_MOVES])


def _through(pairs: Sequence[tuple[int, int]], puzzle: Puzzle) -> str:
    """The moves along cells given as pairs, straight lines between them; empty if they make no walk from the start."""
    walks = []
    for swapped in (False, True):
        for base in (0, 1):
            cells = [((b, a) if swapped else (a, b)) for a, b in ((a - base, b - base) for a, b in pairs)]
            walks.append(_moves_along(cells, puzzle))
    return max((walk for walk in walks if walk), key=lambda walk: _legal(walk, puzzle), default="")


def _moves_along(cells: Sequence[tuple[int, int]], puzzle: Puzzle) -> str:
    row, col = divmod(puzzle.start, puzzle.cols)
    if abs(cells[0][0] - row) + abs(cells[0][1] - col) > 1:
        return ""
    moves = ""
    for to_row, to_col in cells:
        if to_row != row and to_col != col:
            return ""
        moves += ("D" if to_row > row else "U") * abs(to_row - row) + ("R" if to_col > col else "L") * abs(to_col - col)
        row, col = to_row, to_col
    return moves


def _legal(moves: str, puzzle: Puzzle) -> int:
    """How many moves a walk makes before one breaks a rule."""
    verdict = judge_moves(puzzle, moves)
    return len(moves) if verdict.frame is None or verdict.broken_rule == "not_solved" else verdict.frame - 1
