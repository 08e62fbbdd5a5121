"""Archives from outside, extracted where they can do no harm: into a fresh folder, by a child process with limits.

Of an archive only plain files and folders are taken, under relative names without `..`; one with anything else in it (links,
devices, absolute names, two members of one name) is refused as a whole. Sizes are counted as they are written, whatever the
headers say.
"""

import lzma
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from rich.console import Console
from rich.text import Text

from vrlvr import sandbox
from vrlvr.errors import UserError
from vrlvr.hostile_video import printable
from vrlvr.puzzles import ROOMS

MAX_MEMBERS = 200_000
MAX_BYTES = 256 * sandbox.GIB
MAX_SECONDS = 4 * 3600
_MEMORY_BYTES = sandbox.GIB
_BLOCK = 1024 * 1024

_DAMAGED = (
    *(OSError, EOFError, ValueError, RuntimeError, NotImplementedError),
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError),
)

Member = tuple[str, IO[bytes] | None]  # name; content, None for a folder


class Refused(Exception):
    """Why an archive is not extracted, in words that follow its name."""


@contextmanager
def extracted(archive: Path, max_members: int = MAX_MEMBERS, max_bytes: int = MAX_BYTES) -> Iterator[Path]:
    """Gives the content of a .zip, .tar, .tar.gz, .tar.bz2 or .tar.xz as a folder, which is removed at the end.

    Where the archive holds one folder and nothing else, it is that one. Raises UserError, one line with the file and the cause.
    """
    if not archive.is_file():
        raise UserError(f"{printable(str(archive))} is neither a folder nor an archive; check its name")
    with tempfile.TemporaryDirectory(prefix="vrlvr-") as name:
        with Console(stderr=True).status(Text(f"extracting {printable(str(archive))}")):
            _run(archive, Path(name), max_members, max_bytes)
        yield _only_folder(Path(name))


def extract(archive: Path, folder: Path, max_members: int, max_bytes: int) -> None:
    """Extracts into an empty folder. Raises Refused, and what zipfile, tarfile and the file system raise."""
    left = max_bytes
    with archive.open("rb") as file:
        for number, (name, content) in enumerate(_members(file), 1):
            if number > max_members:
                raise Refused(f"has more than {max_members} members")
            target = folder / _relative(name)
            if content is None:
                target.mkdir(parents=True, exist_ok=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                output = target.open("xb")
            except FileExistsError as error:
                raise Refused(f"holds two members named {name!r}") from error
            with content, output:
                while block := content.read(_BLOCK):
                    left -= len(block)
                    if left < 0:
                        raise Refused(f"holds more than {max_bytes / sandbox.GIB:.3g} GiB")
                    output.write(block)


def _members(file: IO[bytes]) -> Iterator[Member]:
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            for entry in archive.infolist():
                kind = entry.external_attr >> 16 & 0o170000  # as Unix archivers store it; 0 from others
                if kind not in (0, 0o040000, 0o100000):
                    raise Refused(f"holds {entry.filename!r}, which is a link or a device")
                yield entry.filename, None if entry.is_dir() else archive.open(entry)
        return
    file.seek(0)
    with tarfile.open(fileobj=file, mode="r|*") as archive:
        for member in archive:
            if not member.isreg() and not member.isdir():
                raise Refused(f"holds {member.name!r}, which is a link or a device")
            yield member.name, archive.extractfile(member)


def _relative(name: str) -> PurePosixPath:
    """A member's name as a path below the folder. Raises Refused if it could lead anywhere else."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise Refused(f"holds {name!r}, which could lie outside its folder")
    return path


def _only_folder(folder: Path) -> Path:
    shown = [entry for entry in folder.iterdir() if not entry.name.startswith((".", "__MACOSX"))]
    return shown[0] if len(shown) == 1 and shown[0].is_dir() and shown[0].name not in ROOMS else folder


def _run(archive: Path, folder: Path, max_members: int, max_bytes: int) -> None:
    """`extract` in a child process. Raises UserError."""
    arguments = (os.fspath(archive.absolute()), os.fspath(folder), str(max_members), str(max_bytes))
    what = printable(str(archive))
    try:
        result = subprocess.run(
            sandbox.command("vrlvr.archives", *arguments),
            env=sandbox.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=MAX_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{what} takes more than {MAX_SECONDS} seconds to extract; extract it yourself") from error
    if result.returncode:
        lines = result.stderr.decode(errors="replace").strip().splitlines()
        why = printable(lines[-1]) if lines else f"ends its reader (exit code {result.returncode})"
        raise UserError(f"{what} {why}; give a folder, or an archive of plain files")


def _main(archive: str, folder: str, max_members: str, max_bytes: str) -> None:
    sandbox.limit(_MEMORY_BYTES, file_bytes=int(max_bytes))
    try:
        extract(Path(archive), Path(folder), int(max_members), int(max_bytes))
    except Refused as error:
        sys.exit(str(error))
    except MemoryError:
        sys.exit("needs too much memory to extract")
    except (
        OSError,
        EOFError,
        ValueError,
        RuntimeError,
        NotImplementedError,
        zipfile.BadZipFile,
        tarfile.TarError,
    ) as error:
        sys.exit(f"cannot be extracted ({' '.join(str(error).split()) or type(error).__name__})")


if __name__ == "__main__":
    _main(*sys.argv[1:])
