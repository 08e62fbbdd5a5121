"""Decoders gone wrong, as a hostile video could make them: python bad_decoder.py KIND SOCKET MEMORY SHARED."""

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from vrlvr.outside import video_decoder


def hang(*_):
    time.sleep(600)


def spin(*_):
    while True:
        pass


def grow(*_):
    return {"frames": int(np.ones(2**31, np.uint8)[0])}


def crash(*_):
    os.kill(os.getpid(), signal.SIGSEGV)


def vanish(*_):
    os.kill(os.getpid(), signal.SIGRTMIN + 6)


def leave(*_):
    os._exit(3)


def boast(*_):
    return {"frames": 10**6, "height": 10**4, "width": 10**4, "source": [1, 1], "fit": "scaled"}


def minus(*_):
    return {"frames": -1, "height": -1, "width": 3, "source": [1, 1], "fit": "scaled"}


def invent(*_):
    return {"frames": 1, "height": 1, "width": 1, "source": [1, 1], "fit": "\x1b[31m solved"}


def mumble(*_):
    return ["frames"]


def shout(*_):
    raise video_decoder.Refused("\x1b[31m\nred" + "!" * 1000)


def cut(*_):
    """Takes the shared memory away under the parent's feet."""
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            if "memfd" in os.readlink(f"/proc/self/fd/{name}"):
                os.ftruncate(int(name), 0)


def write(*_):
    Path(os.environ["TMPDIR"], "written").write_bytes(b"x")
    return {}


def betray(*_):
    raise video_decoder.Refused(",".join(sorted(os.environ)))


def nest(*_):
    video_decoder._answer = lambda *_: b"[" * 4000 + b"\n"


if __name__ == "__main__":
    kind = sys.argv.pop(1)
    if kind == "nest":
        nest()
    else:
        video_decoder.decode = globals()[kind]
    video_decoder.main()
