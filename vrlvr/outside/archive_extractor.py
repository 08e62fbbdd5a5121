"""The child process of `vrlvr.outside.archives`: `python -P -m THIS ARCHIVE FOLDER MEMBERS BYTES MEMORY`.

Ends with exit code 1 and a line on stderr, words that follow the archive's name, where it is not extracted.
"""

import lzma
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from vrlvr.outside import sandbox

_BLOCK = 1024 * 1024
_MAX_DEPTH = 16
_DAMAGED = (
    *(OSError, EOFError, ValueError, RuntimeError, NotImplementedError),
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError),
)

Member = tuple[str, IO[bytes] | None]  # name; content, None for a folder


class Refused(Exception):
    """Why an archive is not extracted, in words that follow its name."""


def main(archive: str, folder: str, max_members: str, max_bytes: str, memory_bytes: str) -> None:
    """`extract` with the limits of a child process."""
    sandbox.limit(int(memory_bytes), file_bytes=int(max_bytes))
    try:
        extract(Path(archive), Path(folder), int(max_members), int(max_bytes))
    except Refused as error:
        sys.exit(str(error))
    except MemoryError:
        sys.exit("needs too much memory to extract")
    except _DAMAGED as error:
        sys.exit(f"cannot be extracted ({' '.join(str(error).split()) or type(error).__name__})")


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
    """A member's name as a path below the folder. Raises Refused if it could lead anywhere else, or goes too deep."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise Refused(f"holds {name!r}, which could lie outside its folder")
    if len(path.parts) > _MAX_DEPTH:
        raise Refused(f"holds folders in folders, more than {_MAX_DEPTH} deep")
    return path


if __name__ == "__main__":
    main(*sys.argv[1:])
