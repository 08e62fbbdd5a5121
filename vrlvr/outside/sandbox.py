"""Child processes that read what strangers wrote: how they start, what they see, how much of the machine they get, and how
what strangers wrote is shown."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

try:
    import resource
except ImportError:  # no POSIX system
    resource = None  # type: ignore[assignment]

GIB = 1024**3
_ROOT = Path(__file__).parents[1]
_PASSED_ON = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TMPDIR")


def command(module: str, *arguments: str) -> list[str]:
    """The command line that runs a module of this package; nothing is imported from the current folder."""
    return [sys.executable, "-P", "-m", module, *arguments]


def environment() -> dict[str, str]:
    """What a child sees of our environment: enough to find its libraries, and no keys of any service."""
    known = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    return known | {"PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def unenforced() -> Sequence[str]:
    """The limits that this platform has no means for, in words."""
    if resource is None:
        return ("memory", "processor time", "writing files")
    return () if sys.platform == "linux" else ("memory",)


def limit(memory_bytes: int, shared_bytes: int = 0, file_bytes: int = 0) -> None:
    """Limits this process for good: private memory (and what it maps besides), the size of files that it writes, no core
    dumps. Never raises a limit that it was started with."""
    if resource is None:
        return
    _lower(resource.RLIMIT_DATA, memory_bytes)
    _lower(resource.RLIMIT_AS, memory_bytes + shared_bytes)
    _lower(resource.RLIMIT_FSIZE, file_bytes)
    _lower(resource.RLIMIT_CORE, 0)


def limit_seconds(seconds: int) -> None:
    """Lets this process use so much processor time from now on; the system ends it afterwards."""
    if resource is not None:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        until = int(usage.ru_utime + usage.ru_stime) + 1 + seconds
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (until if hard == resource.RLIM_INFINITY else min(until, hard), hard))


def printable(text: str) -> str:
    """Text from outside in one line without control characters; names that are no UTF-8 included."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _lower(which: int, value: int) -> None:
    _, hard = resource.getrlimit(which)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    try:
        resource.setrlimit(which, (value, value))
    except (ValueError, OSError):  # macOS refuses some limits on memory: see `unenforced`
        if sys.platform == "linux":
            raise
