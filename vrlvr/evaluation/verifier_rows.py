"""What verifiers said of the corpus, as rows: how often each was wrong, with intervals, and how often they differed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["attacks", "honest"]
SHOULD_BE_SOLVED: dict[Kind, bool] = {"attacks": False, "honest": True}


@dataclass(frozen=True)
class Judged:
    """One video of the corpus. solved: by verifier. dense: the first one's default reward. rule: the one it saw broken."""

    version: str
    size: str
    kind: Kind
    task: str
    name: str
    seed: int
    solved: dict[str, bool]
    dense: float
    rule: str | None = None


@dataclass(frozen=True)
class Line:
    """Many videos. wrong: by verifier, how many it got wrong. rules: why the first verifier refused, most frequent first.

    largest_dense: the largest dense reward. split: how many videos the verifiers disagree on.
    """

    kind: Kind
    task: str
    name: str
    videos: int
    wrong: dict[str, int]
    split: int
    largest_dense: float
    rules: list[str]


def line_of(kind: Kind, task: str, name: str, judged: Sequence[Judged]) -> Line:
    """Sums up videos of one kind that were judged by the same verifiers."""
    refused = [video.rule for video in judged if video.rule is not None]
    return Line(
        kind,
        task,
        name,
        len(judged),
        {verifier: sum(video.solved[verifier] != SHOULD_BE_SOLVED[kind] for video in judged) for verifier in judged[0].solved},
        sum(len(set(video.solved.values())) > 1 for video in judged),
        max(video.dense for video in judged),
        sorted(set(refused), key=lambda rule: (-refused.count(rule), rule)),
    )  # fmt: skip


def lines_of(judged: Sequence[Judged]) -> list[Line]:
    """A line for each maker of videos, for each task and for each kind (task or name `all` then), in order of appearance."""
    lines = []
    for kind in dict.fromkeys(video.kind for video in judged):
        of_kind = [video for video in judged if video.kind == kind]
        for task in dict.fromkeys(video.task for video in of_kind):
            of_task = [video for video in of_kind if video.task == task]
            names = dict.fromkeys(video.name for video in of_task)
            lines += [line_of(kind, task, name, [video for video in of_task if video.name == name]) for name in names]
            lines.append(line_of(kind, task, "all", of_task))
        lines.append(line_of(kind, "all", "all", of_kind))
    return lines


def clopper_pearson(wrong: int, videos: int, error: float = 0.05) -> tuple[float, float]:
    """The exact binomial interval of a rate in [0, 1] (Clopper and Pearson, Biometrika 26, 1934).

    Two-sided at level 1 - error. Where nothing, or everything, was wrong it is one-sided: 1 - error^(1/n), the rule of three.
    """
    if wrong == 0:
        return 0.0, 1 - error ** (1 / videos)
    if wrong == videos:
        return error ** (1 / videos), 1.0

    def where(tail: float, low: int, high: int, rising: bool) -> float:
        """The rate at which P(low <= X <= high) is `tail`, by bisection."""
        below, above = 0.0, 1.0
        for _ in range(60):
            middle = (below + above) / 2
            if (_binomial(low, high, videos, middle) < tail) == rising:
                below = middle
            else:
                above = middle
        return (below + above) / 2

    return where(error / 2, wrong, videos, True), where(error / 2, 0, wrong, False)


def _binomial(low: int, high: int, n: int, rate: float) -> float:
    """P(low <= X <= high) of a binomial X."""
    if rate in (0.0, 1.0):
        return float(low <= n * rate <= high)
    return sum(
        math.exp(
            math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
            + k * math.log(rate) + (n - k) * math.log1p(-rate)
        )
        for k in range(low, high + 1)
    )  # fmt: skip


def markdown(lines: Sequence[Line]) -> str:
    """The lines as a table: wrong verdicts of each verifier with their 95 % interval in percent."""
    verifiers = list(lines[0].wrong) if lines else []
    head = ["kind", "task", "video", "n", *(f"{name}: wrong [95 %]" for name in verifiers)]
    head += (["differ"] if len(verifiers) > 1 else []) + ["largest reward", "why not solved"]
    rows = [head, ["---"] * len(head)]
    for line in lines:
        cells = [line.kind, line.task, line.name, str(line.videos)]
        for wrong in line.wrong.values():
            low, high = clopper_pearson(wrong, line.videos)
            cells.append(f"{wrong} [{100 * low:.2f}, {100 * high:.2f}]")
        cells += [str(line.split)] if len(verifiers) > 1 else []
        why = line.rules if line.kind == "attacks" or line.wrong[verifiers[0]] else []
        rows.append([*cells, f"{line.largest_dense:.3f}", ", ".join(why[:4])])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
