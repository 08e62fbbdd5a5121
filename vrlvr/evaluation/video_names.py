"""Which file of a folder answers which puzzle.

maze-00017.mp4 or maze/00017.mp4        the video of item maze-00017
maze-00017_0.mp4, maze-00017_1.mp4      its samples, from several noise seeds; maze/00017_0.mp4 likewise
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vrlvr.errors import UserError
from vrlvr.evaluation.benchmark import Item
from vrlvr.outside.sandbox import printable
from vrlvr.puzzles import ROOMS

SUFFIXES = (".mp4", ".m4v", ".mov", ".webm", ".mkv")
_SAMPLE = re.compile("(.+)_([0-9]{1,9})")
_PUZZLE = re.compile(f"(?:{'|'.join(ROOMS)})-[0-9]+(?:_[0-9]+)?")


@dataclass(frozen=True)
class Found:
    """paths: from (item id, sample) to a path relative to the folder. samples: those that any item has, in order; each item
    should have all, and () means none was found. unasked: how many videos answer other puzzles. others: names of other files.
    """

    paths: Mapping[tuple[str, str], str]
    samples: Sequence[str]
    unasked: int
    others: Sequence[str]


def find_videos(folder: Path, items: Sequence[Item]) -> Found:
    """The videos of items in a folder. Hidden files do not count.

    Raises UserError if the folder cannot be listed, two files answer for one puzzle, or only some of the files are numbered
    as samples.
    """
    ids = {item.id for item in items}
    paths: dict[tuple[str, str], str] = {}
    unasked, others = 0, []
    for name in _names(folder):
        stem, dot, suffix = name.rpartition(".")
        answered = stem.replace("/", "-")
        match = _SAMPLE.fullmatch(answered)
        if f"{dot}{suffix}".lower() not in SUFFIXES:
            others.append(name)
        elif answered in ids:
            _add(paths, (answered, ""), name, folder)
        elif match and match[1] in ids:
            _add(paths, (match[1], str(int(match[2]))), name, folder)
        elif _PUZZLE.fullmatch(answered):
            unasked += 1
        else:
            others.append(name)
    samples = sorted({sample for _, sample in paths}, key=lambda sample: int(sample or -1))
    if "" in samples and len(samples) > 1:
        one, numbered = (
            next(name for key, name in paths.items() if (key[1] == "") == plain) for plain in (True, False)
        )
        raise UserError(
            f"{printable(str(folder))} holds {printable(one)} and {printable(numbered)}; give every puzzle one video, or "
            "number the samples of all"
        )
    return Found(paths, samples, unasked, others)


def _add(paths: dict[tuple[str, str], str], key: tuple[str, str], name: str, folder: Path) -> None:
    if key in paths:
        raise UserError(
            f"{printable(str(folder))} answers one puzzle twice, by {printable(paths[key])} and {printable(name)}; keep one"
        )
    paths[key] = name


def _names(folder: Path) -> list[str]:
    """The names in a folder, and as task/name those in its folders of tasks."""
    try:
        names = []
        for entry in folder.iterdir():
            if entry.name in ROOMS and entry.is_dir():
                names += [f"{entry.name}/{inner.name}" for inner in entry.iterdir() if not inner.name.startswith(".")]
            elif not entry.name.startswith("."):
                names.append(entry.name)
    except OSError as error:
        raise UserError(
            f"{printable(str(folder))} cannot be listed ({error.strerror}); name a folder of videos like maze-00017.mp4"
        ) from error
    return sorted(names)
