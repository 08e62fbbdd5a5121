"""Videos from outside: what is fine is decoded exactly, and nothing harms, blocks or outlives the one who reads it."""

import os
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from vrlvr.errors import UserError
from vrlvr.outside import sandbox
from vrlvr.outside.hostile_video import Decoder, Limits
from vrlvr.outside.sandbox import printable
from vrlvr.video_io import write_mp4

SMALL = Limits(frames=50, frame_pixels=256 * 256, video_bytes=16 * 1024**2, seconds=60, cpu_seconds=20, wall_seconds=60)


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    with Decoder(SMALL) as decoder:
        yield decoder


def stills(count: int = 5, height: int = 48, width: int = 64) -> np.ndarray:
    levels = np.random.default_rng(0).integers(16, 235, (count, height // 16, width // 16, 3), dtype=np.uint8)
    return levels.repeat(16, 1).repeat(16, 2)


def encode(
    path: Path, video_TYXC: np.ndarray, codec: str = "libx264", pts: list[int] | None = None, **options: str
) -> Path:
    """Any codec in the container that the name asks for. pts: timestamps in units of 1/16 s."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=16, options=options)
        stream.height, stream.width = video_TYXC.shape[1:3]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.time_base = Fraction(1, 16)
        for i, pixels in enumerate(video_TYXC):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = pts[i] if pts else i, Fraction(1, 16)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def in_process(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def refusal(decoder: Decoder, path: Path) -> str:
    with pytest.raises(UserError) as error:
        decoder.read(path)
    text = str(error.value)
    assert text.startswith(str(path))
    assert text.isprintable()
    assert len(text) < 1000
    return text.removeprefix(str(path))


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp4", "libx264"),
        ("a.mp4", "libx265"),
        ("a.mp4", "mpeg4"),
        ("a.mov", "libx264"),
        ("a.mkv", "libx264"),
        ("a.webm", "libvpx"),
        ("a.webm", "libvpx-vp9"),
        ("a.webm", "libsvtav1"),
    ],
)
def test_every_allowed_codec_is_decoded_as_in_process(decoder, tmp_path, name, codec):
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no encoder {codec}")
    path = encode(tmp_path / name, stills(5, 64, 80), codec)
    decoded = decoder.read(path)
    assert (decoded.video_TYXC == in_process(path)).all()
    assert (decoded.source, decoded.fit) == ((64, 80), "same size")


def test_frames_are_the_readers_own(decoder, tmp_path):
    path = encode(tmp_path / "a.mp4", stills())
    first = decoder.read(path).video_TYXC
    before = first.copy()
    second = decoder.read(path).video_TYXC
    second[:] = 0
    assert (first == before).all()
    assert (decoder.read(path).video_TYXC == before).all()


def test_a_reference_of_the_same_size_changes_nothing(decoder, tmp_path):
    path = encode(tmp_path / "a.mp4", stills())
    assert (decoder.read(path, stills()[0]).video_TYXC == in_process(path)).all()


def test_other_sizes_come_back_in_the_references(decoder, tmp_path):
    path = encode(tmp_path / "a.mp4", stills().repeat(3, 1).repeat(3, 2))
    decoded = decoder.read(path, stills()[0])
    assert (decoded.source, decoded.fit) == ((144, 192), "scaled")
    inner = np.abs(decoded.video_TYXC.astype(int) - stills())[:, 4:12, 4:12]
    assert inner.max() < 12


def test_bars_are_cut_away(decoder, tmp_path):
    boxed = np.pad(stills(), ((0, 0), (24, 24), (0, 0), (0, 0)))
    decoded = decoder.read(encode(tmp_path / "a.mp4", boxed), stills()[0])
    assert (decoded.source, decoded.fit) == ((96, 64), "letterboxed")
    assert np.abs(decoded.video_TYXC.astype(int) - stills())[:, 4:12, 4:12].max() < 12


def test_sound_beside_the_pictures_is_no_obstacle(decoder, tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        sound = container.add_stream("aac", rate=8000)
        pictures = container.add_stream("libx264", rate=16)
        pictures.height, pictures.width, pictures.pix_fmt = 48, 64, "yuv420p"
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        silence.rate = 8000
        container.mux(sound.encode(silence))
        for pixels in stills():
            container.mux(pictures.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(pictures.encode(None))
        container.mux(sound.encode(None))
    assert len(decoder.read(tmp_path / "a.mp4").video_TYXC) == 5


def test_texts_in_a_file_need_not_be_utf8(decoder, tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        container.metadata["title"] = "a title of that video"
        stream = container.add_stream("libx264", rate=16)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(stills()[0], format="rgb24")))
        container.mux(stream.encode(None))
    data = (tmp_path / "a.mp4").read_bytes()
    assert b"a title" in data
    (tmp_path / "a.mp4").write_bytes(data.replace(b"a title", b"\xff\xfe\x80itle"))
    assert len(decoder.read(tmp_path / "a.mp4").video_TYXC) == 1


def test_uneven_timestamps_are_frames_like_others(decoder, tmp_path):
    path = encode(tmp_path / "a.mp4", stills(), pts=[0, 1, 2, 50, 400])
    assert len(decoder.read(path).video_TYXC) == 5


def bad_video(kind: str, folder: Path) -> Path:
    path = folder / "bad.mp4"
    if kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("no video at all\n" * 100)
    elif kind == "playlist":
        path.write_text("#EXTM3U\n#EXTINF:1,\n/etc/hostname\n")
    elif kind == "list of files":
        path.write_text("ffconcat version 1.0\nfile /etc/hostname\n")
    elif kind == "picture":
        Image.fromarray(stills()[0]).save(path, format="PNG")
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "cut off":
        encode(path, stills(40))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind.startswith("cut off "):
        data = encode(path, stills(40), movflags="faststart").read_bytes()
        with av.open(str(path)) as container:
            begins = sorted(packet.pos for packet in container.demux(video=0) if packet.size)
        path.write_bytes(data[: begins[20] + (1 if kind == "cut off in a frame" else 0)])
    elif kind == "frames announced that are not there":
        data = bytearray(encode(path, stills(5)).read_bytes())
        data[data.index(b"stts") + 15] = 9  # after the box's name: version, number of entries, number of samples
        path.write_bytes(data)
    elif kind == "bytes changed":
        data = bytearray(encode(path, np.random.default_rng(0).integers(0, 256, (9, 64, 64, 3), np.uint8)).read_bytes())
        data[4000:6000] = bytes(2000)
        path.write_bytes(data)
    elif kind == "forbidden codec":
        encode(path, stills(), "mjpeg")
    elif kind == "forbidden codec in Matroska":
        encode(folder / "bad.mkv", stills(), "ffv1").rename(path)
    elif kind == "size changes":
        parts = [encode(folder / f"{height}.webm", stills(3, height, 64), "libvpx") for height in (48, 64)]
        with (
            av.open(str(parts[0])) as first,
            av.open(str(parts[1])) as second,
            av.open(str(path), "w", "webm") as target,
        ):
            stream = target.add_stream_from_template(first.streams.video[0])
            for at, source in ((0, first), (1000, second)):
                for packet in source.demux(video=0):
                    if packet.size:
                        packet.pts, packet.dts, packet.stream = packet.pts + at, packet.dts + at, stream
                        target.mux(packet)
    elif kind == "wide":
        encode(path, np.zeros((1, 64, 2048, 3), np.uint8))
    elif kind == "long":
        encode(path, stills(51))
    elif kind == "late":
        encode(path, stills(), pts=[0, 1, 2, 3, 10**6])
    return path


@pytest.mark.parametrize(
    ("kind", "cause"),
    [
        ("missing", "No such file"),
        ("empty", "is empty"),
        ("text", "neither MP4 nor WebM"),
        ("playlist", "neither MP4 nor WebM"),
        ("list of files", "neither MP4 nor WebM"),
        ("picture", "neither MP4 nor WebM"),
        ("folder", "no regular file"),
        ("pipe", "no regular file"),
        ("device", "no regular file"),
        ("loop", "Too many levels of symbolic links"),
        ("cut off", "cannot be decoded"),
        ("cut off in a frame", "cannot be decoded|cut off in frame"),
        ("cut off between frames", "cannot be decoded|ends after"),
        ("frames announced that are not there", "ends after 5 of 9 frames"),
        ("bytes changed", "damaged in frame|cannot be decoded"),
        ("forbidden codec", "coded as mjpeg"),
        ("forbidden codec in Matroska", "coded as ffv1"),
        ("size changes", "changes its frame size"),
        ("wide", "frames of 64x2048, more than 65536 pixels"),
        ("long", "more than 50 frames"),
        ("late", "more than 60 seconds"),
    ],
)
def test_bad_files_are_refused_with_their_cause(decoder, tmp_path, kind, cause):
    began = time.monotonic()
    path = bad_video(kind, tmp_path)
    with pytest.raises(UserError, match=cause):
        decoder.read(path)
    refusal(decoder, path)
    assert time.monotonic() - began < 20
    assert len(decoder.read(encode(tmp_path / "good.mp4", stills())).video_TYXC) == 5


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.webm", "libvpx-vp9")])
def test_damage_anywhere_is_refused_or_harmless(decoder, tmp_path, name, codec):
    """Headers at the begin, an index at the end, pictures between: some bytes of each are overwritten."""
    whole = encode(
        tmp_path / name, np.random.default_rng(0).integers(0, 256, (6, 64, 80, 3), np.uint8), codec
    ).read_bytes()
    rng, refused = np.random.default_rng(1), 0
    for i in range(60):
        data = bytearray(whole)
        low = (0, len(whole) - 1500, 0)[i % 3]
        for at in rng.integers(low, (1500, len(whole), len(whole))[i % 3], rng.choice([1, 4, 30])):
            data[at] = rng.integers(256)
        (tmp_path / name).write_bytes(data)
        try:
            assert decoder.read(tmp_path / name).video_TYXC.shape[3] == 3
        except UserError as error:
            refused += 1
            assert str(error).startswith(str(tmp_path / name))  # noqa: PT017
            assert str(error).isprintable()  # noqa: PT017
    assert 0 < refused < 60


def test_files_and_frames_beyond_the_limits_in_bytes_are_refused(tmp_path):
    path = encode(tmp_path / "a.mp4", stills(9))
    with Decoder(replace(SMALL, file_bytes=path.stat().st_size - 1)) as decoder:
        assert "is larger than" in refusal(decoder, path)
    with Decoder(replace(SMALL, video_bytes=stills(8).nbytes)) as decoder:
        assert "more than 8 frames of 48x64" in refusal(decoder, path)
    with Decoder(replace(SMALL, video_bytes=stills(9).nbytes)) as decoder:
        assert len(decoder.read(path).video_TYXC) == 9


def test_huge_frames_are_refused_before_they_are_decoded_and_by_memory_otherwise(tmp_path):
    path = encode(tmp_path / "a.mp4", np.zeros((1, 4352, 8192, 3), np.uint8), preset="ultrafast")
    assert path.stat().st_size < 1_000_000
    with Decoder(Limits()) as decoder:
        assert "frames of 4352x8192" in refusal(decoder, path)
    with Decoder(Limits(frame_pixels=10**9, memory_bytes=sandbox.GIB // 3)) as decoder:
        assert "needs more than 0.333 GiB" in refusal(decoder, path)


BAD = {
    "hang": "more than 1 seconds",
    "spin": "too much processor time",
    "grow": r"needs more than 1\.5 GiB",
    "crash": "Segmentation fault",
    "vanish": "decoder crash",
    "invent": "nonsense",
    "nest": "nonsense",
    "leave": "exit code 3",
    "boast": "nonsense",
    "minus": "nonsense",
    "mumble": "nonsense",
    "shout": r"\\x1b\[31m\\nred!",
    "cut": "Operation not permitted",
    "write": "File too large",
}


@pytest.mark.skipif(sys.platform != "linux", reason="these limits are Linux's")
@pytest.mark.parametrize("kind", BAD)
def test_a_decoder_gone_wrong_costs_one_video(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    path = encode(tmp_path / "a.mp4", stills())
    limits = replace(SMALL, cpu_seconds=1, wall_seconds=1 if kind == "hang" else 60)
    command = [sys.executable, "-P", str(Path(__file__).with_name("bad_decoder.py")), kind]
    with Decoder(limits, command) as decoder:
        with pytest.raises(UserError, match=BAD[kind]):
            decoder.read(path)
        if kind != "spin":  # by a new child, if that was needed
            assert len(refusal(decoder, path)) < 600


def test_a_decoder_that_does_not_start_is_no_fault_of_the_video(tmp_path):
    path = encode(tmp_path / "a.mp4", stills())
    with pytest.raises(RuntimeError, match="does not start") as error:
        Decoder(SMALL, [sys.executable, "-c", "raise SystemExit(5)"]).read(path)
    assert not isinstance(error.value, UserError)


def test_a_child_that_died_between_two_videos_is_replaced(tmp_path):
    path = encode(tmp_path / "a.mp4", stills())
    with Decoder(SMALL) as decoder:
        decoder.read(path)
        decoder._child._process.kill()
        decoder._child._process.wait()
        assert len(decoder.read(path).video_TYXC) == 5


def test_the_child_sees_no_keys(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    path = encode(tmp_path / "a.mp4", stills())
    command = [sys.executable, "-P", str(Path(__file__).with_name("bad_decoder.py")), "betray"]
    with Decoder(SMALL, command) as decoder:
        seen = refusal(decoder, path)
    assert "PYTHONPATH" in seen
    assert "OPENAI" not in seen


def test_without_anonymous_memory_a_file_serves(tmp_path, monkeypatch):
    path = encode(tmp_path / "a.mp4", stills())
    monkeypatch.delattr(os, "memfd_create", raising=False)
    with Decoder(SMALL) as decoder:
        assert (decoder.read(path).video_TYXC == in_process(path)).all()


def test_threads_may_share_a_decoder(decoder, tmp_path):
    paths = [encode(tmp_path / f"{i}.mp4", stills(i + 1)) for i in range(4)]
    counts: dict[int, int] = {}

    def read(i: int) -> None:
        counts[i] = len(decoder.read(paths[i]).video_TYXC)

    threads = [threading.Thread(target=read, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == {0: 1, 1: 2, 2: 3, 3: 4}


def test_our_own_videos_are_decoded(decoder, tmp_path):
    write_mp4(tmp_path / "a.mp4", stills(7), fps=16)
    assert decoder.read(tmp_path / "a.mp4").video_TYXC.shape == (7, 48, 64, 3)


def test_names_from_outside_are_one_printable_line():
    assert printable("maze-00017.mp4") == "maze-00017.mp4"
    assert printable("a\n\x1b[31mb") == "a\\n\\x1b[31mb"
    assert printable(os.fsdecode(b"\xff.mp4")) == "\\udcff.mp4"
