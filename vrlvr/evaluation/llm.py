"""`vrlvr eval llm`: mazes as text or image, asked of a language model behind an OpenAI-compatible API, or answered in a file.

The answers are kept in OUT/answers.jsonl, each as soon as it comes, and no puzzle that has one is asked again. A question whose
answer was lost on the way may be billed, so that it is asked again by the next call only.

What counts is the strict reading of `vrlvr.evaluation.llm_answers`; the lenient one has a row of its own, which tells a model
that does not keep to the format from one that does not find the way.
"""

import hashlib
import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from vrlvr.errors import UserError
from vrlvr.evaluation.answer_file import MAX_ANSWER, Answer, parse_answers, read_answers
from vrlvr.evaluation.benchmark import Item, Outcome, failed, read_items, write_outcomes
from vrlvr.evaluation.http_api import Api, ApiError, Busy, Failing, Refused, Unclear, Unsent, key_from, part
from vrlvr.evaluation.journal import open_journal
from vrlvr.evaluation.llm_answers import lenient, strict
from vrlvr.evaluation.llm_prompt import Shown, messages
from vrlvr.evaluation.metrics import Row
from vrlvr.evaluation.patience import Patience
from vrlvr.evaluation.tables import print_table, write_results
from vrlvr.evaluation.workers import work_through
from vrlvr.puzzles.maze import Puzzle, judge_moves

_KEYS = {"api.openai.com": "OPENAI_API_KEY", "generativelanguage.googleapis.com": "GEMINI_API_KEY"}
_LOCAL = ("localhost", "127.0.0.1", "::1")
_MODERATED = ("content", "moderation", "safety", "policy")


def evaluate_llm(
    data: Path,
    out: Path,
    model: str | None = None,
    answers: Path | None = None,
    base_url: str = "https://api.openai.com/v1",
    input: Shown = "text",
    system: str | None = None,
    tasks: str = "maze",
    num_puzzles: int | None = None,
    parallel: int = 4,
    max_tokens: int | None = None,
    max_completion_tokens: int | None = None,
    temperature: float | None = None,
    reasoning_effort: str | None = None,
    key_variable: str | None = None,
) -> None:
    """Asks a language model for the way through every test maze, or reads its answers from a file, and scores them.

    data: a data set of `vrlvr data`, whose test split is used. out: for answers.jsonl, results.json and outcomes.jsonl (and
    lenient/outcomes.jsonl). model: its name at base_url, as gpt-5.5 or gemini-3.1-pro-preview; each answer is billed.
    answers: a JSONL file with {"id": "maze-00017", "answer": "..."} in place of a model. base_url: of an OpenAI-compatible API;
    Gemini's is https://generativelanguage.googleapis.com/v1beta/openai. input: how a maze is shown. system: the name in
    tables. tasks: only maze. num_puzzles: all by default. parallel: requests at once. max_tokens, max_completion_tokens (which
    reasoning models want), temperature, reasoning_effort: sent as they are, if given. key_variable: of the environment, with
    the key: OPENAI_API_KEY or GEMINI_API_KEY where those belong to base_url; none is needed for localhost.
    """
    if (model is None) == (answers is None):
        raise UserError("give either --model NAME, which is asked, or --answers FILE.jsonl, which is scored")
    if tasks != "maze":
        raise UserError(f"tasks={tasks} cannot be asked of a language model, only maze can; leave --tasks out")
    if not 1 <= parallel <= 64:
        raise UserError(f"parallel={parallel} must be 1 to 64")
    known = read_items(data, [tasks], None)
    items = known if num_puzzles is None else read_items(data, [tasks], num_puzzles)
    ids = {item.id for item in known}
    if answers is not None:
        given = read_answers(answers, ids)
        if not any(item.id in given for item in items):
            raise UserError(f"{answers} holds no answer to any of the {len(items)} mazes; check the file's name")
    else:
        options = {
            "max_tokens": max_tokens,
            "max_completion_tokens": max_completion_tokens,
            "temperature": temperature,
            "reasoning_effort": reasoning_effort,
        }
        sent = {"model": model} | {name: value for name, value in options.items() if value is not None}
        api = Api(base_url, *_credentials(base_url, key_variable, os.environ), timeout_s=1200.0)
        given = ask(api, sent, input, items, ids, out / "answers.jsonl", parallel, Patience())
    name = system or (f"{model} ({input})" if model else answers.stem if answers else "")
    rows = score(name, items, given, out)
    if cut := sum(given[item.id].finish_reason == "length" for item in items if item.id in given):
        print(f"{cut} answers were cut off at the limit of tokens; more by --max_completion_tokens, and another --out")
    print_table(rows)


def ask(
    api: Api,
    options: Mapping[str, Any],
    shown: Shown,
    items: Sequence[Item],
    known: Collection[str],
    path: Path,
    parallel: int,
    patience: Patience,
) -> dict[str, Answer]:
    """All items' answers: those that `path` holds, and the others asked for and added to it.

    Raises UserError if an answer is missing in the end, and if the file's answers are those to other requests.
    """
    with open_journal(path) as journal:
        answers = parse_answers(journal.lines, known, path)
        requests = {item.id: {**options, "messages": messages(item, shown)} for item in items}
        for name, request in requests.items():
            if name in answers and answers[name].request != _hash(request):
                raise UserError(
                    f"{path} holds an answer of {name} to another request (model, input, options); choose another --out"
                )

        def answer_one(item: Item) -> None:
            request = requests[item.id]
            try:
                text, reason = patience.retry(lambda: _answer(api, request), (Unsent, Busy, Failing))
            except (Refused, Unsent) as error:
                raise UserError(
                    f"{item.id}: {error}; correct that and repeat the command, which goes on from here"
                ) from None
            except ApiError:
                return
            answer = Answer(item.id, text[-MAX_ANSWER:], _hash(request), reason)
            journal.write(asdict(answer))
            answers[item.id] = answer

        todo = [item for item in items if item.id not in answers]
        try:
            work_through(todo, answer_one, parallel, patience, str(options["model"]))
        except KeyboardInterrupt:
            missing = sum(item.id not in answers for item in items)
            raise UserError(
                f"interrupted: {missing} of {len(items)} are not answered; repeat the command to go on"
            ) from None
    if missing := sum(item.id not in answers for item in items):
        raise UserError(
            f"{missing} of {len(items)} are not answered, as {api.host} is busy or failing, or answers were lost; repeat the "
            "command to go on, which asks these again"
        )
    return answers


def score(system: str, items: Sequence[Item], answers: Mapping[str, Answer], out: Path) -> list[Row]:
    """Writes results.json with a row of the strict reading and one of the lenient, which it returns, and their outcomes."""
    rows = write_outcomes(out, system, outcomes(items, answers, lambda answer, item: strict(answer)))
    rows += write_outcomes(
        out / "lenient",
        f"{system}, lenient",
        outcomes(items, answers, lambda answer, item: lenient(answer, _maze(item))),
    )
    for row in rows:
        row["answers"] = "text"
    write_results(out / "results.json", rows)
    return rows


def outcomes(
    items: Sequence[Item], answers: Mapping[str, Answer], read: Callable[[str, Item], str | None]
) -> list[Outcome]:
    """What became of each item: missing without an answer, undecodable if no moves can be read in it."""
    result = []
    for item in items:
        moves = read(answers[item.id].answer, item) if item.id in answers else None
        if item.id not in answers:
            result.append(failed(item, "missing"))
        elif moves is None:
            note = f"no moves can be read; the answer ended by: {answers[item.id].finish_reason}"
            result.append(replace(failed(item, "undecodable"), note=note))
        else:
            result.append(Outcome(item, "judged", judge_moves(_maze(item), moves)))
    return result


def _maze(item: Item) -> Puzzle:
    assert isinstance(item.puzzle, Puzzle)
    return item.puzzle


def _answer(api: Api, request: Mapping[str, Any]) -> tuple[str, str]:
    """The text of one answer and why it ended. A refusal for what the maze shows is an answer too: an empty one."""
    try:
        reply = api.call("POST", "chat/completions", request)
    except Refused as error:
        if error.status == 400 and any(mark in code for code in error.codes for mark in _MODERATED):
            return "", "refused"
        raise
    choice = part(reply, "choices", 0)
    if choice is None:
        raise Unclear(f"{api.host} answered without choices")
    text, reason = part(choice, "message", "content"), part(choice, "finish_reason")
    return api.without_keys(text) if isinstance(text, str) else "", api.clean(reason or "not told")


def _credentials(
    base_url: str, variable: str | None, environment: Mapping[str, str]
) -> tuple[Callable[[], Mapping[str, str]], tuple[str, ...]]:
    """The headers with the key for base_url, and the keys that must not be shown."""
    try:
        host = urlsplit(base_url).hostname or ""
    except ValueError:  # which Api refuses
        host = ""
    variable = variable or _KEYS.get(host)
    if variable is None and host in _LOCAL:
        return dict, ()
    if variable is None:
        raise UserError(f"{host or 'base_url'} may be sent which key? name its environment variable by --key_variable")
    key = key_from(environment, variable)
    return lambda: {"Authorization": f"Bearer {key}"}, (key,)


def _hash(request: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
