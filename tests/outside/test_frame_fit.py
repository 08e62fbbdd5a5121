"""How frames of any size are brought to the size of the puzzle: by the first frame alone, and undone exactly."""

import numpy as np
import pytest
from PIL import Image

from vrlvr import puzzles
from vrlvr.outside.frame_fit import UNSEEN, WAYS, Fit, best, fits, place
from vrlvr.puzzles import ROOMS, board

TARGET = (480, 832)
FIRST = puzzles.render_first_frame(puzzles.generate("maze", puzzles.maze.Difficulty(9, 9), 1, "test", 0), *TARGET)


def resized(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    smaller = height * width < pixels.shape[0] * pixels.shape[1]
    resample = Image.Resampling.BOX if smaller else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(pixels).resize((width, height), resample))


def made(way: str, height: int, width: int) -> np.ndarray:
    """What a system that answers in height x width makes of FIRST."""
    if way == "stretched":
        return resized(FIRST, height, width)
    scale = (max if way == "cropped" else min)(height / TARGET[0], width / TARGET[1])
    picture = resized(FIRST, round(TARGET[0] * scale), round(TARGET[1] * scale))
    top, left = (height - picture.shape[0]) // 2, (width - picture.shape[1]) // 2
    if way == "cropped":
        return picture[-top : height - top, -left : width - left]
    frame = np.zeros((height, width, 3), np.uint8)
    frame[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return frame


@pytest.mark.parametrize("size", [(720, 1280), (720, 720), (1024, 576), (480, 720), (768, 1360)], ids=str)
@pytest.mark.parametrize("way", ["stretched", "letterboxed", "cropped"])
def test_the_way_that_a_frame_was_made_is_found_and_undone(way, size):
    frame = made(way, *size)
    candidates = fits(size, TARGET)
    assert [fit.name for fit in candidates] == ["stretched", "letterboxed", "cropped"]
    scaled = [(fit, resized(frame, fit.height, fit.width)) for fit in candidates]
    fit = best(scaled, FIRST)
    assert fit.name == way
    out = np.zeros((*TARGET, 3), np.uint8)
    place(dict(scaled)[fit], fit, out)
    seen = (out != UNSEEN).any(-1)
    assert seen.all() or way == "cropped"
    assert np.abs(out.astype(int) - FIRST)[seen].mean() < 4


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ((480, 832), ["same size"]),
        ((960, 1664), ["scaled"]),
        ((240, 416), ["scaled"]),
        ((640, 1110), ["scaled"]),  # 0.06 % off
        ((480, 848), ["scaled"]),  # 1.9 % off
        ((480, 850), ["stretched", "letterboxed", "cropped"]),  # 2.2 % off
        ((832, 480), ["stretched", "letterboxed", "cropped"]),
    ],
)
def test_the_same_aspect_is_scaled(source, names):
    assert [fit.name for fit in fits(source, TARGET)] == names
    assert set(names) <= set(WAYS)


def test_a_strip_is_never_enlarged_without_bound():
    for source in ((2, 8192), (8192, 2), (1, 1)):
        assert all(fit.height * fit.width <= 4096 * 4096 for fit in fits(source, TARGET))
        assert fits(source, TARGET)[0].name == "stretched"


def test_of_equals_the_first_way_is_taken():
    grey = np.full((720, 720, 3), 128, np.uint8)
    candidates = fits((720, 720), TARGET)
    scaled = [(fit, resized(grey, fit.height, fit.width)) for fit in candidates]
    assert best(scaled, np.full((*TARGET, 3), 128, np.uint8)) == candidates[0]


def test_what_a_video_does_not_show_is_unreadable():
    for room in ROOMS.values():
        looks = room.LOOKS.astype(float).reshape(-1, 2, 3)
        rmse = np.sqrt(((looks - UNSEEN) ** 2).mean((1, 2)))
        assert rmse.min() > 1.3 * board.MAX_CELL_RMSE, room.NAME
    out = np.zeros((4, 6, 3), np.uint8)
    place(np.full((4, 4, 3), 7, np.uint8), Fit("cropped", 4, 4, 0, 1), out)
    assert (out[:, 1:5] == 7).all()
    assert (out[:, [0, 5]] == UNSEEN).all()
