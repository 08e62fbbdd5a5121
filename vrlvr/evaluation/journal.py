"""Append-only JSONL files that tell, after any crash, what was done: one writer at a time, each line on disk when written."""

import fcntl
import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from io import BufferedRandom
from pathlib import Path
from typing import Any

from vrlvr.atomic_write import writing
from vrlvr.errors import UserError

MAX_JOURNAL_BYTES = 512 * 1024**2


class Journal:
    """An open journal, for any number of threads. lines: what it held when it was opened."""

    def __init__(self, file: BufferedRandom, lines: list[bytes]) -> None:
        self._file, self._lock, self.lines = file, threading.Lock(), lines

    def write(self, fields: Mapping[str, Any]) -> None:
        """Appends a line of these fields, without those that are None, and the time. Raises UserError if the disk refuses."""
        stamped = {"time": datetime.now(UTC).isoformat(timespec="seconds"), **fields}
        line = json.dumps({name: value for name, value in stamped.items() if value is not None})
        with self._lock, writing(Path(self._file.name)):
            self._file.write(f"{line}\n".encode())
            self._file.flush()
            os.fsync(self._file.fileno())


@contextmanager
def open_journal(path: Path) -> Iterator[Journal]:
    """The journal at `path`, made if needed, for this process alone.

    A last line that a crash cut off is dropped: the one before it still holds.
    Raises UserError if another process holds it, it is too large, or the file system refuses.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{path} is in use by another run; wait for that, or choose another --out") from None
        with writing(path):
            _sync(path.parent)
            file.seek(0)
            text = file.read(MAX_JOURNAL_BYTES + 1)
            if len(text) > MAX_JOURNAL_BYTES:
                raise UserError(f"{path} is larger than {MAX_JOURNAL_BYTES} bytes; choose another --out")
            whole = text.rfind(b"\n") + 1
            file.truncate(whole)
        yield Journal(file, text[:whole].splitlines())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
