"""`vrlvr eval verifiers`: how often the verifiers are fooled by an attack, and how often they refuse an honest video."""

import json
import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vrlvr.atomic_write import write_text
from vrlvr.errors import UserError
from vrlvr.evaluation.corpus import SCENES, attacks, honest, puzzle_of
from vrlvr.evaluation.journal import Journal, open_journal
from vrlvr.evaluation.verifier_rows import Judged, Kind, clopper_pearson, lines_of, markdown
from vrlvr.puzzles import DENSE_REWARD, ROOMS, verify_many
from vrlvr.puzzles.second import second_verify
from vrlvr.puzzles.verdict import reward
from vrlvr.verifier_version import verifier_version

MAKERS = {"attacks": attacks, "honest": honest}
VERIFIERS = ("first", "second")


@dataclass(frozen=True)
class Job:
    """One video to make and to judge. number: of its maker within the task, which seeds it."""

    size: str
    kind: Kind
    task: str
    name: str
    number: int
    seed: int


def evaluate_verifiers(
    out: Path,
    num_seeds: int = 50,
    first_seed: int = 0,
    size: Literal["tiny", "small", "full"] = "small",
    tasks: str | None = None,
    kinds: str = "attacks,honest",
    verifiers: str = "first,second",
    workers: int | None = None,
) -> None:
    """Judges the corpus: writes OUT/verifiers.jsonl (a line a video), verifiers.json and verifiers.md, and prints the sums.

    num_seeds: puzzles and videos for each attack and each honest way. first_seed: of the first of them; a later call with
    other seeds and the same OUT adds to it, and what OUT holds already by these verifiers is not judged again. size: tiny,
    small or full. tasks: comma separated, all by default. kinds: attacks, honest or both. verifiers: first, second or both.
    workers: processes, one a core by default. Raises UserError with one line.
    """
    chosen = _chosen("task", tasks or ",".join(ROOMS), tuple(ROOMS))
    judges = _chosen("verifier", verifiers, VERIFIERS)
    if num_seeds < 1 or first_seed < 0 or (workers is not None and workers < 1):
        raise UserError(
            f"num_seeds={num_seeds}, first_seed={first_seed} and workers={workers} must be 1, 0 and 1 or more"
        )
    version = verifier_version()
    jobs = [
        Job(size, kind, task, name, number, seed)  # type: ignore[arg-type]
        for kind in _chosen("kind", kinds, tuple(MAKERS))
        for task in chosen
        for number, name in enumerate(MAKERS[kind](task))
        for seed in range(first_seed, first_seed + num_seeds)
    ]
    path = out / "verifiers.jsonl"
    with open_journal(path) as journal:
        done = [
            video for video in _read(journal, path) if video.version == version and set(video.solved) == set(judges)
        ]
        known = {(video.size, video.kind, video.task, video.name, video.seed) for video in done}
        missing = [job for job in jobs if (job.size, job.kind, job.task, job.name, job.seed) not in known]
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns) as progress:
            bar = progress.add_task("corpus", total=len(jobs), completed=len(jobs) - len(missing))
            for video in _judge_all(missing, version, judges, min(workers or os.cpu_count() or 1, len(missing))):
                journal.write(asdict(video))
                done.append(video)
                progress.advance(bar)
    _write(out, [video for video in done if video.size == size])


def judge(job: Job, version: str, verifiers: Sequence[str]) -> Judged:
    """Makes a video of the corpus and has it judged; a function of the job alone."""
    scene, puzzle = SCENES[job.size], puzzle_of(job.task, job.size, job.seed)
    video = MAKERS[job.kind](job.task)[job.name](puzzle, scene, np.random.default_rng([job.seed, job.number]))
    drawn = (scene.height, scene.width)
    [verdict] = verify_many([puzzle], video[None], drawn)
    solved = {"first": verdict.solved}
    if "second" in verifiers:
        solved["second"] = second_verify(puzzle, video, drawn).solved
    dense = reward(verdict, DENSE_REWARD[job.task])
    return Judged(
        version, job.size, job.kind, job.task, job.name, job.seed,
        {name: solved[name] for name in verifiers}, dense, verdict.broken_rule,
    )  # fmt: skip


def _judge_all(jobs: Sequence[Job], version: str, verifiers: Sequence[str], workers: int) -> Iterator[Judged]:
    job = partial(judge, version=version, verifiers=verifiers)
    if workers <= 1:
        yield from map(job, jobs)
        return
    # Fresh processes: a forked one could inherit a lock that a thread of a numerical library held.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        try:
            yield from pool.map(job, jobs)
        except BrokenProcessPool as error:
            raise UserError(f"a worker died, as for lack of memory; run again with fewer than {workers}") from error
        finally:
            pool.shutdown(cancel_futures=True)


def _read(journal: Journal, path: Path) -> list[Judged]:
    """What former calls left. Raises UserError if it is damaged."""
    try:
        return [Judged(**{k: v for k, v in json.loads(line).items() if k != "time"}) for line in journal.lines]
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no journal of `vrlvr eval verifiers` ({error}); use another --out") from error


def _write(out: Path, videos: Sequence[Judged]) -> None:
    order = {name: i for kind in MAKERS for task in ROOMS for i, name in enumerate((*MAKERS[kind](task),))}
    lines = lines_of(sorted(videos, key=lambda video: (video.kind, list(ROOMS).index(video.task), order[video.name])))
    rows = [
        asdict(line) | {"ci95": {name: clopper_pearson(wrong, line.videos) for name, wrong in line.wrong.items()}}
        for line in lines
    ]
    header = {"version": videos[0].version, "size": videos[0].size}
    write_text(out / "verifiers.json", json.dumps(header | {"rows": rows}, indent=1) + "\n")
    write_text(out / "verifiers.md", f"{header['size']}, {header['version']}\n\n{markdown(lines)}")
    shown = [line for line in lines if line.name == "all" or any(line.wrong.values()) or line.split]
    sys.stdout.write(markdown(shown))


def _chosen(what: str, names: str, known: Sequence[str]) -> tuple[str, ...]:
    """Comma separated names in the order of `known`."""
    wanted = names.split(",")
    if unknown := [name for name in wanted if name not in known]:
        raise UserError(f"{what} {unknown[0]!r} is unknown; use any of {', '.join(known)}")
    return tuple(name for name in known if name in wanted)
