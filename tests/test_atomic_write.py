"""A file is replaced whole or not at all."""

import shutil
from pathlib import Path

import pytest

from vrlvr.atomic_write import recover, remove_folder, replacing_folder, write_text
from vrlvr.errors import UserError


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    write_text(path, "old")
    write_text(path, "é\n")
    assert path.read_bytes() == "é\n".encode()
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_keeps_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")

    def refuse(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(UserError, match=r"file\.txt cannot be written \(No space left on device\)"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def folder_of(path: Path, error: BaseException | None = None, **files: str) -> Path:
    with replacing_folder(path) as partial:
        assert not list(partial.iterdir())
        for name, text in files.items():
            (partial / name).write_text(text)
        if error:
            raise error
    return path


def contents(path: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in path.iterdir()}


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    path = folder_of(tmp_path / "new" / "folder", a="1", b="2")
    (path / "c").write_text("3")
    folder_of(path, a="4")
    assert contents(path) == {"a": "4"}
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("broken_rename", [1, 2])
def test_a_folder_that_cannot_be_renamed_leaves_the_former(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken_rename: int
) -> None:
    path = folder_of(tmp_path / "folder", a="1")
    rename, calls = Path.rename, []

    def refuse(self: Path, target: Path) -> Path:
        calls.append(self.name)
        if len(calls) == broken_rename:
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(UserError, match=r"folder cannot be written \(No space left on device\)"):
        folder_of(path, a="2")
    assert calls[:broken_rename] == ["folder", ".folder.partial"][:broken_rename]
    assert contents(path) == {"a": "1"}
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_folder_leaves_the_former(tmp_path: Path) -> None:
    path = folder_of(tmp_path / "folder", a="1")
    with pytest.raises(KeyboardInterrupt):
        folder_of(path, KeyboardInterrupt(), a="2")
    assert contents(path) == {"a": "1"}
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_crash_between_the_renames_left_is_brought_back(tmp_path: Path) -> None:
    path = folder_of(tmp_path / "folder", a="1")
    path.rename(tmp_path / ".folder.former")
    (tmp_path / ".folder.partial").mkdir()
    (tmp_path / ".folder.partial" / "b").write_text("half")
    with pytest.raises(RuntimeError):
        folder_of(path, RuntimeError(), a="2")
    assert contents(path) == {"a": "1"}
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_crash_left_is_recovered_before_the_next_write(tmp_path: Path) -> None:
    folder_of(tmp_path / "lost", a="1").rename(tmp_path / ".lost.former")
    folder_of(tmp_path / "whole", a="2")
    folder_of(tmp_path / "other", a="old").rename(tmp_path / ".whole.former")
    folder_of(tmp_path / "half", a="3").rename(tmp_path / ".half.partial")
    recover(tmp_path)
    assert {path.name: contents(path) for path in tmp_path.iterdir()} == {"lost": {"a": "1"}, "whole": {"a": "2"}}


def test_a_folder_is_removed_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(path: Path, **_: object) -> None:
        if path.exists():
            raise KeyboardInterrupt

    path = folder_of(tmp_path / "folder", a="1")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", crash)
        with pytest.raises(KeyboardInterrupt):
            remove_folder(path)
    assert not path.exists()
    recover(tmp_path)
    remove_folder(folder_of(path, a="2"))
    assert not list(tmp_path.iterdir())
