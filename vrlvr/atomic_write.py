"""Files that are never seen half written, and disks that refuse."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vrlvr.errors import UserError


def write_text(path: Path, text: str) -> None:
    """Replaces a file's content in one step: a crash or a full disk leaves the old content as it was.

    Raises UserError if the disk refuses.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_text(text, encoding="utf-8")
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
            f"{path} cannot be written ({error.strerror or error}); free some disk space or choose another folder, "
            f"what was saved before is still there"
        ) from error
