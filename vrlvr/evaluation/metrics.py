"""From verdicts to the rows of a results table, with intervals that stay honest for repeated noise seeds.

N puzzles are judged under several noise seeds each. The seeds of one puzzle are not independent (an easy puzzle is
solved by all of them), so the binomial interval over all samples is too narrow. The remedy comes from surveys:

- the variance of the success rate is estimated over puzzles (clusters), as that of a ratio of two totals
  (Cochran, Sampling Techniques, 3rd ed., 1977, eq. 6.13);
- it is turned into an effective number of samples, p (1 - p) / variance (Korn and Graubard, Survey Methodology 24,
  1998);
- Wilson's score interval is taken on that number (Wilson, JASA 22, 1927; for clustered data Dean and Pagano, Journal of
  Survey Statistics and Methodology 3, 2015). It is never empty, 0 % and 100 % included, and needs no random numbers.

Differences combine two such intervals by "square and add" with the correlation over the puzzles that both systems saw
(Newcombe, Statistics in Medicine 17, 1998, method 10; Zou and Donner, Statistics in Medicine 27, 2008).
"""

from collections.abc import Sequence
from typing import NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray

from vrlvr.errors import UserError
from vrlvr.puzzles.verdict import Verdict, f1

Z95 = 1.959963984540054  # the standard normal's 97.5 % quantile

Interval = tuple[float, float]


class Row(TypedDict):
    """One system on one task. Rates in percent (0..100); what a published table does not tell is None.

    The last come with measured rows of `vrlvr.evaluation.benchmark`: samples in all, of which so many had no video or one that
    cannot be decoded (both count as not solved); the day (ISO 8601), the verifier's version, a hash of the puzzles, `text`
    where a language model answered, and the intervals of the other rates (see overlap_intervals.py).
    """

    system: str
    task: str
    precision: float
    recall: float
    f1: float
    success_rate: float
    success_rate_ci95: list[float] | None
    num_puzzles: int | None
    source: str
    num_samples: NotRequired[int]
    num_missing: NotRequired[int]
    num_undecodable: NotRequired[int]
    date: NotRequired[str]
    verifier: NotRequired[str]
    test_set: NotRequired[str]
    answers: NotRequired[str]
    precision_ci95: NotRequired[list[float]]
    recall_ci95: NotRequired[list[float]]
    f1_ci95: NotRequired[list[float]]


class Gain(TypedDict):
    """A difference of two success rates, in percentage points. `paired`: both systems saw the same puzzles, compared
    puzzle by puzzle."""

    before: str
    after: str
    task: str
    gain: float
    gain_ci95: list[float]
    num_puzzles: int
    paired: bool


def summarise(system: str, task: str, verdicts: Sequence[Sequence[Verdict]], source: str = "measured") -> Row:
    """The row of one system on one task.

    verdicts: for each puzzle one Verdict per noise seed; the number of seeds may differ between puzzles.
    Precision and recall are means over all samples, F1 is 2PR / (P + R) of those two means.
    Raises UserError if there is no puzzle, or a puzzle without a verdict.
    """
    solved, counts = _solved_per_puzzle(verdicts, f"{system} on {task}")
    samples = [verdict for per_puzzle in verdicts for verdict in per_puzzle]
    precision = float(np.mean([verdict.precision for verdict in samples]))
    recall = float(np.mean([verdict.recall for verdict in samples]))
    return Row(
        system=system,
        task=task,
        precision=100 * precision,
        recall=100 * recall,
        f1=100 * f1(precision, recall),
        success_rate=100 * float(solved.sum() / counts.sum()),
        success_rate_ci95=_percent(clustered_interval(solved, counts)),
        num_puzzles=len(counts),
        source=source,
    )


def wilson(rate: float, n: float, z: float = Z95) -> Interval:
    """Wilson's score interval of a success rate in [0, 1] over n samples (n may be an effective number)."""
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * float(np.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n)))
    return min(rate, max(0.0, centre - half)), max(rate, min(1.0, centre + half))


def effective_samples(solved: NDArray[np.float64], counts: NDArray[np.float64]) -> float:
    """The number of independent samples that would give the variance seen over puzzles.

    solved, counts: (N,), solved samples and samples of each puzzle. The result lies between the number of puzzles (the
    seeds of a puzzle always agree) and the number of samples (they are independent); where all samples agree the
    variance says nothing, and the number of puzzles is taken.
    """
    num_puzzles, num_samples = len(counts), float(counts.sum())
    rate = solved.sum() / num_samples
    if rate in (0.0, 1.0) or num_puzzles == 1:
        return float(num_puzzles)
    residuals = solved - rate * counts
    variance = num_puzzles / (num_puzzles - 1) * float(residuals @ residuals) / num_samples**2
    if variance == 0:
        return num_samples
    return float(np.clip(rate * (1 - rate) / variance, num_puzzles, num_samples))


def clustered_interval(solved: NDArray[np.float64], counts: NDArray[np.float64]) -> Interval:
    """95 % interval of the success rate in [0, 1]; solved, counts: (N,), solved samples and samples of each puzzle."""
    return wilson(float(solved.sum() / counts.sum()), effective_samples(solved, counts))


def paired_gain(
    before_system: str,
    after_system: str,
    task: str,
    before: Sequence[Sequence[Verdict]],
    after: Sequence[Sequence[Verdict]],
) -> Gain:
    """Success rate of `after` minus `before` on the same puzzles in the same order, with a paired 95 % interval.

    Raises UserError if the numbers of puzzles differ.
    """
    if len(before) != len(after):
        raise UserError(
            f"{before_system} was judged on {len(before)} {task} puzzles and {after_system} on {len(after)}, "
            f"a paired gain needs the same ones; evaluate both on one test split"
        )
    solved_before, counts_before = _solved_per_puzzle(before, f"{before_system} on {task}")
    solved_after, counts_after = _solved_per_puzzle(after, f"{after_system} on {task}")
    gain, interval = difference(
        float(solved_before.sum() / counts_before.sum()),
        clustered_interval(solved_before, counts_before),
        float(solved_after.sum() / counts_after.sum()),
        clustered_interval(solved_after, counts_after),
        _correlation(solved_before / counts_before, solved_after / counts_after),
    )
    return Gain(
        before=before_system,
        after=after_system,
        task=task,
        gain=100 * gain,
        gain_ci95=_percent(interval),
        num_puzzles=len(before),
        paired=True,
    )


def unpaired_gain(before: Row, after: Row) -> Gain:
    """The gain between two rows of one task, as if they came from different puzzles: wider than `paired_gain`.

    Raises UserError if a row has no interval (published rows have none).
    """
    for row in (before, after):
        if row["success_rate_ci95"] is None or row["num_puzzles"] is None:
            raise UserError(f"{row['system']} on {row['task']} has no interval to compare; use a measured row")
    low_before, high_before = (bound / 100 for bound in before["success_rate_ci95"] or ())
    low_after, high_after = (bound / 100 for bound in after["success_rate_ci95"] or ())
    gain, interval = difference(
        before["success_rate"] / 100,
        (low_before, high_before),
        after["success_rate"] / 100,
        (low_after, high_after),
        0.0,
    )
    return Gain(
        before=before["system"],
        after=after["system"],
        task=after["task"],
        gain=100 * gain,
        gain_ci95=_percent(interval),
        num_puzzles=min(before["num_puzzles"] or 0, after["num_puzzles"] or 0),
        paired=False,
    )


def mean_gain(gains: Sequence[Gain]) -> Gain:
    """The mean over tasks (task `mean`), all alike; tasks share no puzzle, so their errors are independent."""
    mean = sum(gain["gain"] for gain in gains) / len(gains)
    below = np.linalg.norm([gain["gain"] - gain["gain_ci95"][0] for gain in gains]) / len(gains)
    above = np.linalg.norm([gain["gain_ci95"][1] - gain["gain"] for gain in gains]) / len(gains)
    return Gain(
        before=gains[0]["before"],
        after=gains[0]["after"],
        task="mean",
        gain=mean,
        gain_ci95=[mean - float(below), mean + float(above)],
        num_puzzles=sum(gain["num_puzzles"] for gain in gains),
        paired=all(gain["paired"] for gain in gains),
    )


def difference(
    before: float, before_interval: Interval, after: float, after_interval: Interval, correlation: float
) -> tuple[float, Interval]:
    """after - before and its interval, from the two intervals and the correlation of the two estimates."""
    gain = after - before
    low = _square_and_add(after - after_interval[0], before_interval[1] - before, correlation)
    high = _square_and_add(after_interval[1] - after, before - before_interval[0], correlation)
    return gain, (max(-1.0, gain - low), min(1.0, gain + high))


def _square_and_add(a: float, b: float, correlation: float) -> float:
    return float(np.sqrt(max(0.0, a * a - 2 * correlation * a * b + b * b)))


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Pearson's, taken as 0 where one side does not vary."""
    if a.std() == 0 or b.std() == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def _solved_per_puzzle(
    verdicts: Sequence[Sequence[Verdict]], what: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Solved samples and samples of each puzzle, (N,) each."""
    if not verdicts or not all(verdicts):
        raise UserError(
            f"{what}: every system needs at least one puzzle and one noise seed; raise the number of either"
        )
    solved = np.array([sum(verdict.solved for verdict in per_puzzle) for per_puzzle in verdicts], float)
    return solved, np.array([len(per_puzzle) for per_puzzle in verdicts], float)


def _percent(interval: Interval) -> list[float]:
    return [100 * bound for bound in interval]
