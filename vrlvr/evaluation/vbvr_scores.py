"""From the evaluator's scores to a row of the table: what has no score counts as 0."""

import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Literal

import numpy as np

from vrlvr.evaluation.metrics import wilson
from vrlvr.evaluation.vbvr_bench import Sample
from vrlvr.evaluation.vbvr_evalkit import Scores
from vrlvr.evaluation.vbvr_rows import TASK, VbvrRow

Absent = Literal["missing", "undecodable"]
Status = Literal["scored", "missing", "undecodable", "not scored"]


def categories_of(everything: Sequence[Scores]) -> dict[str, str]:
    """The category of every task that the evaluator scored a video of, whoever made it."""
    return {task: score.category for scores in everything for (task, _), score in scores.items()}


def statuses(samples: Sequence[Sample], absent: Mapping[str, Absent], scores: Scores) -> list[Status]:
    """What became of each sample. absent: by the sample's name, those without a video to score."""
    found: list[Status] = []
    for sample in samples:
        score = scores.get((sample.task, sample.index))
        scored: Status = "scored" if score is not None and score.error is None else "not scored"
        found.append(absent.get(sample.name, scored))
    return found


def row_of(
    system: str,
    samples: Sequence[Sample],
    scores: Scores,
    categories: Mapping[str, str],
    scoring: str,
    evaluator: str,
) -> VbvrRow:
    """The means over all samples asked for; those without a score count as 0, in their category too."""
    values = {sample: _value(sample, scores) for sample in samples}
    by_category = {
        name: {sample: value for sample, value in values.items() if categories.get(sample.task) == name}
        for name in sorted({categories[sample.task] for sample in samples if sample.task in categories})
    }
    intervals = {name: _interval(of_category) for name, of_category in by_category.items()}
    return VbvrRow(
        system=system,
        task=TASK,
        average=_mean(list(values.values())),
        average_ci95=_interval(values),
        categories={name: _mean(list(of_category.values())) for name, of_category in by_category.items()},
        categories_ci95={name: bounds for name, bounds in intervals.items() if bounds is not None},
        num_tasks=len({sample.task for sample in samples}),
        num_videos=len(samples),
        source="measured",
        num_missing=sum(
            (score := scores.get((sample.task, sample.index))) is None or score.error is not None for sample in samples
        ),
        scoring=scoring,
        evaluator=evaluator,
        date=datetime.now(UTC).date().isoformat(),
    )


def outcome_lines(system: str, samples: Sequence[Sample], status: Sequence[Status], scores: Scores) -> str:
    """A line of JSON a sample."""
    lines = []
    for sample, state in zip(samples, status, strict=True):
        score = scores.get((sample.task, sample.index))
        entry = {
            "system": system,
            "task": sample.task,
            "index": sample.index,
            "status": state,
            "score": _value(sample, scores),
            "category": score.category if score else None,
            "error": score.error if score else None,
        }
        lines.append(json.dumps(entry, sort_keys=True) + "\n")
    return "".join(lines)


def _value(sample: Sample, scores: Scores) -> float:
    score = scores.get((sample.task, sample.index))
    return 0.0 if score is None else score.value


def _mean(values: Sequence[float]) -> float:
    return 100 * math.fsum(values) / len(values)


def _interval(values: Mapping[Sample, float]) -> list[float] | None:
    """95 % interval of the average for other videos of the same tasks, which are the strata; None where a task has but one.

    The variance of a stratified mean (Cochran, Sampling Techniques, 3rd ed., 1977, eq. 5.6), sum of n_t s_t^2 / N^2, as the
    number of yes-or-no samples that would have it; Wilson's interval on that (see `metrics`), or on N where nothing varies.
    """
    by_task: dict[str, list[float]] = {}
    for sample, value in values.items():
        by_task.setdefault(sample.task, []).append(value)
    if min(map(len, by_task.values())) < 2:
        return None
    variance = sum(len(of_task) * float(np.var(of_task, ddof=1)) for of_task in by_task.values()) / len(values) ** 2
    mean = _mean(list(values.values())) / 100
    varies = variance > 1e-12 and 0 < mean < 1
    return [100 * bound for bound in wilson(mean, mean * (1 - mean) / variance if varies else len(values))]
