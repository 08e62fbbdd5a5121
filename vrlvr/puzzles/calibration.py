"""How a video's colours differ from those drawn: told by its first frame, which must show the puzzle, and within bounds."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# In levels of 255. A first frame as near as _NONE_RMS to what it must show needs no calibration; one that is still farther than
# _FAILED_RMS when calibrated shows something else.
_NONE_RMS, _FAILED_RMS = 4.0, 16.0
_GAINS, _MAX_OFFSET = (0.65, 1.35), 24.0
_RIDGE = 0.5  # in units of a channel's contrast of 10 levels: without contrast, a gain cannot be told from an offset


class ColourMap(NamedTuple):
    """A drawn colour c is seen as c * gain + offset, each (3,)."""

    gain: NDArray[np.float64]
    offset: NDArray[np.float64]


def calibrate(seen: NDArray[np.floating], drawn: NDArray[np.floating]) -> ColourMap | None:
    """The map from drawn to seen colours, both (N, 3), channel by channel; None where none is needed, or none fits.

    Least squares, drawn to gain 1 where contrast is small. Gains lie within 0.65 to 1.35, offsets within 24 levels: a video may
    be that much darker, or tinted, but throughout, so that no look can be passed off as another one.
    """
    seen, drawn = seen.astype(np.float64), drawn.astype(np.float64)
    if _rms(seen - drawn) <= _NONE_RMS:
        return None
    mean = drawn.mean(0)
    spread = drawn - mean
    ridge = _RIDGE * len(drawn) * 10.0**2
    gain = ((spread * (seen - seen.mean(0))).sum(0) + ridge) / ((spread**2).sum(0) + ridge)
    gain = np.clip(gain, *_GAINS)
    offset = np.clip(seen.mean(0) - gain * mean, -_MAX_OFFSET, _MAX_OFFSET)
    if _rms(np.clip(drawn * gain + offset, 0, 255) - seen) > _FAILED_RMS:
        return None
    return ColourMap(gain, offset)


def _rms(levels: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.square(levels).mean()))
