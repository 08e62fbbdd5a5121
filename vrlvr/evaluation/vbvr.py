"""`vrlvr eval vbvr`: a system on VBVR's out-of-domain set, scored by its public evaluator beside three that do not reason.

    OUT/run.json                        what the model's videos depend on; a call that goes on with others is refused
    OUT/videos/Out-of-Domain_50/...     the model's videos, complete as soon as they are there
    OUT/baselines/<name>/...            those of a frozen first frame, of noise, and of a jump to the final frame
    OUT/evaluation/                     what the evaluator got (links), said and found
    OUT/results.json, outcomes.jsonl    a row a system for `vrlvr table`, a line a video

A call that was broken off goes on: videos that are there are kept, and what was evaluated by the same evaluator is not again.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from vrlvr.atomic_write import check_folder, write_text
from vrlvr.errors import UserError
from vrlvr.evaluation.benchmark import check_system
from vrlvr.evaluation.comparison import VBVR_COLUMNS
from vrlvr.evaluation.entries import write_entries
from vrlvr.evaluation.escaping import one_line
from vrlvr.evaluation.model import open_run, wait_for
from vrlvr.evaluation.model_spec import Dtype, Offload, specify
from vrlvr.evaluation.published import published_vbvr_rows
from vrlvr.evaluation.vbvr_bench import BASELINES, Sample, read_samples
from vrlvr.evaluation.vbvr_evalkit import Scores, evaluate, identity, read_scores, scoring_mode
from vrlvr.evaluation.vbvr_rows import CATEGORIES, NUM_VIDEOS, VbvrRow, checked_vbvr_row
from vrlvr.evaluation.vbvr_scores import categories_of, outcome_lines, row_of, statuses
from vrlvr.evaluation.vbvr_videos import Handed, generate, hand_over, make_baseline, settings_of

_LISTED = 5  # names in a message


def evaluate_vbvr(
    bench: Path,
    evalkit: Path,
    system: str,
    out: Path,
    model: str | None = None,
    videos: Path | None = None,
    tasks: str | None = None,
    num_videos: int | None = None,
    baselines: bool = True,
    lora: Path | None = None,
    lora_2: Path | None = None,
    height: int | None = None,
    width: int | None = None,
    num_frames: int | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    negative_prompt: str | None = None,
    shift: float | None = None,
    seed: int = 0,
    dtype: Dtype = "auto",
    device: str = "auto",
    offload: Offload = "none",
    timeout_minutes: float = 600.0,
    python: Path | None = None,
) -> None:
    """Makes a model's videos of VBVR's out-of-domain set, or takes those of a folder, and has the public evaluator score them.

    bench: the folder of the ground truth, with Out-of-Domain_50 in it. evalkit: a checkout of VBVR-EvalKit, with
    run_evaluation.py. system: its name in the tables. model: a Diffusers folder or a hub's id; videos: a folder of videos that
    were made elsewhere, as Out-of-Domain_50/TASK/00000.mp4; one of the two. tasks: comma separated, all by default.
    num_videos: of each task, all by default. baselines: also score a frozen first frame, noise, and a jump to the final frame.
    Options of the model: as of `vrlvr eval model`. timeout_minutes: for one call of the evaluator. python: an interpreter
    that has the evaluator's packages, this one by default. Raises UserError with one line.
    """
    check_system(system)
    if (model is None) == (videos is None):
        raise UserError("one of --model and --videos is needed, not both: who makes the videos?")
    if system in BASELINES:
        raise UserError(f"system={system} is the name of a baseline; choose another")
    if timeout_minutes <= 0:
        raise UserError(
            f"timeout_minutes={timeout_minutes:g} must be above 0; the evaluator of the whole set takes hours"
        )
    samples = read_samples(bench, tasks.split(",") if tasks else None, num_videos)
    evaluator = identity(evalkit)
    if videos is not None and not any((videos / sample.name).is_file() for sample in samples):
        raise UserError(f"{videos} has no video of the {len(samples)} samples; name them like {samples[0].name}")
    check_folder(out)
    if model is not None:
        spec = specify(
            model, lora, lora_2, height, width, num_frames, steps, guidance, negative_prompt, shift, dtype, device, offload
        )  # fmt: skip
        open_run(out, settings_of(model, spec, seed))
        rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        generate(spec, samples[rank::size], out / "videos", seed, show=rank == 0)
        if rank > 0:
            return
        wait_for([out / "videos" / sample.name for sample in samples])
    folders = {system: videos or out / "videos"}
    for name in BASELINES if baselines else ():
        folders[name] = out / "baselines" / name.replace(" ", "-")
        make_baseline(name, samples, folders[name])

    handed: dict[str, Handed] = {}
    scores: dict[str, Scores] = {}
    for name, folder in folders.items():
        links = out / "evaluation" / ("system" if name == system else folder.name)
        handed[name] = hand_over(folder, samples, links, foreign=videos is not None and name == system)
        if len(handed[name].absent) == len(samples):
            raise UserError(f"{folder} has no video that can be decoded; make or copy them again")
        scores[name] = _evaluated(evalkit, evaluator, links, bench, samples, timeout_minutes, python)
    states = {name: statuses(samples, handed[name].absent, found) for name, found in scores.items()}
    lines = (outcome_lines(name, samples, states[name], found) for name, found in scores.items())
    write_text(out / "outcomes.jsonl", "".join(lines))
    categories = categories_of(list(scores.values()))
    rows = [
        row_of(name, samples, found, categories, scoring_mode(evalkit, found.values()), evaluator)
        for name, found in scores.items()
    ]
    write_entries(out / "results.json", [dict(checked_vbvr_row(row, f"{out}: row {i}")) for i, row in enumerate(rows)])
    _print(rows)
    for state in ("missing", "undecodable", "not scored"):
        names = [sample.name for sample, found in zip(samples, states[system], strict=True) if found == state]
        _list(f"{state}, counted as 0", names)
    _list(
        "of another aspect than the first frame, so the evaluator crops borders and stretches", handed[system].stretched
    )


def _evaluated(
    evalkit: Path,
    evaluator: str,
    handed: Path,
    bench: Path,
    samples: Sequence[Sample],
    timeout_minutes: float,
    python: Path | None,
) -> Scores:
    """The evaluator's scores, its former ones if neither it nor any file has changed since."""
    out, key = handed.parent, handed.parent / f"{handed.name}_inputs.json"
    files = [handed / sample.name for sample in samples] + [p for s in samples for p in sorted(s.folder.iterdir())]
    stamps = {str(path.resolve()): _stamp(path) for path in files if path.exists()}
    inputs = {"evaluator": evaluator, "files": stamps}
    results = out / f"{handed.name}_vbvr_results.json"
    if results.exists() and key.exists() and key.read_text(encoding="utf-8") == _as_json(inputs):
        return read_scores(results)
    key.unlink(missing_ok=True)
    with Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()) as progress:
        progress.add_task(f"the evaluator scores {handed.name} (see {handed.name}.log)")
        scores = evaluate(evalkit, handed, bench, out, timeout_minutes, python)
    write_text(key, _as_json(inputs))
    return scores


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _as_json(inputs: Mapping[str, Any]) -> str:
    return json.dumps(inputs, indent=1, sort_keys=True) + "\n"


def _print(rows: Sequence[VbvrRow]) -> None:
    """The rows beside the published ones, and how they were scored; 80 columns are enough."""
    first = rows[0]
    whole = "" if first["num_videos"] == NUM_VIDEOS else f"; only {first['num_videos']} of its {NUM_VIDEOS} videos"
    table = Table(
        title=f"VBVR-OOD, percent; miss: without a score, 0{whole}",
        title_justify="left",
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=0,
    )
    table.add_column("system", overflow="fold")  # long names give way, never numbers
    for name in (*VBVR_COLUMNS, "95 %", "miss"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("source", no_wrap=True)
    for row in (*rows, *published_vbvr_rows()):
        scores = [f"{row['categories'][name]:.1f}" if name in row["categories"] else "" for name in CATEGORIES]
        bounds = row["average_ci95"]
        interval = "" if bounds is None else f"{bounds[0]:.1f}-{bounds[1]:.1f}"
        cells = [f"{row['average']:.1f}", *scores, interval, str(row.get("num_missing", "")), row["source"]]
        table.add_row(Text(one_line(row["system"])), *cells, style="dim" if row["source"] == "published" else "")
    Console().print(table)
    print(f"scoring: {first.get('scoring')}; evaluator: {first.get('evaluator')}")


def _list(what: str, names: Sequence[str]) -> None:
    """Names the system's videos of which something is to be said."""
    if names:
        more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
        print(f"{len(names)} videos {what}: {one_line(', '.join(names[:_LISTED]), 1000)}{more}")
