"""A system on VBVR's out-of-domain set: the average of its videos' scores, and that of each category."""

from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict, cast

from vrlvr.evaluation.entries import (
    COUNT_OR_ZERO,
    NAME,
    OPTIONAL_COUNT,
    OPTIONAL_INTERVAL,
    RATE,
    Schema,
    checked,
    is_interval,
    is_name,
    is_rate,
)

TASK = "vbvr-ood"
# Tasks of each category in the whole set, 5 videos a task: the weights of the average.
CATEGORIES = {"Abstraction": 8, "Knowledge": 5, "Perception": 19, "Spatiality": 5, "Transformation": 13}
VIDEOS_PER_TASK = 5
NUM_TASKS = sum(CATEGORIES.values())
NUM_VIDEOS = VIDEOS_PER_TASK * NUM_TASKS


class VbvrRow(TypedDict):
    """Scores in percent (0..100): the mean over all videos of the set, those without a score counted as 0.

    categories: the same mean over each category, as the evaluator names them, and categories_ci95 the interval of each that has
    one. num_tasks, num_videos: of the set that was
    asked for (50 and 250 are the whole), of which num_missing had no score. scoring: which of the evaluator's modes. evaluator:
    its commit and hash. What a published table does not tell is None, or not there.
    """

    system: str
    task: str
    average: float
    average_ci95: list[float] | None
    categories: dict[str, float]
    num_tasks: int | None
    num_videos: int | None
    source: str
    num_missing: NotRequired[int]
    scoring: NotRequired[str]
    evaluator: NotRequired[str]
    date: NotRequired[str]
    categories_ci95: NotRequired[dict[str, list[float]]]


def _are_categories(value: Any) -> bool:
    return isinstance(value, dict) and all(is_name(name) and is_rate(score) for name, score in value.items())


def _are_intervals(value: Any) -> bool:
    return isinstance(value, dict) and all(
        is_name(name) and is_interval(bounds, 0, 100) for name, bounds in value.items()
    )


_ROW: Schema = {
    "system": NAME,
    "task": (TASK, lambda value: value == TASK),
    "average": RATE,
    "average_ci95": OPTIONAL_INTERVAL,
    "categories": ("an object of numbers in 0..100", _are_categories),
    "num_tasks": OPTIONAL_COUNT,
    "num_videos": OPTIONAL_COUNT,
    "source": ("one of measured, published", lambda value: value in ("measured", "published")),
}
_HOW_MEASURED: Schema = {
    "num_missing": COUNT_OR_ZERO,
    **dict.fromkeys(("scoring", "evaluator", "date"), NAME),
    "categories_ci95": ("an object of [low, high] in 0..100", _are_intervals),
}


def is_vbvr(entry: Any) -> bool:
    """Whether an entry of results.json is such a row, rather than one of `metrics.Row`."""
    return isinstance(entry, dict) and entry.get("task") == TASK


def checked_vbvr_row(row: Any, where: str) -> VbvrRow:
    """The row itself, if it is as described above. Raises UserError, which names it by `where`."""
    return cast(VbvrRow, checked(row, _ROW, where, optional=_HOW_MEASURED))


def weighted_average(categories: Mapping[str, float]) -> float | None:
    """The average that the five categories give for the whole set; None if one is missing."""
    if not CATEGORIES.keys() <= categories.keys():
        return None
    return sum(weight * categories[name] for name, weight in CATEGORIES.items()) / NUM_TASKS
