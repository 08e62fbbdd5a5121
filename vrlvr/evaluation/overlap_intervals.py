"""95 % intervals of precision, recall and F1: means over puzzles of numbers in [0, 1], not shares of solved ones.

The variance of a mean is estimated over puzzles, whose samples are not independent, as that of a ratio of two totals (Cochran,
Sampling Techniques, 3rd ed., 1977, eq. 6.13). It is that of so many yes-or-no samples, on which Wilson's interval is taken, as
`metrics` does for the success rate. F1 = 2PR / (P + R) of the two means is linearised for it (Taylor; Woodruff, JASA 66, 1971).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vrlvr.evaluation.metrics import wilson
from vrlvr.puzzles.verdict import Verdict


def overlap_intervals(verdicts: Sequence[Sequence[Verdict]]) -> tuple[list[float], list[float], list[float]]:
    """[low, high] in percent of precision, recall and F1. verdicts: one or more of each puzzle, as for `summarise`."""
    counts = np.array([len(of_puzzle) for of_puzzle in verdicts], float)
    precisions = np.array([sum(verdict.precision for verdict in of_puzzle) for of_puzzle in verdicts])
    recalls = np.array([sum(verdict.recall for verdict in of_puzzle) for of_puzzle in verdicts])
    p, r = precisions.sum() / counts.sum(), recalls.sum() / counts.sum()
    both = max(p + r, np.finfo(float).tiny)
    f1s = 2 * (r / both) ** 2 * precisions + 2 * (p / both) ** 2 * recalls  # their mean is F1, their slopes its own
    return _interval(precisions, counts), _interval(recalls, counts), _interval(f1s, counts)


def _interval(totals_N: NDArray[np.float64], counts_N: NDArray[np.float64]) -> list[float]:
    """Of the mean of values whose totals over each puzzle's samples are given. Where nothing varies, a puzzle is a sample."""
    puzzles, samples = len(counts_N), counts_N.sum()
    mean = float(np.clip(totals_N.sum() / samples, 0, 1))
    residuals = totals_N - mean * counts_N
    variance = float(np.square(residuals).sum()) / samples**2 * puzzles / max(1, puzzles - 1)
    varies = variance > 1e-12 and 0 < mean < 1
    return [100 * bound for bound in wilson(mean, mean * (1 - mean) / variance if varies else puzzles)]
