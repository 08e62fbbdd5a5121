"""`vrlvr eval provider`: the hosted video systems, asked for a video of each puzzle and judged.

Every billed call is in OUT/jobs.jsonl before and after it is made (see `vrlvr.evaluation.jobs`), so that nothing is paid for
twice: a run that was broken off, by a crash too, goes on where it was. Videos lie in OUT/videos/<puzzle id>.mp4.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

from vrlvr.errors import UserError
from vrlvr.evaluation.benchmark import Item, Outcome, read_items, write_outcomes
from vrlvr.evaluation.jobs import Ledger, open_ledger
from vrlvr.evaluation.patience import Patience
from vrlvr.evaluation.provider_run import Run
from vrlvr.evaluation.providers import PROVIDERS
from vrlvr.evaluation.providers.system import System
from vrlvr.evaluation.tables import print_table
from vrlvr.evaluation.videos import judge_folder
from vrlvr.evaluation.workers import work_through
from vrlvr.outside.hostile_video import Decoder

_MODEL = re.compile(r"[\w.:-]{1,100}", re.ASCII)


def evaluate_provider(
    provider: Literal["sora2", "veo3.1", "kling3"],
    data: Path,
    out: Path,
    tasks: str | None = None,
    num_puzzles: int | None = None,
    model: str | None = None,
    system: str | None = None,
    seconds: int | None = None,
    base_url: str | None = None,
    parallel: int = 2,
    max_spend_videos: int | None = None,
    yes: bool = False,
    resubmit_unknown: bool = False,
    resubmit_failed: bool = False,
    poll_s: float = 10.0,
    give_up_minutes: float = 60.0,
) -> None:
    """Asks a hosted system for a video of every test puzzle, and scores what it made. Its provider bills every video.

    Keys come from the environment: OPENAI_API_KEY; GEMINI_API_KEY, or GOOGLE_OAUTH_ACCESS_TOKEN with GOOGLE_CLOUD_PROJECT;
    KLING_ACCESS_KEY with KLING_SECRET_KEY, or KLING_API_KEY.

    provider: the hosted system. data: a data set of `vrlvr data`, whose test split is used. out: for the videos, jobs.jsonl,
    results.json and outcomes.jsonl. tasks: comma separated, all by default. num_puzzles: of each task, all by default.
    model: the provider's name of another model. system: the name in tables. seconds: length of the videos, by default the
    shortest that lasts the planner's 5. base_url: of a proxy, to which the key is sent. parallel: jobs under way at once.
    max_spend_videos: how many billed calls this run makes at most. yes: make them. resubmit_unknown: ask again for videos of
    which it is unknown whether they were billed. resubmit_failed: ask again for those that failed for good. poll_s: between
    two looks at a job. give_up_minutes: after which a job is left to the next run.
    """
    chosen = PROVIDERS[provider]
    if seconds is not None and seconds not in chosen.LENGTHS:
        raise UserError(
            f"seconds={seconds} is not offered by {provider}; use one of {', '.join(map(str, chosen.LENGTHS))}"
        )
    if model is not None and not _MODEL.fullmatch(model):
        raise UserError(
            f"model={model!r} must be a plain name of letters, digits and .:-_; leave it out for {chosen.MODEL}"
        )
    if not (
        1 <= parallel <= 64 and 0 < poll_s <= 3600 and 0 < give_up_minutes <= 10_000 and (max_spend_videos or 0) >= 0
    ):
        raise UserError(
            f"parallel={parallel} must be 1 to 64, poll_s={poll_s} up to 3600, give_up_minutes={give_up_minutes} up to 10000, "
            f"max_spend_videos={max_spend_videos} 0 or more"
        )
    # A task that is named twice must not be paid for twice.
    items = read_items(data, list(dict.fromkeys(tasks.split(","))) if tasks else None, num_puzzles)
    service: System = chosen(os.environ, base_url, model, seconds or chosen.LENGTH)
    patience = Patience(attempts=12)
    with open_ledger(out / "jobs.jsonl") as ledger, Decoder() as decoder:
        max_looks = max(1, round(60 * give_up_minutes / poll_s))
        run = Run(service, ledger, out / "videos", partial(_decodes, decoder), patience, poll_s, max_looks)
        _prepare(run.videos)
        run.check(items)
        to_fetch, to_submit = plan(run, items, resubmit_unknown, resubmit_failed, max_spend_videos)
        if to_submit and not yes:
            raise UserError(
                f"{len(to_submit)} videos of {service.model} would be asked for, each a billed call; add --yes to do so, with "
                "--max_spend_videos N for at most N of them (0: only fetch what was asked for before)"
            )
        todo = [*((item, run.fetch) for item in to_fetch), *((item, run.submit) for item in to_submit)]
        try:
            work_through(todo, lambda pair: pair[1](pair[0]), parallel, patience, provider)
        except KeyboardInterrupt:
            raise UserError(f"interrupted: {run.summary(items)}; repeat the command to go on") from None
        if any(run.state(item) not in ("done", "failed") for item in items):
            raise UserError(
                f"not finished: {run.summary(items)}; repeat the command to go on (--resubmit_unknown asks again, and may pay "
                f"twice, for the unknown), or score what is there by `vrlvr eval videos {run.videos}`"
            )
        print(run.summary(items))
        outcomes = [_explained(outcome, ledger) for outcome in judge_folder(run.videos, items)]
    rows = write_outcomes(out, system or model or service.NAME, outcomes)
    print_table(rows)


def plan(
    run: Run, items: Sequence[Item], resubmit_unknown: bool, resubmit_failed: bool, max_new: int | None
) -> tuple[list[Item], list[Item]]:
    """The items whose job is to be looked after, and those to be asked for, at most max_new: each is a billed call."""
    asked_again = {"new"} | ({"unknown"} if resubmit_unknown else set()) | ({"failed"} if resubmit_failed else set())
    to_submit = [item for item in items if run.state(item) in asked_again]
    with_job = {name for name, entry in run.ledger.entries.items() if entry.job is not None}
    to_fetch = [
        item
        for item in items
        if item.id in with_job and run.state(item) in ("waiting", "unknown") and run.state(item) not in asked_again
    ]
    return to_fetch, to_submit[:max_new]


def _prepare(videos: Path) -> None:
    """Makes the folder, and removes what a crash left half written: the ledger's lock says that nobody writes there."""
    videos.mkdir(parents=True, exist_ok=True)
    for half in videos.glob(".*.partial"):
        half.unlink()


def _decodes(decoder: Decoder, path: Path) -> bool:
    try:
        decoder.read(path)
    except UserError:
        return False
    return True


def _explained(outcome: Outcome, ledger: Ledger) -> Outcome:
    """A missing video's outcome with the reason that the service gave."""
    entry = ledger.entries.get(outcome.item.id)
    return replace(outcome, note=entry.note or "") if entry and outcome.status == "missing" else outcome
