"""`vrlvr eval videos`: a folder of any system's videos, judged."""

from collections.abc import Sequence
from pathlib import Path

from vrlvr import puzzles
from vrlvr.errors import UserError
from vrlvr.evaluation.benchmark import Item, Outcome, failed
from vrlvr.video_io import read_mp4


def judge_folder(videos: Path, items: Sequence[Item]) -> list[Outcome]:
    """The outcome of every item, in their order. An item's video is videos/<item id>.mp4."""
    return [_judge(videos / f"{item.id}.mp4", item) for item in items]


def _judge(path: Path, item: Item) -> Outcome:
    if not path.exists():
        return failed(item, "missing")
    try:
        video_TYXC = read_mp4(path)
    except UserError:
        return failed(item, "undecodable")
    return Outcome(item, "judged", puzzles.verify(item.puzzle, video_TYXC))
