"""Files that are never seen half written, and disks that refuse."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vrlvr.errors import UserError


def write_text(path: Path, text: str) -> None:
    """Replaces a file's content in one step, its folder made if needed. Raises UserError if the disk refuses."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a name beside `path` to write to, and moves it to `path` at the end: a crash or a full disk leaves that as it was.

    Raises UserError if the file system refuses (full disk, missing folder, no permission).
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with writing(path):
        try:
            yield partial
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns what the system says about writing `path` into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror or error}); free some disk space or choose a folder that exists "
            f"and is writable; what was saved before is still there"
        ) from error
