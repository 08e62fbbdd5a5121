"""The public evaluator of VBVR (VBVR-EvalKit), called as it is, as a program of its own.

    python run_evaluation.py --model_path M --gt_base BENCH --output_dir O

scores every video of M/{In-Domain_50,Out-of-Domain_50}/<task>/00000.mp4 and writes O/<name of M>_vbvr_results.json: an object
whose `samples` have task_name, video_file, folder, category, score in 0..1, dimensions and error. Videos that are missing it
does not mention, tasks that it does not know it passes over.
"""

import contextlib
import hashlib
import json
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vrlvr.atomic_write import writing
from vrlvr.errors import UserError
from vrlvr.evaluation.escaping import one_line
from vrlvr.evaluation.vbvr_bench import SPLIT
from vrlvr.outside import sandbox

SCRIPT = "run_evaluation.py"
_TAIL_BYTES = 4096
_NO_FALLBACK = re.compile(r"""["']no_ssim_fallback["']\s*:\s*True""")


@dataclass(frozen=True)
class Score:
    """What the evaluator says of one video. value: in 0..1, 0 where it failed, with the reason in `error`."""

    value: float
    category: str
    dimensions: tuple[str, ...]
    error: str | None


Scores = dict[tuple[str, str], Score]  # by task and index of the sample


def identity(evalkit: Path) -> str:
    """Which evaluator this is: its commit, if it is a checkout, and a SHA-256 over its Python files.

    Files in hidden folders, caches and virtual environments do not count. Raises UserError if it has no run_evaluation.py.
    """
    if not (evalkit / SCRIPT).is_file():
        raise UserError(f"{evalkit} has no {SCRIPT}; give a checkout of VBVR-EvalKit that has one (--evalkit)")
    total, paths = hashlib.sha256(), sorted(_sources(evalkit))
    for path in paths:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        total.update(f"{path.relative_to(evalkit).as_posix()} {digest}\n".encode("utf-8", "surrogateescape"))
    commit = _commit(evalkit)
    return f"{f'commit {commit[:12]}, ' if commit else ''}sha256 {total.hexdigest()[:16]} over {len(paths)} files"


def evaluate(
    evalkit: Path, videos: Path, bench: Path, out: Path, timeout_minutes: float, python: Path | None = None
) -> Scores:
    """The scores of all videos in a folder.

    python: the interpreter that has what the evaluator needs (numpy, cv2, PIL, tqdm); this one by default. It sees none of
    our environment but the paths of programs and libraries. What it prints goes to out/<name of videos>.log.
    Raises UserError if it fails or takes longer than timeout_minutes, with the last that it said.
    """
    out.mkdir(parents=True, exist_ok=True)
    results, log = out / f"{videos.name}_vbvr_results.json", out / f"{videos.name}.log"
    results.unlink(missing_ok=True)
    folders = {"--model_path": videos, "--gt_base": bench, "--output_dir": out}
    arguments = [text for option, path in folders.items() for text in (option, str(path.resolve()))]
    environment = {name: value for name, value in sandbox.environment().items() if name != "PYTHONPATH"}
    with writing(log), log.open("wb") as output:
        try:
            process = subprocess.Popen(
                [str(python or sys.executable), SCRIPT, *arguments],
                cwd=evalkit,
                env=environment | {"PYTHONUTF8": "1"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        except OSError as error:
            raise UserError(
                f"{python} cannot be started ({error.strerror}); name an interpreter with --python"
            ) from error
        try:
            code = process.wait(60 * timeout_minutes)
        except subprocess.TimeoutExpired as error:
            raise UserError(
                f"the evaluator took more than {timeout_minutes:g} minutes ({_last_lines(log)}); raise --timeout_minutes"
            ) from error
        finally:
            if process.poll() is None:
                _end(process)
    if code != 0 or not results.is_file():
        raise UserError(
            f"the evaluator ended with exit code {code} and {'its' if results.is_file() else 'no'} results "
            f"({_last_lines(log)}); see {log}, and name an interpreter that has its packages with --python"
        )
    return read_scores(results)


def read_scores(path: Path) -> Scores:
    """The out-of-domain scores in a file of results. Raises UserError if it is not as described above."""
    try:
        samples = json.loads(path.read_text(encoding="utf-8"))["samples"]
        found = [_score(sample) for sample in samples if sample["folder"] == SPLIT]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} is not what VBVR-EvalKit writes ({type(error).__name__}: {one_line(str(error))}); use its public version"
        ) from error
    scores = dict(found)
    if len(scores) < len(found):
        raise UserError(f"{path} scores a video twice; use the public version of VBVR-EvalKit")
    return scores


def scoring_mode(evalkit: Path, scores: Iterable[Score]) -> str:
    """By which of its modes the evaluator scored: told by what its scores are made of, and by its script."""
    kinds = {score.dimensions for score in scores if score.error is None}
    if len(kinds) != 1:
        return "several modes" if kinds else "unknown"
    (dimensions,) = kinds
    mode = f"{dimensions[0]} only" if len(dimensions) == 1 else f"weighted mean of {', '.join(dimensions) or 'nothing'}"
    script = (evalkit / SCRIPT).read_text(encoding="utf-8", errors="replace")
    return one_line(f"{mode}{', no SSIM fallback' if _NO_FALLBACK.search(script) else ''}", 200)


def _score(sample: Any) -> tuple[tuple[str, str], Score]:
    task, file, category, value = (sample[name] for name in ("task_name", "video_file", "category", "score"))
    if not all(isinstance(text, str) for text in (task, file, category)) or isinstance(value, bool):
        raise TypeError(f"sample {str(sample)[:80]}")
    error = sample.get("error")
    failed = math.isnan(float(value)) or error is not None
    if not failed and not 0 <= value <= 1:
        raise ValueError(f"score {value} of {task}/{file} is not in 0..1")
    reason = one_line(str(error if error is not None else "its score is no number"), 200) if failed else None
    dimensions = tuple(sorted(str(name) for name in sample.get("dimensions") or ()))
    return (task, Path(file).stem), Score(0.0 if failed else float(value), category, dimensions, reason)


def _sources(folder: Path) -> Iterable[Path]:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            if not path.name.startswith((".", "__pycache__")) and not (path / "pyvenv.cfg").exists():
                yield from _sources(path)
        elif path.suffix == ".py" and path.is_file():
            yield path


def _commit(evalkit: Path) -> str | None:
    """The checked out commit, if the folder is the top of a checkout."""
    command = ["git", "-C", str(evalkit), "rev-parse", "--show-toplevel", "HEAD"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}  # of a hook, say
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True, env=environment)
        top, commit = result.stdout.split("\n")[:2]
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return commit if Path(top).resolve() == evalkit.resolve() and re.fullmatch(r"[0-9a-f]{40,64}", commit) else None


def _end(process: subprocess.Popen) -> None:
    """Ends the evaluator and whatever it started; it has a session of its own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _last_lines(log: Path) -> str:
    """The last that was said, in one line."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        lines = re.split(r"[\r\n]+", file.read().decode("utf-8", "replace").strip())
    return one_line("it said: " + " / ".join(lines[-3:]), 300) if lines[-1] else "it said nothing"
