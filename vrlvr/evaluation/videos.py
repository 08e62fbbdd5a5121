"""`vrlvr eval videos`: a folder of any system's videos, judged. See `video_names` for what they are called.

Time: every frame is judged, in its order; a state may be shown for any number of frames, so a video may have any frame rate
and length, and nothing is resampled. One beyond the limits of `vrlvr.outside.hostile_video` counts as undecodable.
A disc between two cells is a cell that cannot be read: systems whose agents glide solve nothing, but have a second row, in
which they may (`vrlvr.evaluation.gliding`).
Space: frames are brought to the size of the data set by the rule in `vrlvr.outside.frame_fit`, which looks at frame 0 alone.
A puzzle without a video and one whose video cannot be decoded are counted apart, and score 0.
"""

import multiprocessing
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from pathlib import Path

from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vrlvr import puzzles
from vrlvr.atomic_write import check_folder, write_text
from vrlvr.errors import UserError
from vrlvr.evaluation.benchmark import Item, Outcome, check_system, failed, read_items, write_outcomes
from vrlvr.evaluation.gliding import judge_gliding
from vrlvr.evaluation.tables import markdown, print_table, published_rows
from vrlvr.evaluation.video_names import Found, find_videos
from vrlvr.outside import sandbox
from vrlvr.outside.archives import extracted
from vrlvr.outside.frame_fit import Size
from vrlvr.outside.hostile_video import Limits, Unreadable, shared_decoder
from vrlvr.outside.sandbox import printable

_LISTED = 5  # names in a warning
_VIDEOS_A_WORKER = 16  # fewer take less time than starting another

Answer = tuple[Item, str | None]  # and the name of its video


def evaluate_videos(
    videos: Path,
    system: str,
    data: Path,
    out: Path,
    tasks: str | None = None,
    num_puzzles: int | None = None,
    workers: int | None = None,
) -> None:
    """Judges a system's videos of test puzzles: writes OUT/results.json, results.md, outcomes.jsonl, and prints the table.

    videos: a folder, or a .zip, .tar, .tar.gz, .tar.bz2 or .tar.xz of one, of MP4 or WebM files named maze-00017.mp4 or
    maze/00017.mp4 by their puzzle, of any size, frame rate and length. system: its name in the tables. data: a folder made by
    `vrlvr data`. tasks: comma separated, all by default. num_puzzles: the first so many of each task, all by default. workers:
    processes, one a core by default. Raises UserError with one line.
    """
    check_system(system)
    if workers is not None and workers < 1:
        raise UserError(f"workers={workers} must be at least 1")
    items = read_items(data, tasks.split(",") if tasks else None, num_puzzles)
    with ExitStack() as stack:
        folder = videos if videos.is_dir() else _only_folder(stack.enter_context(extracted(videos)))
        found = find_videos(folder, items)
        if not found.paths:
            raise UserError(
                f"{printable(str(videos))} holds no video of the {len(items)} puzzles; name them like {items[0].id}.mp4"
            )
        check_folder(out)
        _warn(found)
        outcomes = _judge_all(folder, items, found, workers)
    rows = write_outcomes(out, system, outcomes)
    table = [*rows, *(row for row in published_rows() if row["task"] in {row["task"] for row in rows})]
    write_text(out / "results.md", markdown(table))
    print_table(table)
    _tell(outcomes, out)


def judge_folder(videos: Path, items: Sequence[Item], workers: int | None = None) -> list[Outcome]:
    """The outcomes of all items, in their order; several for each, in the order of their numbers, where files are samples.

    workers: processes, one a core by default. Raises UserError as `find_videos` does, and for a data set that lacks
    first frames.
    """
    return _judge_all(videos, items, find_videos(videos, items), workers)


def _judge_all(folder: Path, items: Sequence[Item], found: Found, workers: int | None) -> list[Outcome]:
    if missing := sandbox.unenforced():
        print(f"vrlvr: this system cannot limit {', '.join(missing)} of the video decoder", file=sys.stderr)
    answers = [(item, found.paths.get((item.id, sample))) for item in items for sample in found.samples or ("",)]
    processes = workers or max(1, min(os.cpu_count() or 1, len(found.paths) // _VIDEOS_A_WORKER))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    outcomes = []
    with Progress(*columns) as progress:
        bar = progress.add_task("videos judged", total=len(answers))
        with closing(_outcomes(partial(_judge, folder), answers, processes)) as judged:
            for outcome in judged:
                outcomes.append(outcome)
                progress.advance(bar)
    return outcomes


def _outcomes(
    job: Callable[[Answer], Outcome], answers: Sequence[Answer], processes: int
) -> Generator[Outcome, None, None]:
    """The outcome of each answer, in their order. After a failure or Ctrl-C, nothing new is begun."""
    if processes == 1:
        yield from map(job, answers)
        return
    spawn = multiprocessing.get_context("spawn")  # a fork could inherit a lock that a thread holds
    with ProcessPoolExecutor(processes, spawn, _ignore_interrupts) as pool:
        try:
            yield from pool.map(job, answers, chunksize=4)
        except BrokenProcessPool as error:
            raise UserError(f"a worker died, as for lack of memory; use fewer workers than {processes}") from error
        finally:
            pool.shutdown(cancel_futures=True)


def _ignore_interrupts() -> None:
    """Leaves Ctrl-C to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _judge(folder: Path, answer: Answer) -> Outcome:
    item, name = answer
    if name is None:
        return failed(item, "missing")
    first_frame = puzzles.render_first_frame(item.puzzle, *shown_size(item.first_frame))
    try:
        decoded = shared_decoder().read(_inside(folder, name), first_frame)
    except Unreadable as error:
        return replace(failed(item, "undecodable"), note=f"{printable(name)} {error.cause}")
    shown = puzzles.read(item.puzzle, decoded.video_TYXC)
    verdict = puzzles.judge(item.puzzle, shown)
    gliding = judge_gliding(item.puzzle, *shown, verdict)
    return Outcome(item, "judged", verdict, decoded.note, None if gliding == verdict else gliding)


def _inside(folder: Path, name: str) -> Path:
    """The file itself where links lead to it. Raises Unreadable if that lies outside the folder."""
    path = Path(os.path.realpath(folder / name))
    if not path.is_relative_to(os.path.realpath(folder)):
        raise Unreadable(folder / name, "is a link out of its folder; copy the file there")
    return path


def shown_size(first_frame: Path) -> Size:
    """The size in which a puzzle was shown: its PNG's. Raises UserError if that cannot be read, or is far too large."""
    try:
        with Image.open(first_frame, formats=["PNG"]) as image:
            width, height = image.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{first_frame} cannot be read ({error}); make the data set anew with `vrlvr data`") from error
    if height * width > Limits().frame_pixels:
        raise UserError(f"{first_frame} has {height}x{width} pixels; at most {Limits().frame_pixels} are judged")
    return height, width


def _only_folder(folder: Path) -> Path:
    """What an archive holds: often one folder around everything."""
    shown = [entry for entry in folder.iterdir() if not entry.name.startswith((".", "__MACOSX"))]
    return shown[0] if len(shown) == 1 and shown[0].is_dir() and shown[0].name not in puzzles.ROOMS else folder


def _warn(found: Found) -> None:
    if not found.unasked and not found.others:
        return
    listed = ", ".join(map(printable, found.others[:_LISTED])) + (", ..." if len(found.others) > _LISTED else "")
    print(
        f"vrlvr: left out {found.unasked} videos of puzzles that are not asked for, and {len(found.others)} other files"
        + (f" ({listed})" if listed else ""),
        file=sys.stderr,
    )


def _tell(outcomes: Sequence[Outcome], out: Path) -> None:
    """How many videos were judged, why the first few were not, and which rules the others broke first."""
    counts = Counter(outcome.status for outcome in outcomes)
    print(", ".join(f"{counts[status]} {status}" for status in ("judged", "missing", "undecodable")), end="; ")
    print(f"details in {out}/outcomes.jsonl")
    rules = Counter(outcome.verdict.broken_rule for outcome in outcomes if outcome.status == "judged")
    if broken := ", ".join(f"{rule} {count}" for rule, count in rules.most_common() if rule):
        print(f"judged, and not solved: {broken}")
    answered = {outcome.item.puzzle.task for outcome in outcomes if outcome.status != "missing"}
    tasks = dict.fromkeys(outcome.item.puzzle.task for outcome in outcomes)
    if absent := [task for task in tasks if task not in answered]:
        others = ",".join(task for task in tasks if task in answered)
        print(f"no video at all of {', '.join(absent)}, which scores 0; --tasks {others} leaves that out")
    for note in [outcome.note for outcome in outcomes if outcome.status == "undecodable"][:_LISTED]:
        print(f"  {note}")
