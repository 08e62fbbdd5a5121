"""What a run leaves behind, read back: the material of report.html and results.md."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vrlvr.errors import UserError
from vrlvr.evaluation.metrics import Gain, Row, mean_gain, unpaired_gain
from vrlvr.evaluation.tables import read_gains, read_results, tasks_of
from vrlvr.run_log import read_metrics


@dataclass(frozen=True)
class Run:
    """What a run folder holds; empty where a file is missing."""

    folder: Path
    rows: Sequence[Row]
    gains: Sequence[Gain]
    metrics: Sequence[Mapping[str, Any]]
    config: str
    facts: Mapping[str, Any]


def read_run(folder: Path) -> Run:
    """Everything that is there. Raises UserError if folder is none, or a file is damaged."""
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; name the folder of a run, such as runs/tiny")

    def present(name: str) -> Path | None:
        path = folder / name
        return path if path.is_file() else None

    results, gains, metrics = present("results.json"), present("gains.json"), present("metrics.jsonl")
    config, facts = present("config.yaml"), present("run.json")
    return Run(
        folder,
        read_results(results) if results else [],
        read_gains(gains) if gains else [],
        read_metrics(metrics) if metrics else [],
        config.read_text(encoding="utf-8") if config else "",
        _read_facts(facts) if facts else {},
    )


def _read_facts(path: Path) -> Mapping[str, Any]:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is no JSON ({error}); remove it or run again") from error
    if not isinstance(facts, dict):
        raise UserError(f"{path} holds a {type(facts).__name__}, an object is needed; remove it or run again")
    return facts


def measured(rows: Iterable[Row], system: str) -> dict[str, Row]:
    """The measured rows of a system by task."""
    return {row["task"]: row for row in rows if row["system"] == system and row["source"] == "measured"}


def gains_of(run: Run) -> list[Gain]:
    """RL over what it started from: the mean over tasks first, then each task. Paired by gains.json, else RL over SFT, from the
    rows alone."""
    gains = [gain for gain in run.gains if gain["after"] == "rl" and gain["task"] != "mean"]
    if not gains:
        before, after = measured(run.rows, "sft"), measured(run.rows, "rl")
        gains = [
            unpaired_gain(before[task], after[task]) for task in tasks_of(run.rows) if task in before and task in after
        ]
    return [mean_gain(gains), *gains] if gains else []
