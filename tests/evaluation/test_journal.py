"""A journal tells after any crash what was done: each line is on disk when written, half of one is none, and one run writes."""

import os
from pathlib import Path

import pytest

from vrlvr.errors import UserError
from vrlvr.evaluation.journal import open_journal


def test_a_line_is_on_disk_when_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[bytes] = []
    path = tmp_path / "new" / "journal.jsonl"
    with open_journal(path) as journal:
        monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(path.read_bytes()))
        journal.write({"id": "a", "note": None})
        journal.write({"id": "b"})
    assert [text.count(b"\n") for text in synced] == [1, 2]
    assert b"note" not in synced[0]


def test_half_a_line_is_dropped_and_the_next_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'{"id": "a"}\n{"id": "b')
    with open_journal(path) as journal:
        assert journal.lines == [b'{"id": "a"}']
        journal.write({"id": "c"})
    with open_journal(path) as journal:
        assert [line[-10:] for line in journal.lines] == [b'"id": "a"}', b'"id": "c"}']


def test_a_second_run_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with open_journal(path) as journal:
        journal.write({"id": "a"})
        written = path.read_bytes()
        with pytest.raises(UserError, match=r"journal\.jsonl is in use by another run"), open_journal(path):
            pass
    assert path.read_bytes() == written
