"""What happens to an honest video between its maker and its judge: codecs, scaling, colours, frame rates.

Every change is told in pixels of full-size frames (cells of 52 to 68 pixels) and shrinks with the cells of smaller ones.
"""

import io
from collections.abc import Callable

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from numpy.typing import NDArray
from PIL import Image

from vrlvr.evaluation.corpus.making import Rng
from vrlvr.evaluation.corpus.rules import solves
from vrlvr.evaluation.corpus.scene import Scene, States, Video, distinct, draw, place
from vrlvr.puzzles import Puzzle

Retiming = Callable[[Puzzle, States, Rng], States]
Filter = Callable[[Video, float, Rng], Video]  # video, strength: side of a cell in units of a full-size one, at most 1

_FULL_CELL_PX = 52


def strength(puzzle: Puzzle, scene: Scene) -> float:
    """How strong a filter may be, in (0, 1]: in proportion to the cells."""
    return min(1.0, place(puzzle, scene).cell / _FULL_CELL_PX)


# ------------------------------------------------------------------------------------------------------- in time


def other_fps(puzzle: Puzzle, states: States, rng: Rng) -> States:
    """The nearest frame at 0.5 to 2.5 times the rate; slower ones only where every move is still seen."""
    for rate in (float(rng.choice([0.5, 0.625, 0.75, 1.25, 1.5, 1.875, 2.5])), 1.5):
        index = np.round(np.arange(0, len(states) - 0.5, 1 / rate)).astype(int)
        resampled = states[np.minimum(index, len(states) - 1)]
        if solves(puzzle, resampled):
            return resampled
    raise ValueError("a video at 1.5 times its frame rate is no solution; mend the corpus")


def dropped_frame(puzzle: Puzzle, states: States, rng: Rng) -> States:
    """One frame is lost, of a state that is shown more than once: otherwise a dropped frame is a skipped move."""
    same = (states[1:] == states[:-1]).all((1, 2))
    frames = np.flatnonzero(np.concatenate([same, [False]]) | np.concatenate([[False], same]))
    return np.delete(states, rng.choice(frames), axis=0) if len(frames) else states


def doubled_frame(puzzle: Puzzle, states: States, rng: Rng) -> States:
    """One frame is shown twice."""
    frame = rng.integers(len(states))
    return np.insert(states, frame, states[frame], axis=0)


# ------------------------------------------------------------------------------------------------------ in pixels


def blur(video: Video, strength: float, rng: Rng) -> Video:
    """Gaussian, sigma 0.5 to 2 pixels."""
    return gaussian(video, strength * rng.uniform(0.5, 2.0))


def gaussian(video: Video, sigma: float) -> Video:
    """Separable, cut off at 3 sigma, edges repeated."""
    reach = max(1, int(np.ceil(3 * sigma)))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2).astype(np.float32)
    kernel /= kernel.sum()
    out = np.empty_like(video)
    for at, frame in enumerate(video):
        blurred = frame.astype(np.float32)
        for axis in (0, 1):
            padding = [(reach, reach) if side == axis else (0, 0) for side in range(3)]
            wide, size = np.pad(blurred, padding, mode="edge"), frame.shape[axis]
            blurred = sum(
                weight * (wide[i : i + size] if axis == 0 else wide[:, i : i + size]) for i, weight in enumerate(kernel)
            )
        out[at] = blurred.round()
    return out


def darker(video: Video, strength: float, rng: Rng) -> Video:
    """Gain 0.8 to 0.95."""
    return _gained(video, rng.uniform(0.8, 0.95))


def brighter(video: Video, strength: float, rng: Rng) -> Video:
    """Gain 1.05 to 1.2."""
    return _gained(video, rng.uniform(1.05, 1.2))


def _gained(video: Video, gain: float) -> Video:
    return np.clip(np.arange(256) * gain, 0, 255).round().astype(np.uint8)[video]


def hue_drift(video: Video, strength: float, rng: Rng) -> Video:
    """Hue turns evenly by up to 15 degrees until the end, and each channel's gain drifts by up to 8 %."""
    turn, gains = np.deg2rad(rng.uniform(-15, 15)), rng.uniform(-0.08, 0.08, 3)
    out = np.empty_like(video)
    for at, share in enumerate(np.linspace(0, 1, len(video))):
        matrix = (hue_matrix(turn * share) * (1 + gains[:, None] * share)).astype(np.float32)
        out[at] = np.clip(video[at].astype(np.float32) @ matrix.T, 0, 255).round()
    return out


def hue_matrix(radians: float) -> NDArray[np.float64]:
    """Rotation of RGB about its grey axis (Rodrigues' formula)."""
    axis = np.full((3, 3), 1 / 3)
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    return np.cos(radians) * np.eye(3) + (1 - np.cos(radians)) * axis + np.sin(radians) * cross


def scaled(video: Video, height: int, width: int, filtering: Image.Resampling = Image.Resampling.BICUBIC) -> Video:
    """Every frame at another size."""
    return np.stack([np.asarray(Image.fromarray(frame).resize((width, height), filtering)) for frame in video])


def _other_size(video: Video, strength: float, rng: Rng, least_px: int) -> tuple[int, int]:
    """0.35 to 1.5 times the size, but with cells of least_px or more; 2 to 4 times where they are tiny."""
    cell = strength * _FULL_CELL_PX
    factor = float(rng.integers(2, 5)) if cell <= 9 else rng.uniform(min(1.0, max(0.35, least_px / cell)), 1.5)
    return 2 * round(video.shape[1] * factor / 2), 2 * round(video.shape[2] * factor / 2)


def at_another_size(video: Video, strength: float, rng: Rng) -> Video:
    """Scaled, and left so; cells keep 16 pixels, below which scaled videos of non-integer factors are not promised."""
    return scaled(video, *_other_size(video, strength, rng, 16))


def scaled_and_back(video: Video, strength: float, rng: Rng) -> Video:
    """Scaled, and scaled back."""
    return scaled(scaled(video, *_other_size(video, strength, rng, 9)), *video.shape[1:3])


def detail_lost(video: Video, strength: float, rng: Rng) -> Video:
    """Half of what is finer than 4 pixels goes, as in a latent video codec."""
    height, width = video.shape[1:3]
    size = max(1, round(4 * strength))
    coarse = scaled(video, height // size, width // size, Image.Resampling.BOX)
    low = scaled(coarse, height, width, Image.Resampling.BILINEAR)
    return ((video.astype(np.uint16) + low + 1) // 2).astype(np.uint8)


def smeared(video: Video, strength: float, rng: Rng) -> Video:
    """10 to 30 % of each frame come from those beside it, as in a codec that packs 4 into one; and a grain of 2 levels."""
    height, width = video.shape[1:3]
    share, field = np.float32(rng.uniform(0.1, 0.3)), _speckles(height, width, 2.0, rng)
    out = np.empty_like(video)
    for at, frame in enumerate(video):
        beside = video[max(0, at - 1)].astype(np.float32) + video[min(len(video) - 1, at + 1)]
        out[at] = np.clip((1 - share) * frame + share / 2 * beside + _speckle(field, height, width, rng), 0, 255)
    return out


def grain(video: Video, strength: float, rng: Rng) -> Video:
    """Gaussian noise of 4 to 10 levels, alike in all channels of a pixel."""
    height, width = video.shape[1:3]
    field, out = _speckles(height, width, rng.uniform(4, 10), rng), np.empty_like(video)
    for at, frame in enumerate(video):
        out[at] = np.clip(frame + _speckle(field, height, width, rng), 0, 255)
    return out


def _speckles(height: int, width: int, sigma: float, rng: Rng) -> NDArray[np.float32]:
    """Noise a little larger than a frame, (Y + 31, X + 31), of which every frame shows another part: draws are slow."""
    return np.float32(sigma) * rng.standard_normal((height + 31, width + 31), np.float32)


def _speckle(field: NDArray[np.float32], height: int, width: int, rng: Rng) -> NDArray[np.float32]:
    """A frame's part of it, (Y, X, 1); half a level more, as bytes are cut off."""
    top, left = rng.integers(32, size=2)
    return field[top : top + height, left : left + width, None] + np.float32(0.5)


def h264(video: Video, strength: float, rng: Rng) -> Video:
    """H.264 by libx264, CRF 23 to 40; boards with tiny cells are enlarged first and encoded at CRF 18 to 28."""
    if strength * _FULL_CELL_PX <= 9:
        return encoded(video.repeat(4, 1).repeat(4, 2), int(rng.integers(18, 29)))
    most = 40 if strength * _FULL_CELL_PX > 32 else 32
    return encoded(video, int(rng.integers(23, most + 1)))


def encoded(video: Video, crf: int) -> Video:
    """Encoded at a constant rate factor and decoded again."""
    memory = io.BytesIO()
    with av.open(memory, "w", format="mp4") as container:
        # Without macroblock trees, in which libx264 reads memory that it has not written: equal input shall give equal bytes.
        options = {"preset": "veryfast", "crf": str(crf), "threads": "1", "x264-params": "mbtree=0"}
        stream = container.add_stream("libx264", rate=16, options=options)
        stream.height, stream.width, stream.pix_fmt = video.shape[1], video.shape[2], "yuv420p"
        stream.codec_context.colorspace, stream.codec_context.color_range = Colorspace.ITU601, ColorRange.MPEG
        for pts, pixels in enumerate(video):
            rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame = rgb.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU601, dst_color_range=ColorRange.MPEG)
            frame.pts = pts
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    memory.seek(0)
    with av.open(memory, "r") as decoded:
        decoded.streams.video[0].codec_context.thread_count = 1
        return np.stack([frame.to_ndarray(format="rgb24") for frame in decoded.decode(video=0)]).astype(np.uint8)


# Filters that make equal frames of equal frames: a still is put through them once, however long it is held.
FRAME_BY_FRAME: frozenset[Filter] = frozenset({blur, darker, brighter, at_another_size, scaled_and_back, detail_lost})


def recorded(puzzle: Puzzle, scene: Scene, states: States, filters: tuple[Filter, ...], rng: Rng) -> Video:
    """The states drawn, and then put through the filters one after the other."""
    stills, order = distinct(states)
    video = draw(puzzle, scene, stills)
    for filtering in filters:
        if filtering not in FRAME_BY_FRAME and len(order):
            video, order = video[order], order[:0]
        video = filtering(video, strength(puzzle, scene), rng)
    return video[order] if len(order) else video
