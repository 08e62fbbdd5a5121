"""Archives from outside, extracted where they can do no harm: into a fresh folder, by a child process with limits.

Of an archive only plain files and folders are taken, under relative names without `..`; one with anything else in it (links,
devices, absolute names, two members of one name) is refused as a whole. Sizes are counted as they are written, whatever the
headers say.
"""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.text import Text

from vrlvr.errors import UserError
from vrlvr.outside import sandbox
from vrlvr.outside.sandbox import printable

MAX_MEMBERS = 200_000
MAX_BYTES = 64 * sandbox.GIB
MAX_SECONDS = 4 * 3600
MEMORY_BYTES = sandbox.GIB


@contextmanager
def extracted(archive: Path, max_members: int = MAX_MEMBERS, max_bytes: int = MAX_BYTES) -> Iterator[Path]:
    """Gives the content of a .zip, .tar, .tar.gz, .tar.bz2 or .tar.xz as a folder, which is removed at the end.

    Raises UserError, one line with the file and the cause.
    """
    if not archive.is_file():
        raise UserError(f"{printable(str(archive))} is neither a folder nor an archive; check its name")
    with tempfile.TemporaryDirectory(prefix="vrlvr-") as name:
        with Console(stderr=True).status(Text(f"extracting {printable(str(archive))}")):
            _run(archive, Path(name), max_members, max_bytes)
        yield Path(name)


def _run(archive: Path, folder: Path, max_members: int, max_bytes: int) -> None:
    """`extract` in a child process. Raises UserError."""
    arguments = (os.fspath(archive.absolute()), os.fspath(folder), str(max_members), str(max_bytes), str(MEMORY_BYTES))
    what = printable(str(archive))
    try:
        result = subprocess.run(
            sandbox.command("vrlvr.outside.archive_extractor", *arguments),
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
