"""Videos survive the disk: exact frame counts, small errors, whole files or none, one line for every bad file."""

import errno
import os
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from vrlvr import puzzles
from vrlvr.errors import UserError
from vrlvr.puzzles import ROOMS, flow_free
from vrlvr.video_io import grid, read_mp4, write_gif, write_mp4

SMALL = flow_free.Difficulty(rows=4, cols=4, mixes=((3, 7), (4, 5)), cells_per_move=2)
TINY = puzzles.render(puzzles.generate("flowfree", SMALL, 1, "train", 0), 16, 16, 5, 1)


def stills(count: int = 3, height: int = 48, width: int = 64) -> np.ndarray:
    """Frames of large flat blocks, which 4:2:0 can hold."""
    levels = np.random.default_rng(0).integers(16, 235, (count, height // 16, width // 16, 3), dtype=np.uint8)
    return levels.repeat(16, 1).repeat(16, 2)


def test_flat_blocks_come_back(tmp_path):
    video = stills(7)
    write_mp4(tmp_path / "a.mp4", video, fps=8)
    again = read_mp4(tmp_path / "a.mp4")
    assert again.shape == video.shape
    assert again.dtype == np.uint8
    difference = np.abs(again.astype(int) - video)
    assert difference.mean() < 4  # the seams between blocks smear in chroma
    assert difference[:, 4:12, 4:12].max() <= 8


def test_holds_repeat_frames(tmp_path):
    video = stills(3)
    write_mp4(tmp_path / "short.mp4", video, fps=8, holds=[1, 4, 2])
    write_mp4(tmp_path / "long.mp4", video.repeat([1, 4, 2], 0), fps=8)
    assert (tmp_path / "short.mp4").read_bytes() == (tmp_path / "long.mp4").read_bytes()
    with pytest.raises(ValueError, match="zip"):
        write_mp4(tmp_path / "wrong.mp4", video, fps=8, holds=[1, 4])


def test_the_frame_rate_is_kept(tmp_path):
    write_mp4(tmp_path / "a.mp4", stills(), fps=16)
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == 16
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"


def test_tiny_puzzle_videos_keep_their_meaning_when_enlarged(tmp_path):
    for task, room in ROOMS.items():
        puzzle = puzzles.generate(task, room.Difficulty(), 1, "train", 0)
        write_mp4(tmp_path / f"{task}.mp4", puzzles.render(puzzle, 16, 20, 5, 1), fps=4, scale=4)
        video = read_mp4(tmp_path / f"{task}.mp4")
        assert video.shape == (5, 64, 80, 3)
        assert puzzles.verify(puzzle, video).solved


def test_a_16x16_video_needs_no_scale(tmp_path):
    write_mp4(tmp_path / "a.mp4", TINY, fps=4)
    assert read_mp4(tmp_path / "a.mp4").shape == TINY.shape


def test_odd_sides_are_refused_or_doubled(tmp_path):
    with pytest.raises(UserError, match=r"16x17 .* scale=2"):
        write_mp4(tmp_path / "a.mp4", np.zeros((2, 16, 17, 3), np.uint8), fps=4)
    write_mp4(tmp_path / "a.mp4", np.zeros((2, 16, 17, 3), np.uint8), fps=4, scale=2)
    assert read_mp4(tmp_path / "a.mp4").shape == (2, 32, 34, 3)


@pytest.mark.parametrize("video", [np.zeros((2, 16, 16), np.uint8), np.zeros((2, 16, 16, 3)), TINY[:0]])
def test_arrays_that_are_no_video_are_refused(video, tmp_path):
    with pytest.raises(ValueError, match="must be uint8"):
        write_mp4(tmp_path / "a.mp4", video, fps=4)


def bad_file(kind: str, folder: Path) -> Path:
    path = folder / "bad.mp4"
    if kind == "cut off":
        write_mp4(path, stills(30), fps=8)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "cut off after its index":
        write_mp4(folder / "whole.mp4", stills(30), fps=8)
        with (
            av.open(str(folder / "whole.mp4")) as source,
            av.open(str(path), "w", options={"movflags": "faststart"}) as target,
        ):
            stream = target.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.dts is not None:
                    packet.stream = stream
                    target.mux(packet)
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    elif kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("no video at all\n" * 100)
    elif kind == "folder":
        path.mkdir()
    elif kind == "sound":
        with av.open(str(path), "w") as container:
            stream = container.add_stream("aac", rate=8000)
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            silence.rate = 8000
            container.mux(stream.encode(silence))
            container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("kind", ["missing", "cut off", "cut off after its index", "empty", "text", "folder", "sound"])
def test_bad_files_get_one_line(kind, tmp_path):
    path = bad_file(kind, tmp_path)
    with pytest.raises(UserError, match=r"bad\.mp4") as error:
        read_mp4(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("write", [write_mp4, write_gif])
def test_a_failure_leaves_the_former_file(write, tmp_path, monkeypatch):
    path = tmp_path / "a.video"
    write(path, TINY, 4)
    before = path.read_bytes()

    def full(self, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(UserError, match="No space left on device") as error:
        write(path, TINY[::-1], 4)
    assert "\n" not in str(error.value)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.video"]


@pytest.mark.parametrize("write", [write_mp4, write_gif])
def test_a_missing_folder_gets_one_line(write, tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        write(tmp_path / "nowhere" / "a.mp4", TINY, 4)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file"):
        write(tmp_path / "file" / "a.mp4", TINY, 4)


def test_a_gif_holds_the_frames(tmp_path):
    write_gif(tmp_path / "a.gif", TINY, fps=5, scale=3)
    with Image.open(tmp_path / "a.gif") as image:
        frames, durations = [], []
        for i in range(image.n_frames):
            image.seek(i)
            frames.append(np.asarray(image.convert("RGB")))
            durations.append(image.info["duration"])
        assert image.info["loop"] == 0
    distinct = [frame for i, frame in enumerate(TINY) if i == 0 or (frame != TINY[i - 1]).any()]
    assert sum(durations) == 5 * 200  # equal frames may be merged into a longer one
    assert len(frames) == len(distinct)
    assert all((got[::3, ::3] == want).all() for got, want in zip(frames, distinct, strict=True))


def test_a_grid_places_videos_row_by_row():
    videos = np.stack([np.full((2, 3, 4, 3), 10 * i, np.uint8) for i in range(5)])
    sheet = grid(videos, columns=3, gap=2, colour=99)
    assert sheet.shape == (2, 2 * 5 + 2, 3 * 6 + 2, 3)
    assert (sheet[:, 2:5, 2:6] == 0).all()
    assert (sheet[:, 7:10, 8:12] == 40).all()
    assert (sheet[:, :, 12:14] == 99).all()
    assert (sheet[:, 7:10, 14:18] == 99).all()
