"""Images in frames of another shape: scaled as a whole, with the boards' background around, and cut out again."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vrlvr.puzzles.board import BACKGROUND


class Box(NamedTuple):
    """Where the image lies in the frame, in pixels."""

    top: int
    left: int
    height: int
    width: int


def fit(image: Image.Image, height: int, width: int) -> tuple[Image.Image, Box]:
    """A frame of this size with the whole image in its middle, as large as it can be, and where it lies.

    Its sides there are even, as H.264 needs. An image of the frame's size is the frame, unchanged.
    """
    if image.size == (width, height):
        return image, Box(0, 0, height, width)
    scale = min(height / image.height, width / image.width)
    rows, columns = (
        max(2, min(2 * round(scale * side / 2), limit // 2 * 2))
        for side, limit in ((image.height, height), (image.width, width))
    )
    box = Box((height - rows) // 2, (width - columns) // 2, rows, columns)
    frame = Image.new("RGB", (width, height), BACKGROUND)
    frame.paste(image.resize((columns, rows), Image.Resampling.LANCZOS), (box.left, box.top))
    return frame, box


def cut(video_TYXC: NDArray[np.uint8], box: Box) -> NDArray[np.uint8]:
    """The part of each frame in which the image lay."""
    return video_TYXC[:, box.top : box.top + box.height, box.left : box.left + box.width]
