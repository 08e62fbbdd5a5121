"""Files that are never seen half written, and disks that refuse."""

import os
import shutil
import tempfile
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


def check_folder(path: Path) -> None:
    """Makes a folder, and writes to it: what takes hours is not to learn in the end that it cannot. Raises UserError."""
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass


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


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Gives an empty folder beside `path` to fill, and moves it to `path` at the end, all of it on disk.

    A full disk leaves the former folder as it was; so does a crash, but that one between the last two renames leaves it named
    `.{name}.former`, from which the next call, or `recover`, restores it. Raises UserError if the file system refuses.
    """
    partial, former = (path.with_name(f".{path.name}.{suffix}") for suffix in ("partial", "former"))
    with writing(path):
        _restore(path, former)
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            yield partial
            for entry in (*partial.rglob("*"), partial):
                _sync(entry)
            shutil.rmtree(former, ignore_errors=True)
            if path.exists():
                path.rename(former)
            partial.rename(path)
            _sync(path.parent)
        finally:
            _restore(path, former)
            shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(former, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Removes a folder so that a crash leaves nothing of it under its name."""
    with writing(path):
        partial = path.with_name(f".{path.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        path.rename(partial)
        shutil.rmtree(partial)


def recover(parent: Path) -> None:
    """Restores the folders that crashes within `replacing_folder` have left in `parent` under another name; clears the rest."""
    with writing(parent):
        for former in parent.glob(".*.former"):
            _restore(parent / former.name[1 : -len(".former")], former)
        for leftover in (*parent.glob(".*.former/"), *parent.glob(".*.partial/")):
            shutil.rmtree(leftover)


def _restore(path: Path, former: Path) -> None:
    if former.exists() and not path.exists():
        former.rename(path)


def _sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
