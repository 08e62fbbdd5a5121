"""Videos from outside, decoded where they can do no harm: in a child process with limits on everything.

The file is opened here (a regular file, never a pipe or a device) and handed over as an open descriptor; frames come back in
shared memory that is sealed to one size. A child serves many videos; one that hangs, crashes or answers nonsense is ended
and replaced, and the video it had is refused.
"""

import contextlib
import fcntl
import json
import math
import mmap
import os
import stat
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from vrlvr.errors import UserError
from vrlvr.outside import sandbox
from vrlvr.outside.decoder_process import DecoderProcess, Refused
from vrlvr.outside.frame_fit import WAYS
from vrlvr.outside.sandbox import printable


@dataclass(frozen=True)
class Limits:
    """What one video may be and take. video_bytes: all its frames as 8-bit RGB, in the size wanted."""

    file_bytes: int = 2 * sandbox.GIB
    frame_pixels: int = 4096 * 4096
    frames: int = 3600
    video_bytes: int = 2 * sandbox.GIB
    seconds: int = 300
    memory_bytes: int = 3 * sandbox.GIB // 2
    cpu_seconds: int = 60
    wall_seconds: int = 120


@dataclass(frozen=True)
class Decoded:
    """video_TYXC: uint8 RGB. source: height and width in the file. fit: how that became video_TYXC's (see frame_fit)."""

    video_TYXC: NDArray[np.uint8]
    source: tuple[int, int]
    fit: str

    @property
    def note(self) -> str:
        """What was done to its size; nothing if that was right."""
        return "" if self.fit == "same size" else f"{self.fit} from {self.source[0]}x{self.source[1]}"


class Unreadable(UserError):
    """A video that is not read. cause: why, in words that follow its name."""

    def __init__(self, path: Path, cause: str) -> None:
        self.cause = printable(cause)
        super().__init__(f"{printable(str(path))} {self.cause}")


class Decoder:
    """A child process for one video after the other. Threads may share it: they wait for each other.

    command: what starts the child, `vrlvr.outside.video_decoder` by default.
    """

    def __init__(self, limits: Limits = Limits(), command: Sequence[str] = ()) -> None:
        self.limits = limits
        self._command = list(command) or sandbox.command("vrlvr.outside.video_decoder")
        self._lock = threading.Lock()
        self._child: DecoderProcess | None = None

    def __enter__(self) -> "Decoder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the child; the next video would start another."""
        if self._child is not None:
            self._child.end()
        self._child = None

    def read(self, path: Path, reference_YXC: NDArray[np.uint8] | None = None) -> Decoded:
        """Decodes a video, into the size of the first frame that its maker was given if that is known (see frame_fit).

        Raises Unreadable, one line with the file and the cause, for whatever is no complete video within the limits.
        """
        try:
            with self._lock, _open(path, self.limits) as file, _shared_memory(self.limits.video_bytes) as memory:
                if reference_YXC is not None:
                    os.pwrite(memory.fileno(), reference_YXC.tobytes(), 0)
                answer = self._ask(file, memory, reference_YXC)
                return _decoded(answer, memory, reference_YXC, self.limits)
        except Refused as error:
            raise Unreadable(path, str(error)) from error

    def _ask(self, file: BinaryIO, memory: BinaryIO, reference_YXC: NDArray[np.uint8] | None) -> Mapping[str, Any]:
        if self._child is None or not self._child.alive():
            self.close()
            self._child = DecoderProcess(self._command, self.limits.memory_bytes, self.limits.video_bytes)
        size = None if reference_YXC is None else reference_YXC.shape[:2]
        request = json.dumps({"limits": asdict(self.limits), "reference": size}).encode() + b"\n"
        try:
            return self._child.ask(request, [file.fileno(), memory.fileno()], self.limits.wall_seconds)
        except BaseException:  # Ctrl-C too: an answer that nobody took must not pass for the next video's
            self.close()
            raise


def shared_decoder() -> Decoder:
    """The decoder that this process keeps."""
    return _decoder_of(os.getpid())


def _open(path: Path, limits: Limits) -> BinaryIO:
    """Opens a regular file and nothing else, without waiting for anybody."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a device may do something by itself
            raise Refused("is no regular file; give a video file")
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC), "rb")
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        raise Refused(f"cannot be read ({getattr(error, 'strerror', None) or error}); give a video file") from error
    status = os.fstat(file.fileno())
    if stat.S_ISREG(status.st_mode) and status.st_size <= limits.file_bytes:
        return file
    file.close()
    if not stat.S_ISREG(status.st_mode):
        raise Refused("is no regular file; give a video file")
    raise Refused(f"is larger than {limits.file_bytes / sandbox.GIB:.3g} GiB; give a smaller file")


@contextlib.contextmanager
def _shared_memory(size: int):
    """A file of `size` bytes that is nowhere on disk where the system has such, and takes no more room than is written."""
    if not hasattr(os, "memfd_create"):
        with tempfile.TemporaryFile() as file:
            file.truncate(size)
            yield file
        return
    descriptor = os.memfd_create("vrlvr-frames", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with os.fdopen(descriptor, "r+b") as file:
        file.truncate(size)
        # A child gone wrong could else cut the file under our feet, which ends a process that reads it.
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        yield file


def _decoded(
    answer: Mapping[str, Any], memory: BinaryIO, reference_YXC: NDArray[np.uint8] | None, limits: Limits
) -> Decoded:
    """The frames that an answer tells of. Trusts nothing in it: a child that reads hostile files may be theirs."""
    if "error" in answer:
        raise Refused(str(answer["error"])[:500])
    try:
        shape = tuple(answer[name] for name in ("frames", "height", "width"))
        source, fit = tuple(answer["source"]), answer["fit"]
    except (KeyError, TypeError) as error:
        raise Refused("makes the decoder answer nonsense") from error
    whole = all(type(number) is int and number > 0 for number in (*shape, *source))
    expected = reference_YXC is None or shape[1:] == reference_YXC.shape[:2]
    if not whole or not expected or len(source) != 2 or fit not in WAYS or 3 * math.prod(shape) > limits.video_bytes:
        raise Refused("makes the decoder answer nonsense")
    size = 3 * shape[0] * shape[1] * shape[2]
    frames = mmap.mmap(memory.fileno(), size, access=mmap.ACCESS_COPY)  # lives as long as the array
    return Decoded(np.frombuffer(frames, np.uint8).reshape(*shape, 3), source, fit)


@cache
def _decoder_of(process: int) -> Decoder:
    """The decoder of a process; a fork must not talk to its parent's."""
    return Decoder()
