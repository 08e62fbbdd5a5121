"""Videos on disk: H.264 in MP4 for the data sets, GIF for reports. Arrays are video_TYXC, uint8 RGB.

Files appear under their name only when complete.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from numpy.typing import NDArray
from PIL import Image

from vrlvr.atomic_write import replacing
from vrlvr.errors import UserError
from vrlvr.outside.hostile_video import shared_decoder

# Constant quantiser: no rate control, and boards of flat colours stay near-lossless at about 40 KB for 81 full-size frames.
_ENCODER = {"preset": "ultrafast", "qp": "18", "threads": "1", "g": "250"}


def write_mp4(
    path: Path, video_TYXC: NDArray[np.uint8], fps: int, scale: int = 1, holds: Sequence[int] | None = None
) -> None:
    """Writes H.264 (yuv420p, constant quality, one thread: equal input gives equal bytes).

    scale: enlarges every pixel to scale x scale. holds: how many frames each given frame is shown, 1 each by default;
    a still that is held is converted once. Raises UserError for sides that yuv420p cannot hold, and as `replacing` does.
    """
    _check(video_TYXC)
    height, width = video_TYXC.shape[1] * scale, video_TYXC.shape[2] * scale
    if height % 2 or width % 2:
        raise UserError(f"frames of {height}x{width} have an odd side, which H.264 cannot hold; use scale={2 * scale}")
    memory = io.BytesIO()
    with av.open(memory, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options=_ENCODER)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        context = stream.codec_context
        context.colorspace, context.color_range = Colorspace.ITU601, ColorRange.MPEG
        shown = 0
        for pixels, hold in zip(video_TYXC, holds if holds is not None else [1] * len(video_TYXC), strict=True):
            rgb = av.VideoFrame.from_ndarray(_enlarge(pixels, scale), format="rgb24")
            frame = rgb.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU601, dst_color_range=ColorRange.MPEG)
            for _ in range(hold):
                frame.pts = shown
                shown += 1
                container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with replacing(path) as partial:
        partial.write_bytes(memory.getbuffer())


def read_mp4(path: Path) -> NDArray[np.uint8]:
    """Decodes a video into video_TYXC, in a child process with limits (see vrlvr.outside.hostile_video).

    Raises UserError with one line if the file is missing, empty, cut off, no video, or beyond the limits.
    """
    return shared_decoder().read(path).video_TYXC


def write_gif(path: Path, video_TYXC: NDArray[np.uint8], fps: int, scale: int = 1) -> None:
    """Writes an endless GIF, at most 50 frames a second and 256 colours a frame. Raises UserError as `replacing` does."""
    _check(video_TYXC)
    images = [Image.fromarray(_enlarge(frame, scale)).quantize(dither=Image.Dither.NONE) for frame in video_TYXC]
    with replacing(path) as partial:
        images[0].save(
            partial,
            format="GIF",
            save_all=True,
            append_images=images[1:],
            duration=max(20, round(1000 / fps)),
            loop=0,
        )


def grid(videos_BTYXC: NDArray[np.uint8], columns: int, gap: int = 1, colour: int = 255) -> NDArray[np.uint8]:
    """Many videos as one, row by row, `gap` pixels of grey level `colour` around each. Missing places stay empty."""
    count, num_frames, height, width, channels = videos_BTYXC.shape
    rows = -(-count // columns)
    sheet = np.full(
        (num_frames, rows * (height + gap) + gap, columns * (width + gap) + gap, channels), colour, np.uint8
    )
    for i, video in enumerate(videos_BTYXC):
        top, left = gap + i // columns * (height + gap), gap + i % columns * (width + gap)
        sheet[:, top : top + height, left : left + width] = video
    return sheet


def _enlarge(pixels: NDArray[np.uint8], scale: int) -> NDArray[np.uint8]:
    return np.ascontiguousarray(pixels.repeat(scale, 0).repeat(scale, 1) if scale > 1 else pixels)


def _check(video_TYXC: NDArray[np.uint8]) -> None:
    if video_TYXC.ndim != 4 or video_TYXC.shape[3] != 3 or video_TYXC.dtype != np.uint8 or not len(video_TYXC):
        raise ValueError(f"video {video_TYXC.dtype} {video_TYXC.shape} must be uint8 (1 or more frames, Y, X, 3)")
