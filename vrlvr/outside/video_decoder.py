"""The child process of `vrlvr.outside.hostile_video`: decodes videos for `python -P -m THIS SOCKET MEMORY SHARED`.

SOCKET: a file descriptor. A request is a line of JSON {limits, reference: [height, width] or null} with two open files: the
video, and the memory that takes the frames, which begins with the reference frame (uint8 RGB) if there is one. The answer
is a line of JSON, {frames, height, width, source, fit} or {error}. MEMORY, SHARED: bytes that this process may take for
itself, and map from its parent. Everything that reads the video happens here; the path of it is not even known.
"""

import contextlib
import json
import mmap
import os
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import av
import numpy as np
from av.error import FFmpegError
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from vrlvr.outside import frame_fit, sandbox
from vrlvr.outside.frame_fit import Fit

# Decoders by their FFmpeg names. Demuxers are chosen by the first bytes of a file; neither can open another file or address.
CODECS = ("h264", "hevc", "vp8", "vp9", "av1", "libdav1d", "mpeg4")
_MOV_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
_MATROSKA = b"\x1a\x45\xdf\xa3"
MAX_MESSAGE = 4096
# PyAV 17 and later would scale with a thread a core.
_ONE_THREAD: dict[str, Any] = {"threads": 1} if int(av.__version__.split(".")[0]) >= 17 else {}


class Refused(Exception):
    """Why a video is not read, in words that follow its name."""


def main() -> None:
    """Answers requests until the parent hangs up."""
    descriptor, memory, shared = map(int, sys.argv[1:])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    sandbox.limit(memory, shared)
    with socket.socket(fileno=descriptor) as parent:
        parent.sendall(b"{}\n")
        while True:
            line, descriptors, _, _ = socket.recv_fds(parent, MAX_MESSAGE, 2)
            if not line:
                return
            parent.sendall(_answer(json.loads(line), *descriptors))


def _answer(request: Mapping[str, Any], video: int, frames: int) -> bytes:
    sandbox.limit_seconds(request["limits"]["cpu_seconds"])
    with os.fdopen(video, "rb") as file, os.fdopen(frames, "r+b") as shared, mmap.mmap(shared.fileno(), 0) as memory:
        try:
            answer = decode(file, request["limits"], request["reference"], memory)
        except Refused as error:
            answer = {"error": str(error)}
        except MemoryError:
            answer = {
                "error": f"needs more than {request['limits']['memory_bytes'] / sandbox.GIB:.3g} GiB to be decoded"
            }
        except (FFmpegError, OSError, ValueError) as error:
            answer = {"error": f"cannot be decoded ({str(getattr(error, 'strerror', None) or error)[:300]})"}
    return json.dumps(answer).encode()[: MAX_MESSAGE - 1] + b"\n"


def decode(
    file: BinaryIO, limits: Mapping[str, int], reference: tuple[int, int] | None, memory: mmap.mmap
) -> dict[str, Any]:
    """Decodes a video into memory, frame after frame as uint8 RGB, in the reference's size if there is one.

    Raises Refused, MemoryError, or what FFmpeg raises.
    """
    buffer = np.frombuffer(memory, np.uint8)
    picture = None if reference is None else buffer[: 3 * reference[0] * reference[1]].reshape(*reference, 3).copy()
    scale, count, fit, source = VideoReformatter(), 0, Fit("", 0, 0), (0, 0)
    try:
        for frame in _frames(file, limits):
            if count == 0:
                source = (frame.height, frame.width)
                fit = _choose(frame, source, picture)
                size = source if picture is None else picture.shape[:2]
                most = min(limits["frames"], len(buffer) // (3 * size[0] * size[1]))
            if (frame.height, frame.width) != source:
                raise Refused("changes its frame size on the way; give a video of one size")
            if count == most:
                raise Refused(f"has more than {most} frames of {size[0]}x{size[1]}; cut it or scale it down")
            start, length = count * 3 * size[0] * size[1], 3 * size[0] * size[1]
            frame_fit.place(_scaled(scale, frame, fit), fit, buffer[start : start + length].reshape(*size, 3))
            count += 1
    finally:
        del buffer  # memory cannot be unmapped while an array shows it
    if count == 0:
        raise Refused("holds no frame; give a complete video")
    return {"frames": count, "height": size[0], "width": size[1], "source": source, "fit": fit.name}


def _frames(file: BinaryIO, limits: Mapping[str, int]) -> Iterator[VideoFrame]:
    """The frames of the best video stream, each checked. Raises Refused for what is not allowed, and for a file cut off."""
    options = {"codec_whitelist": ",".join(CODECS)}
    with av.open(file, "r", format=_container(file), options=options, metadata_errors="replace") as container:
        stream = container.streams.best("video")
        if not isinstance(stream, VideoStream):
            raise Refused("holds no video stream; give an mp4 video")
        context = stream.codec_context
        if context is None or context.name not in CODECS:
            raise Refused(
                f"is coded as {context.name if context else 'nothing known'}; use H.264, HEVC, VP8, VP9, AV1 or MPEG-4"
            )
        context.thread_count = 1
        context.options = {"max_pixels": str(limits["frame_pixels"])}
        _check_size(context.height, context.width, limits)
        packets, number, begin = 0, 0, None
        for packet in container.demux(stream):
            packets += packet.size > 0
            if packet.is_corrupt:
                raise Refused(f"is cut off in frame {packets}; write or copy it again")
            for frame in packet.decode():
                _check_size(frame.height, frame.width, limits)
                if frame.is_corrupt:
                    raise Refused(f"is damaged in frame {number}; write or copy it again")
                begin = frame.time if begin is None else begin
                if begin is not None and frame.time is not None and frame.time - begin > limits["seconds"]:
                    raise Refused(f"lasts more than {limits['seconds']} seconds; cut it")
                yield frame
                number += 1
        if packets < stream.frames:
            raise Refused(f"ends after {packets} of {stream.frames} frames; write or copy it again")


def _container(file: BinaryIO) -> str:
    """The demuxer for a file, by its first bytes."""
    head = file.read(12)
    file.seek(0)
    if head[4:8] in _MOV_BOXES:
        return "mov"
    if head[:4] == _MATROSKA:
        return "matroska"
    raise Refused("is neither MP4 nor WebM" if head else "is empty; write or copy it again")


def _check_size(height: int, width: int, limits: Mapping[str, int]) -> None:
    if height * width > limits["frame_pixels"]:
        raise Refused(f"has frames of {height}x{width}, more than {limits['frame_pixels']} pixels; scale it down")


def _choose(frame: VideoFrame, source: tuple[int, int], reference: NDArray[np.uint8] | None) -> Fit:
    if reference is None:
        return frame_fit.fits(source, source)[0]
    candidates = frame_fit.fits(source, (reference.shape[0], reference.shape[1]))
    if len(candidates) == 1:
        return candidates[0]
    return frame_fit.best([(fit, _scaled(VideoReformatter(), frame, fit).copy()) for fit in candidates], reference)


def _scaled(scale: VideoReformatter, frame: VideoFrame, fit: Fit) -> NDArray[np.uint8]:
    """A frame as uint8 RGB in a fit's size. Colours by the file's own tags; BT.601 without, as FFmpeg and players take it."""
    smaller = fit.height * fit.width < frame.height * frame.width
    rgb = scale.reformat(
        frame,
        width=fit.width,
        height=fit.height,
        format="rgb24",
        interpolation=Interpolation.AREA if smaller else Interpolation.BILINEAR,
        **_ONE_THREAD,
    )
    plane = rgb.planes[0]
    return (
        np.frombuffer(memoryview(plane), np.uint8)
        .reshape(plane.height, plane.line_size)[:, : 3 * fit.width]
        .reshape(fit.height, fit.width, 3)
    )


if __name__ == "__main__":
    with contextlib.suppress(ConnectionError):  # the parent has gone
        main()
