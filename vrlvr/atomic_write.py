"""Files that are never seen half written."""

import os
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Replaces a file's content in one step: a crash or a full disk leaves the old content as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
