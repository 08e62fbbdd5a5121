"""Data sets made by vrlvr.dataset, read back: what is there, and its pixels."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from vrlvr.errors import UserError
from vrlvr.video_io import read_mp4

SPLITS = ("train", "test")


@dataclass(frozen=True)
class Row:
    """A line of the data set's metadata: paths relative to it, and the prompt."""

    video: str
    prompt: str
    input_image: str
    puzzle: str

    @property
    def stem(self) -> str:
        """The instance's name, as `train/maze/00000`."""
        return self.puzzle.removesuffix(".json")

    @property
    def split(self) -> str:
        return self.stem.split("/")[0]

    @property
    def task(self) -> str:
        return self.stem.split("/")[1]


def read_metadata(data: Path) -> list[Row]:
    """All instances, train before test. Raises UserError if there is no complete data set in `data`."""
    path = data / "metadata_all.csv"
    if not path.is_file():
        raise UserError(f"{path} is missing; make or complete the data set with `vrlvr data`")
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [Row(**line) for line in csv.DictReader(file, restval="")]
    except (OSError, TypeError, ValueError) as error:
        raise UserError(f"{path} is no metadata of `vrlvr data` ({error}); make the data set anew") from error
    for row in rows:
        if row.puzzle.count("/") != 2 or not row.puzzle.endswith(".json") or row.split not in SPLITS:
            raise UserError(f"{path} names the puzzle {row.puzzle!r}, which is no {{train,test}}/TASK/NUMBER.json")
    return rows


def read_size(data: Path) -> tuple[int, int, int]:
    """Frames, rows and columns of a data set's videos. Raises UserError if its manifest does not tell them."""
    path = data / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        return int(manifest["num_frames"]), int(manifest["height"]), int(manifest["width"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} does not tell the videos' size ({error!r}); make the data set with `vrlvr data`"
        ) from error


@dataclass(frozen=True)
class Reader:
    """Reads instances of a data set as pixels. size: frames, rows and columns of its videos."""

    data: Path
    size: tuple[int, int, int]
    videos: bool

    def read(self, row: Row) -> np.ndarray:
        """video_TYXC, uint8, T = 1 without videos; its first frame is the image.

        Raises UserError for a file that is unreadable or of another size.
        """
        image_YXC = self._image(row)
        if not self.videos:
            return image_YXC[None]
        video_TYXC = read_mp4(self.data / row.video)
        self._check(self.data / row.video, video_TYXC.shape, self.size)
        video_TYXC[0] = image_YXC
        return video_TYXC

    def _image(self, row: Row) -> np.ndarray:
        path = self.data / row.input_image
        try:
            with Image.open(path) as image:
                pixels = np.array(image.convert("RGB"))
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read as an image ({error}); make it anew with `vrlvr data`") from error
        self._check(path, pixels.shape, self.size[1:])
        return pixels

    def _check(self, path: Path, found: tuple[int, ...], wanted: tuple[int, ...]) -> None:
        if found != (*wanted, 3):
            shown = ["x".join(map(str, size)) for size in (found[:-1], wanted)]
            raise UserError(f"{path} has {shown[0]} pixels, the data set {shown[1]}; make it anew with `vrlvr data`")
