"""What the judges share: frames as bytes, the valid prefix of a video, the reading error."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from vrlvr.puzzles import board

UNREADABLE = board.UNREADABLE % 256  # as a byte
UNREADABLE_CELL = "unreadable_cell"

State = TypeVar("State")


def frames(labels_TRK: NDArray[np.integer], rmse_TRK: NDArray[np.floating], rows: int, cols: int) -> list[bytes]:
    """The T states of a video, R * K bytes each; a cell that cannot be read becomes UNREADABLE.

    Raises ValueError if either array is not (T >= 1, rows, cols).
    """
    shape = labels_TRK.shape
    if shape != rmse_TRK.shape or len(shape) != 3 or shape[0] < 1 or shape[1:] != (rows, cols):
        raise ValueError(
            f"labels {shape} and rmse {rmse_TRK.shape} must both be (frames, {rows}, {cols}), the puzzle's board, with "
            "1 frame or more"
        )
    raw, size = labels_TRK.astype(np.uint8).tobytes(), rows * cols
    return [raw[start : start + size] for start in range(0, len(raw), size)]


def valid_prefix(
    readings: Sequence[tuple[State, str | None]], start: State, broken_between: Callable[[State, State], str | None]
) -> tuple[list[State], str | None]:
    """The states before the first frame that breaks a rule, and that rule; None if no frame does.

    readings: of each frame, the state and the rule that it breaks by itself. Frame 0 must show the start. A state may
    stay for any number of frames; `broken_between` judges two successive states that differ.
    """
    prefix: list[State] = []
    for state, broken in readings:
        if not prefix and broken != UNREADABLE_CELL and (broken or state != start):
            return prefix, "start_changed"
        if broken is None and prefix and state != prefix[-1]:
            broken = broken_between(prefix[-1], state)
        if broken is not None:
            return prefix, broken
        prefix.append(state)
    return prefix, None


def reading_error(rmse_TRK: NDArray[np.floating]) -> float:
    """How far the pixels are from legal boards, in [0, 1]: mean over frames and cells; an unreadable cell counts 1."""
    return float(np.minimum(rmse_TRK / board.MAX_CELL_RMSE, 1.0).mean())
