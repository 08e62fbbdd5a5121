"""Answers of language models on disk: JSONL with a line {"id": "maze-00017", "answer": "..."} for each puzzle."""

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from vrlvr.errors import UserError

MAX_FILE_BYTES = 256 * 1024**2
MAX_ANSWER = 1_000_000  # characters


@dataclass(frozen=True)
class Answer:
    """What was answered to a puzzle. request: a hash of what was asked, and why the answer ended, where that is known."""

    id: str
    answer: str
    request: str | None = None
    finish_reason: str | None = None


def read_answers(path: Path, known: Collection[str]) -> dict[str, Answer]:
    """The answers of a file, by the puzzle's id. known: the ids that there are.

    Raises UserError naming the line that is no answer, answers a puzzle that there is not, or answers one again.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give a JSONL file of answers") from error
    if len(text) > MAX_FILE_BYTES:
        raise UserError(f"{path} is larger than {MAX_FILE_BYTES} bytes; shorten the answers to their ends")
    return parse_answers(text.splitlines(), known, path)


def parse_answers(lines: Iterable[bytes], known: Collection[str], path: Path) -> dict[str, Answer]:
    """The same of lines. Raises UserError as `read_answers`."""
    answers: dict[str, Answer] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        answer = _answer(line, f"{path} line {number}")
        if answer.id not in known:
            raise UserError(
                f"{path} line {number}: id={answer.id[:80]!r} is no maze of the test split; correct or remove it"
            )
        if answer.id in answers:
            raise UserError(f"{path} line {number}: id={answer.id} was answered before; keep one answer to a puzzle")
        answers[answer.id] = answer
    return answers


def _answer(line: bytes, where: str) -> Answer:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        raise UserError(f'{where} is no JSON; a line holds {{"id": "maze-00017", "answer": "..."}}') from None
    if (
        not isinstance(fields, dict)
        or not isinstance(fields.get("id"), str)
        or not isinstance(fields.get("answer"), str)
    ):
        raise UserError(f'{where} lacks a text "id" or "answer"; a line holds {{"id": "maze-00017", "answer": "..."}}')
    if len(fields["answer"]) > MAX_ANSWER:
        raise UserError(f"{where} has an answer of more than {MAX_ANSWER} characters; shorten it to its end")
    known = {name: fields[name] for name in ("request", "finish_reason") if isinstance(fields.get(name), str)}
    return Answer(fields["id"], fields["answer"], **known)
