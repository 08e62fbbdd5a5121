"""From the lines of metrics.jsonl to chart cards: which scalars share a frame, by the names that training gives them.

Names (phase `sft` or `grpo`): loss, reward, reward_<task>, success, success_<task>, val_success, val_success_<task>,
component_<task>_<name>, grad_norm, grad_norm_step_<k>, seconds_<part>, ... What no group knows is drawn by itself.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vrlvr.evaluation.charts import NUM_COLOURS, Point, Series, line_chart, smooth, thin, value_range
from vrlvr.evaluation.page import figure
from vrlvr.evaluation.tables import TITLES, task_title

Scalars = Mapping[tuple[str, str], Sequence[Point]]

_FIELDS = ("phase", "step", "total", "seconds")


@dataclass(frozen=True)
class Group:
    """Scalars that share a frame. curves: ((phase, name), label, colour, sparse) of each."""

    title: str
    curves: Sequence[tuple[tuple[str, str], str, int, bool]]
    percent: bool = False
    low: float | None = None


def scalars_of(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], list[Point]]:
    """(phase, name) -> its (step, value) points; nulls are left out."""
    points: dict[tuple[str, str], list[Point]] = defaultdict(list)
    for row in rows:
        for name, value in row.items():
            if name not in _FIELDS and value is not None:
                points[row["phase"], name].append((row["step"], value))
    return dict(points)


def tasks_in(scalars: Scalars) -> list[str]:
    """The tasks that the names speak of, in their usual order."""
    found = {match[1] for _, name in scalars if (match := re.fullmatch("(?:val_)?success_(.+)", name))}
    return [task for task in TITLES if task in found] + sorted(found.difference(TITLES))


def success_groups(scalars: Scalars) -> list[Group]:
    """One frame for the mean and one a task: success of the training rollouts, and on validation puzzles."""
    groups = [
        Group(
            title,
            [
                (("grpo", f"success{suffix}"), "rollouts", 7, False),
                (("grpo", f"val_success{suffix}"), "validation", colour, True),
            ],
            percent=True,
            low=0.0,
        )
        for title, suffix, colour in _mean_and_tasks(scalars)
    ]
    return _present(groups, scalars)


def reward_groups(scalars: Scalars) -> list[Group]:
    """One frame for the mean and one a task."""
    groups = [
        Group(title, [(("grpo", f"reward{suffix}"), "reward", colour, False)])
        for title, suffix, colour in _mean_and_tasks(scalars)
    ]
    return _present(groups, scalars)


def component_groups(scalars: Scalars) -> list[Group]:
    """One frame a task, one curve a component of its reward."""
    groups = []
    for task in tasks_in(scalars):
        prefix = f"component_{task}_"
        names = sorted(name for phase, name in scalars if phase == "grpo" and name.startswith(prefix))
        curves = [(("grpo", name), name.removeprefix(prefix), i % NUM_COLOURS, False) for i, name in enumerate(names)]
        groups.append(Group(task_title(task), curves))
    return _present(groups, scalars)


def sft_groups(scalars: Scalars) -> list[Group]:
    """The flow-matching loss, and validation success of all tasks in one frame."""
    validation = [
        (("sft", f"val_success{suffix}"), title, colour, True) for title, suffix, colour in _mean_and_tasks(scalars)
    ]
    groups = [
        Group("Loss", [(("sft", "loss"), "flow matching", 0, False)]),
        Group("Validation success", validation, percent=True, low=0.0),
    ]
    return _present(groups, scalars)


def health_groups(scalars: Scalars) -> list[Group]:
    """What tells a sound policy update from a broken one."""
    per_step = sorted(
        (name for phase, name in scalars if phase == "grpo" and name.startswith("grad_norm_step_")),
        key=lambda name: (len(name), name),
    )
    single = {
        "Gradient norm": "grad_norm",
        "Largest |ratio - 1|": "ratio_max_deviation",
        "Samples with a clipped ratio": "clip_fraction",
        "Groups without spread": "zero_spread_fraction",
    }
    groups = [
        Group(title, [(("grpo", name), name, 0, False)], percent=name.endswith("fraction"), low=0.0)
        for title, name in single.items()
    ]
    steps = [
        (("grpo", name), f"step {name.removeprefix('grad_norm_step_')}", i % NUM_COLOURS, False)
        for i, name in enumerate(per_step)
    ]
    opinions = [
        (("grpo", "second_success"), "solved", 0, False),
        (("grpo", "second_agreement"), "agrees with the first", 1, False),
    ]
    others = [
        Group("Gradient norm by denoising step", steps, low=0.0),
        Group("Second verifier, on a sample", opinions, percent=True, low=0.0),
    ]
    return _present([*groups, *others], scalars)


def other_groups(scalars: Scalars, drawn: Iterable[Group]) -> list[Group]:
    """Every scalar that is in none of the groups, one frame each."""
    known = {key for group in drawn for key, *_ in group.curves}
    return [Group(f"{key[0]}: {key[1]}", [(key, key[1], 7, False)]) for key in sorted(scalars) if key not in known]


def chart_cards(groups: Sequence[Group], scalars: Scalars, shared: bool = False) -> list[str]:
    """One card a group, with the last drawn value of each curve in its legend. shared: all have the same y axis."""
    drawn = [[Series(label, scalars[key], colour, sparse) for key, label, colour, sparse in g.curves] for g in groups]
    ranges = [_range(group, series) for group, series in zip(groups, drawn, strict=True)]
    if shared and ranges:
        ranges = [(min(low for low, _ in ranges), max(high for _, high in ranges))] * len(ranges)
    return [
        figure(
            group.title,
            line_chart(group.title, series, low, high, group.percent),
            [(one.colour, one.name, _last(one, group.percent)) for one in series],
        )
        for group, series, (low, high) in zip(groups, drawn, ranges, strict=True)
    ]


def _range(group: Group, series: Sequence[Series]) -> tuple[float, float]:
    low, high = value_range(series)
    return low if group.low is None else min(low, group.low), high


def _last(series: Series, percent: bool) -> str:
    last = (series.points if series.sparse else smooth(thin(series.points)))[-1][1]
    return f"{100 * last:.1f}\u00a0%" if percent else f"{last:.3g}"


def _mean_and_tasks(scalars: Scalars) -> list[tuple[str, str, int]]:
    """Title, suffix of the scalars' names, and colour."""
    tasks = [(task_title(task), f"_{task}", colour) for colour, task in enumerate(tasks_in(scalars))]
    return [("All tasks", "", 3), *tasks]


def _present(groups: Iterable[Group], scalars: Scalars) -> list[Group]:
    """The groups without the curves that were never logged, and without groups that this leaves empty."""
    kept = [
        Group(group.title, [curve for curve in group.curves if curve[0] in scalars], group.percent, group.low)
        for group in groups
    ]
    return [group for group in kept if group.curves]
