"""Where the picture that a system was given lies in the frames that it gave back.

A system is asked with a first frame of H x W pixels and answers in a size of its own. The rule, in this order:

1. The same size: pixels are taken as they are.
2. The same aspect to 2 %: frames are scaled to H x W.
3. Another aspect, which comes about in one of three ways: the system stretched our frame; it kept the aspect and added bars
   (letterboxed); it kept the aspect and cut the middle out (cropped). The way is undone whose result, for frame 0 of the
   video, has the smallest mean absolute error against our first frame, over the pixels that the video shows; of equals, the
   first of that list. Nothing but frame 0 counts, so the choice can't depend on whether the puzzle is solved.

Scaling down averages areas; scaling up is bilinear. Pixels of our frame that a cropped video does not show get UNSEEN, which
the verifier cannot read as anything. Pixels count as square, and a rotation that a file only asks for is not done.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WAYS = ("same size", "scaled", "stretched", "letterboxed", "cropped")
SAME_ASPECT = 0.02
UNSEEN = (255, 120, 135)  # as far from the looks of all cells as a colour can be
_LARGEST = 4096 * 4096

Size = tuple[int, int]  # height, width


@dataclass(frozen=True)
class Fit:
    """One of WAYS. A frame is scaled to height x width; its corner then lies at (top, left) of the frame that is wanted."""

    name: str
    height: int
    width: int
    top: int = 0
    left: int = 0


def fits(source: Size, target: Size) -> list[Fit]:
    """The ways in which frames of a size may show a picture of size target, first come first."""
    if source == target:
        return [Fit("same size", *target)]
    tall, wide = target[0] / source[0], target[1] / source[1]
    if abs(tall / wide - 1) < SAME_ASPECT:
        return [Fit("scaled", *target)]
    centred = (
        _centred("letterboxed", max(tall, wide), source, target),
        _centred("cropped", min(tall, wide), source, target),
    )
    return [Fit("stretched", *target), *(fit for fit in centred if fit.height * fit.width <= _LARGEST)]


def place(pixels_YXC: NDArray[np.uint8], fit: Fit, out_YXC: NDArray[np.uint8]) -> None:
    """Puts a frame that was scaled to a fit into the frame that is wanted: what sticks out is cut, what lacks is UNSEEN."""
    inside = _inside(fit, out_YXC.shape[:2])
    if fit.name == "cropped":
        out_YXC[:] = np.array(UNSEEN, np.uint8)
    out_YXC[inside] = pixels_YXC[_shifted(inside[0], fit.top), _shifted(inside[1], fit.left)]


def best(fits_of_first: Sequence[tuple[Fit, NDArray[np.uint8]]], reference_YXC: NDArray[np.uint8]) -> Fit:
    """Of fits, each with frame 0 scaled to it, the one that comes closest to the first frame that the system was given."""
    return min(fits_of_first, key=lambda pair: _error(pair[0], pair[1], reference_YXC))[
        0
    ]  # of equals, min takes the first


def _error(fit: Fit, pixels_YXC: NDArray[np.uint8], reference_YXC: NDArray[np.uint8]) -> float:
    rows, columns = _inside(fit, reference_YXC.shape[:2])
    shown = pixels_YXC[_shifted(rows, fit.top), _shifted(columns, fit.left)]
    return float(np.abs(shown.astype(np.int16) - reference_YXC[rows, columns]).mean())


def _centred(name: str, scale: float, source: Size, target: Size) -> Fit:
    height, width = (max(1, round(side * scale)) for side in source)
    return Fit(name, height, width, (target[0] - height) // 2, (target[1] - width) // 2)


def _inside(fit: Fit, target: Sequence[int]) -> tuple[slice, slice]:
    """The rows and columns of the wanted frame that a fit covers."""
    return (
        slice(max(0, fit.top), min(target[0], fit.top + fit.height)),
        slice(max(0, fit.left), min(target[1], fit.left + fit.width)),
    )


def _shifted(where: slice, by: int) -> slice:
    return slice(where.start - by, where.stop - by)
