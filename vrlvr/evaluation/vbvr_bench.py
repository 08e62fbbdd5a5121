"""VBVR's out-of-domain set on disk, and what anyone can make of it without reasoning.

    BENCH/Out-of-Domain_50/<task>/00000/{first_frame.png, final_frame.png, ground_truth.mp4, prompt.txt}
    VIDEOS/Out-of-Domain_50/<task>/00000.mp4        what a system made of it; the number has five digits

The evaluator compares at the size of first_frame.png: it scales videos whose aspect differs by less than 5 %, and crops
even borders off others first. So videos made here have that size (each side one pixel larger where H.264 needs it even).
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vrlvr.errors import UserError

SPLIT = "Out-of-Domain_50"
_NUMBER = re.compile(r"\d{5}")
_MAX_PIXELS = 4096 * 4096
_MAX_PROMPT_BYTES = 64 * 1024
_NOISE_BLOCK, _NOISE_HOLD = 32, 3  # pixels a side, frames: finer noise takes 15 MB a video and more


@dataclass(frozen=True)
class Sample:
    """One video to make. index: five digits. folder: where the bench has its files."""

    task: str
    index: str
    folder: Path

    @property
    def name(self) -> str:
        """The path of its video, relative to a folder of videos."""
        return f"{SPLIT}/{self.task}/{self.index}.mp4"


Stills = tuple[NDArray[np.uint8], list[int]]  # frames_TYXC, and for how many frames of the video each is shown


def read_samples(bench: Path, tasks: Sequence[str] | None = None, num_videos: int | None = None) -> list[Sample]:
    """The samples of a bench in order: of all tasks or those named, the first num_videos of each (None: all).

    Raises UserError with one line where there are none, or fewer than asked for.
    """
    root = bench / SPLIT
    if not root.is_dir():
        raise UserError(
            f"{bench} has no folder {SPLIT}; give the folder of VBVR-Bench's ground truth that has one (--bench)"
        )
    found = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if unknown := [task for task in tasks or () if task not in found]:
        raise UserError(f"task {unknown[0]!r} is not in {root}; use names of its folders")
    if tasks and len(set(tasks)) < len(tasks):
        raise UserError(f"tasks {','.join(tasks)} must name each task once")
    if num_videos is not None and num_videos < 1:
        raise UserError(f"num_videos={num_videos} must be at least 1")
    samples = []
    for task in found if tasks is None else tasks:
        folders = sorted(path for path in (root / task).iterdir() if path.is_dir() and _NUMBER.fullmatch(path.name))
        if len(folders) < (num_videos or 1):
            raise UserError(
                f"{root / task} has {len(folders)} samples, {num_videos or 1} are asked for; complete the bench"
            )
        samples += [Sample(task, folder.name, folder) for folder in folders[:num_videos]]
    if not samples:
        raise UserError(f"{root} has no task; download the bench completely")
    return samples


def read_image(path: Path) -> Image.Image:
    """A PNG of the bench as RGB. Raises UserError for anything else, and above 4096 x 4096 pixels."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            height, width = image.height, image.width
            pixels = image.convert("RGB") if height * width <= _MAX_PIXELS else None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read as a PNG ({error}); download the bench again") from error
    if pixels is None:
        raise UserError(f"{path} has {height}x{width} pixels, at most 4096x4096 are read; download the bench again")
    return pixels


def read_prompt(sample: Sample) -> str:
    """The text that a system gets beside the first frame. Raises UserError if there is none, or more than 64 KiB of it."""
    path = sample.folder / "prompt.txt"
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_PROMPT_BYTES + 1)
        text = content.decode("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); download the bench again") from error
    if len(content) > _MAX_PROMPT_BYTES:
        raise UserError(f"{path} is larger than 64 KiB, which is no prompt; download the bench again")
    return text


def even_size(image: Image.Image) -> tuple[int, int]:
    """Height and width of a video of this image: its own, each side made even."""
    return image.height + image.height % 2, image.width + image.width % 2


def same_aspect(size: tuple[int, int], wanted: tuple[int, int]) -> bool:
    """Whether the evaluator only scales frames of this (height, width): their aspects differ by less than 5 %."""
    aspects = sorted((size[1] / size[0], wanted[1] / wanted[0]))
    return 1 - aspects[0] / aspects[1] < 0.05


def resample(frames_TYXC: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Frames scaled to (height, width), whatever their aspect."""
    if frames_TYXC.shape[1:3] == size:
        return frames_TYXC
    resized = [Image.fromarray(frame).resize(size[::-1], Image.Resampling.LANCZOS) for frame in frames_TYXC]
    return np.stack([np.asarray(image) for image in resized])


def frozen_frame(sample: Sample, num_frames: int) -> Stills:
    """The first frame, held."""
    first = read_image(sample.folder / "first_frame.png")
    return resample(np.asarray(first)[None], even_size(first)), [num_frames]


def noise(sample: Sample, num_frames: int) -> Stills:
    """Blocks of 32 x 32 pixels, each of a new random colour in every third frame."""
    height, width = even_size(read_image(sample.folder / "first_frame.png"))
    rows, columns = -(-height // _NOISE_BLOCK), -(-width // _NOISE_BLOCK)
    holds = [min(_NOISE_HOLD, num_frames - start) for start in range(0, num_frames, _NOISE_HOLD)]
    rng = np.random.default_rng(list(sha256(sample.name.encode()).digest()))
    blocks = rng.integers(0, 256, (len(holds), rows, columns, 3), dtype=np.uint8)
    return blocks.repeat(_NOISE_BLOCK, 1).repeat(_NOISE_BLOCK, 2)[:, :height, :width], holds


def end_jump(sample: Sample, num_frames: int) -> Stills:
    """The first frame for half of the video, then the final one of the ground truth: the answer without a way to it."""
    first = read_image(sample.folder / "first_frame.png")
    final = read_image(sample.folder / "final_frame.png").resize(first.size, Image.Resampling.LANCZOS)
    stills = np.stack([np.asarray(first), np.asarray(final)])
    return resample(stills, even_size(first)), [num_frames // 2, num_frames - num_frames // 2]


# What stands beside every system, made from the bench alone.
BASELINES: dict[str, Callable[[Sample, int], Stills]] = {
    "frozen first frame": frozen_frame,
    "noise": noise,
    "end jump": end_jump,
}
