"""The ledger of billed calls: an append-only JSONL file that knows, after any crash, what was paid for.

A line is on disk before a billed call (`submitting`) and after it. What follows `submitting`:

    submitted   the service's job id
    rejected    the service did nothing: the puzzle may be asked again
    nothing     a crash or a lost reply: whether it is billed is unknown, so it is never repeated by itself
    finished    the video is on disk
    failed      the service refused or gave up for good
    lost        the service no longer knows the job
"""

import fcntl
import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from io import BufferedRandom
from pathlib import Path
from typing import Any

from vrlvr.atomic_write import writing
from vrlvr.errors import UserError

EVENTS = ("submitting", "submitted", "rejected", "finished", "failed", "lost")
MAX_LEDGER_BYTES = 256 * 1024**2
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

    def __init__(self, file: BufferedRandom, entries: dict[str, Entry]) -> None:
        self._file, self._lock, self.entries = file, threading.Lock(), entries

    def write(self, entry: Entry) -> None:
        """Appends an entry; it is on disk on return. Raises UserError if the disk refuses."""
        fields = {"time": datetime.now(UTC).isoformat(timespec="seconds")} | asdict(entry)
        line = json.dumps({name: value for name, value in fields.items() if value is not None})
        with self._lock, writing(Path(self._file.name)):
            self._file.write(f"{line}\n".encode())
            self._file.flush()
            os.fsync(self._file.fileno())
            self.entries[entry.id] = entry


@contextmanager
def open_ledger(path: Path) -> Iterator[Ledger]:
    """The ledger at `path`, made if needed, for this process alone.

    Raises UserError if another process holds it, or it is damaged anywhere but at its end: a last line that a crash cut off
    was never acted on, and is dropped.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{path} is in use by another run; wait for that, or choose another --out") from error
        with writing(path):
            _sync_folder(path.parent)
            file.seek(0)
            text = file.read(MAX_LEDGER_BYTES + 1)
            if len(text) > MAX_LEDGER_BYTES:
                raise UserError(f"{path} is larger than {MAX_LEDGER_BYTES} bytes; choose another --out")
            whole = text.rfind(b"\n") + 1
            file.truncate(whole)
        entries = {}
        for number, line in enumerate(text[:whole].splitlines(), 1):
            entry = _entry(line, f"{path} line {number}")
            entries[entry.id] = entry
        yield Ledger(file, entries)


def is_job(job: Any) -> bool:
    """Whether a service's id of a job is a plain one: it goes into addresses and into the ledger."""
    return isinstance(job, str) and bool(_JOB.fullmatch(job)) and ".." not in job and "//" not in job


def _entry(line: bytes, where: str) -> Entry:
    try:
        fields = json.loads(line)
        entry = Entry(**{name: value for name, value in fields.items() if name != "time"})
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{where} is no entry of a ledger; repair that line or choose another --out") from None
    texts = (entry.id, entry.event, entry.request, entry.job or "", entry.note or "")
    if not all(isinstance(text, str) for text in texts) or entry.event not in EVENTS:
        raise UserError(f"{where} is no entry of a ledger; repair that line or choose another --out")
    if (entry.job is not None and not is_job(entry.job)) or (entry.event == "submitted" and entry.job is None):
        raise UserError(f"{where} holds no proper job id; repair that line or choose another --out")
    return entry


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
