"""The ledger of billed calls: what was asked for, and what of it is certain, after any crash.

A line is on disk before a billed call (`submitting`) and after it. What may follow `submitting`:

    submitted   the service's job id
    rejected    the service did nothing: the puzzle may be asked again
    failed      the service refused or gave up for good
    finished    the video is on disk
    lost        the service no longer knows the job
    nothing     a crash or a lost reply: whether it is billed is unknown, so it is never repeated by itself
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from vrlvr.errors import UserError
from vrlvr.evaluation.journal import Journal, open_journal

EVENTS = ("submitting", "submitted", "rejected", "failed", "finished", "lost")
_JOB = re.compile(r"[\w.:/=@+-]{1,500}", re.ASCII)


@dataclass(frozen=True)
class Entry:
    """What happened last to a puzzle. request: a hash of all that it was asked with. job: the service's id of it."""

    id: str
    event: str
    request: str
    job: str | None = None
    note: str | None = None


class Ledger:
    """An open ledger, for any number of threads; `entries` holds the last entry of each puzzle."""

    def __init__(self, journal: Journal, entries: dict[str, Entry]) -> None:
        self._journal, self.entries = journal, entries

    def write(self, entry: Entry) -> None:
        """Appends an entry; it is on disk on return. Raises UserError if the disk refuses."""
        self._journal.write(asdict(entry))
        self.entries[entry.id] = entry


@contextmanager
def open_ledger(path: Path) -> Iterator[Ledger]:
    """The ledger at `path`, made if needed, for this process alone. Raises UserError as `open_journal`, or if it is damaged."""
    with open_journal(path) as journal:
        entries = (_entry(line, f"{path} line {number}") for number, line in enumerate(journal.lines, 1))
        yield Ledger(journal, {entry.id: entry for entry in entries})


def is_job(job: Any) -> bool:
    """Whether a service's id of a job is a plain one: it goes into addresses and into the ledger."""
    return isinstance(job, str) and bool(_JOB.fullmatch(job)) and ".." not in job and "//" not in job


def _entry(line: bytes, where: str) -> Entry:
    bad = UserError(f"{where} is no entry of a ledger; repair that line or choose another --out")
    try:
        values = json.loads(line)
        entry = Entry(**{field.name: values.get(field.name) for field in fields(Entry)})
    except (ValueError, AttributeError, RecursionError):
        raise bad from None
    texts = (entry.id, entry.event, entry.request, "" if entry.note is None else entry.note)
    if not all(isinstance(text, str) for text in texts) or entry.event not in EVENTS:
        raise bad
    if not (is_job(entry.job) or (entry.job is None and entry.event not in ("submitted", "finished", "lost"))):
        raise bad
    return entry
