"""Archives from outside: plain files arrive, and nothing ever lies outside the folder or grows without bound."""

import io
import os
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from vrlvr.errors import UserError
from vrlvr.outside import archives
from vrlvr.outside.archives import extracted

FILES = {"maze-00000.mp4": b"one", "flowfree/00001.mp4": b"two"}


def zipped(path: Path, files: dict[str, bytes], mode: int = 0) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name)
            entry.external_attr, entry.compress_type = mode << 16, zipfile.ZIP_DEFLATED
            archive.writestr(entry, data)
    return path


def tarred(path: Path, files: dict[str, bytes], **header) -> Path:
    with tarfile.open(path, "w:" + ("" if path.suffix == ".tar" else path.suffix[1:])) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            for key, value in header.items():
                setattr(member, key, value)
            archive.addfile(member, io.BytesIO(data))
    return path


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.tar.bz2", "a.tar.xz", "a.tgz.gz"])
def test_plain_files_arrive_and_go(tmp_path, name):
    path = (zipped if name == "a.zip" else tarred)(tmp_path / name, FILES)
    with extracted(path) as folder:
        assert content(folder) == FILES
        assert not folder.is_relative_to(tmp_path)
    assert not folder.exists()


@pytest.mark.parametrize("name", ["../out.mp4", "a/../../out.mp4", "/tmp/out.mp4", "a/..", "//out.mp4"])
@pytest.mark.parametrize("make", [zipped, tarred])
def test_names_that_lead_outside_are_refused(tmp_path, make, name):
    path = make(tmp_path / ("a.zip" if make is zipped else "a.tar"), FILES | {name: b"evil"})
    with pytest.raises(UserError, match="could lie outside its folder") as error, extracted(path):
        pass
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out.mp4").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_in_a_tar_are_refused(tmp_path, kind):
    path = tarred(tmp_path / "a.tar", {"maze-00000.mp4": b""}, type=kind, linkname="/etc/hostname")
    with pytest.raises(UserError, match="link or a device"), extracted(path):
        pass


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_devices_in_a_zip_are_refused(tmp_path, kind):
    path = zipped(tmp_path / "a.zip", {"maze-00000.mp4": b"/etc/hostname"}, kind | 0o644)
    with pytest.raises(UserError, match="link or a device"), extracted(path):
        pass


@pytest.mark.parametrize("make", [zipped, tarred])
def test_sizes_and_numbers_are_bounded_whatever_headers_say(tmp_path, make):
    path = make(tmp_path / ("a.zip" if make is zipped else "a.tar.gz"), {f"{i}.mp4": bytes(300_000) for i in range(4)})
    assert path.stat().st_size < 10_000
    with pytest.raises(UserError, match="more than 3 members"), extracted(path, max_members=3):
        pass
    with pytest.raises(UserError, match=r"more than .* GiB"), extracted(path, max_bytes=1_199_999):
        pass
    with extracted(path, max_members=4, max_bytes=1_200_000) as folder:
        assert len(content(folder)) == 4


def test_folders_are_only_so_deep(tmp_path):
    with extracted(zipped(tmp_path / "a.zip", {"a/" * 15 + "b": b"x"})) as folder:
        assert len(content(folder)) == 1
    with (
        pytest.raises(UserError, match="more than 16 deep"),
        extracted(zipped(tmp_path / "b.zip", {"a/" * 16 + "b": b"x"})),
    ):
        pass


def test_two_members_of_one_name_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.mp4", b"one")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a.mp4", b"two")
    with pytest.raises(UserError, match="two members named"), extracted(tmp_path / "a.zip"):
        pass


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="memory is limited on Linux")
def test_a_header_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    """tarfile reads an extended header whole; this one claims zeros without end, which compress to nothing."""
    monkeypatch.setattr(archives, "MEMORY_BYTES", 2**27)
    member = tarfile.TarInfo("a")
    member.type, member.size = tarfile.XHDTYPE, 2**30
    path = tmp_path / "a.tar"
    with path.open("wb") as file:
        file.write(member.tobuf(tarfile.USTAR_FORMAT))
        file.truncate(member.size + 1024)
    with pytest.raises(UserError, match="too much memory"), extracted(path):
        pass


@pytest.mark.parametrize("damage", ["cut off", "text", "empty", "encrypted"])
def test_damaged_archives_get_one_line(tmp_path, damage):
    path = zipped(tmp_path / "a.zip", FILES) if damage == "encrypted" else tarred(tmp_path / "a.tar.gz", FILES)
    data = bytearray(path.read_bytes())
    if damage == "encrypted":
        data[6] |= 1  # the flag in the local header, and in the central directory
        data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(
        {"cut off": data[: len(data) // 2], "text": b"hello" * 1000, "empty": b""}.get(damage, bytes(data))
    )
    with pytest.raises(UserError, match="cannot be extracted") as error, extracted(path):
        pass
    assert str(error.value).isprintable()


def test_what_is_no_file_is_named(tmp_path):
    for path in (tmp_path / "nowhere.zip", tmp_path):
        with pytest.raises(UserError, match="neither a folder nor an archive"), extracted(path):
            pass
