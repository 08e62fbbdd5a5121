"""The child process that decodes videos, as its parent sees it: started, asked, ended where it hangs or talks nonsense."""

import json
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Any

from vrlvr.outside import sandbox
from vrlvr.outside.video_decoder import MAX_MESSAGE

_START_SECONDS = 60


class Refused(Exception):
    """Why a video is not read, in words that follow its name."""


class DecoderProcess:
    """A running decoder. Raises RuntimeError if it does not start."""

    def __init__(self, command: Sequence[str], memory_bytes: int, shared_bytes: int) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [*command, str(theirs.fileno()), str(memory_bytes), str(shared_bytes)],
                pass_fds=(theirs.fileno(),),
                env=sandbox.environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # FFmpeg's complaints, in words that a video may choose
            )
        try:
            self._answer(time.monotonic() + _START_SECONDS)
        except (Refused, TimeoutError) as error:
            self.end()
            raise RuntimeError(f"the video decoder does not start: {' '.join(command)} {error}") from error
        except BaseException:
            self.end()
            raise

    def alive(self) -> bool:
        return self._process.poll() is None

    def end(self) -> None:
        """Kills it, whatever it is doing."""
        self._socket.close()
        self._process.kill()
        self._process.wait()

    def ask(self, request: bytes, descriptors: list[int], wall_seconds: float) -> Mapping[str, Any]:
        """Its answer to a request. Raises Refused where it takes too long, dies or answers nonsense."""
        try:
            socket.send_fds(self._socket, [request], descriptors)
            return self._answer(time.monotonic() + wall_seconds)
        except TimeoutError as error:
            raise Refused(f"takes more than {wall_seconds} seconds to be decoded") from error
        except ConnectionError as error:
            raise Refused(self._death()) from error

    def _answer(self, deadline: float) -> Mapping[str, Any]:
        line = b""
        while not line.endswith(b"\n"):
            self._socket.settimeout(max(0.0, deadline - time.monotonic()) or 1e-6)
            try:
                received = self._socket.recv(MAX_MESSAGE)
            except ConnectionError:
                received = b""
            if not received:
                raise Refused(self._death())
            line += received
            if len(line) > MAX_MESSAGE:
                raise Refused("makes the decoder answer nonsense")
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise Refused("makes the decoder answer nonsense") from error
        if not isinstance(answer, dict):
            raise Refused("makes the decoder answer nonsense")
        return answer

    def _death(self) -> str:
        """How it ended, for it has hung up."""
        try:
            code = self._process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            return "makes the decoder hang up"
        if code == -signal.SIGXCPU:
            return "takes too much processor time to be decoded"
        if code < 0:
            return f"makes the decoder crash ({signal.strsignal(-code)})"
        return f"makes the decoder crash (exit code {code})"
