"""Rows and gains: closed forms, published worked examples, and the coverage of the intervals by simulation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vrlvr.errors import UserError
from vrlvr.evaluation.metrics import (
    clustered_interval,
    difference,
    effective_samples,
    mean_gain,
    paired_gain,
    summarise,
    unpaired_gain,
    wilson,
)
from vrlvr.evaluation.overlap_intervals import overlap_intervals
from vrlvr.puzzles.verdict import Verdict

RATES = ("precision", "recall", "f1")


def verdict(solved: bool, precision: float = 0.5, recall: float = 0.5) -> Verdict:
    return Verdict(solved, {}, None if solved else "teleport", None if solved else 3, precision, recall)


def verdicts(*solved_per_puzzle: str) -> list[list[Verdict]]:
    """`verdicts("10", "11")`: two puzzles, two noise seeds each."""
    return [[verdict(flag == "1") for flag in flags] for flags in solved_per_puzzle]


def test_a_row_holds_means_over_samples_and_the_f1_of_the_means() -> None:
    judged = [
        [verdict(True, 1.0, 1.0), verdict(False, 0.0, 0.0)],
        [verdict(False, 0.5, 0.25), verdict(False, 0.5, 0.75)],
    ]
    row = summarise("rl", "maze", judged)
    interval = row.pop("success_rate_ci95")
    assert row == {
        "system": "rl",
        "task": "maze",
        "precision": 50.0,
        "recall": 50.0,
        "f1": 50.0,
        "success_rate": 25.0,
        "num_puzzles": 2,
        "source": "measured",
    }
    assert interval is not None
    assert 0 <= interval[0] < 25 < interval[1] <= 100


def test_f1_is_of_the_aggregate_not_the_mean_of_f1s() -> None:
    row = summarise("rl", "maze", [[verdict(True, 1.0, 0.0)], [verdict(True, 0.0, 1.0)]])
    assert row["f1"] == pytest.approx(50.0)


def test_wilson_against_the_published_example() -> None:
    """Newcombe, Statistics in Medicine 17, 857 (1998), table I, method 3: 81/263, 15/148, 0/20, 1/29."""
    for solved, n, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert wilson(solved / n, n) == pytest.approx((low, high), abs=5e-5)


def test_overlap_intervals_hold_the_truth_95_times_of_100() -> None:
    """Puzzles differ, precision and recall go together, and the two samples of a puzzle resemble each other."""
    rng = np.random.default_rng(0)

    def drawn(puzzles: int) -> list[list[Verdict]]:
        ease = rng.beta(2, 1, (puzzles, 1))
        precision, recall = (np.clip(ease + rng.normal(0, 0.1, (puzzles, 2)) - less, 0, 1) for less in (0, 0.2))
        return [[verdict(False, *pair) for pair in zip(*of, strict=True)] for of in zip(precision, recall, strict=True)]

    truth = summarise("s", "maze", drawn(40_000))
    held = np.zeros(3)
    for _ in range(300):
        intervals = overlap_intervals(drawn(60))
        held += [low <= truth[name] <= high for name, (low, high) in zip(RATES, intervals, strict=True)]  # type: ignore[literal-required]
    assert (np.abs(held / 300 - 0.95) < 0.03).all()


@given(st.lists(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=3), min_size=1, max_size=9))
def test_overlap_intervals_hold_their_rates_and_lie_in_0_to_100(pairs: list[list[tuple[float, float]]]) -> None:
    judged = [[verdict(False, *pair) for pair in puzzle] for puzzle in pairs]
    row = summarise("s", "maze", judged)
    for name, (low, high) in zip(RATES, overlap_intervals(judged), strict=True):
        assert 0 <= low <= high <= 100
        assert low - 1e-9 <= row[name] <= high + 1e-9  # type: ignore[literal-required]


def test_overlaps_of_nothing_or_everything_have_intervals_of_as_many_puzzles() -> None:
    for value in (0.0, 1.0):
        judged = [[verdict(False, value, value)] * 3] * 20
        for interval in overlap_intervals(judged):
            assert interval == [100 * bound for bound in wilson(value, 20)]


def test_difference_against_the_published_example() -> None:
    """Newcombe, Statistics in Medicine 17, 873 (1998), table II, method 10: 56/70 - 48/80."""
    gain, interval = difference(48 / 80, wilson(48 / 80, 80), 56 / 70, wilson(56 / 70, 70), 0.0)
    assert gain == pytest.approx(0.2)
    assert interval == pytest.approx((0.0524, 0.3339), abs=5e-5)


def test_copies_of_a_puzzle_add_nothing_and_independent_seeds_count_in_full() -> None:
    once = np.array([1.0] * 30 + [0.0] * 70)
    assert clustered_interval(4 * once, np.full(100, 4.0)) == pytest.approx(wilson(0.3, 100), abs=1e-3)
    rng = np.random.default_rng(0)
    independent = rng.binomial(4, 0.3, 4000).astype(float)
    assert effective_samples(independent, np.full(4000, 4.0)) == pytest.approx(16000, rel=0.05)


@pytest.mark.parametrize("flags", ["00", "11"])
def test_the_interval_is_not_empty_where_all_samples_agree(flags: str) -> None:
    row = summarise("base", "maze", verdicts(*[flags] * 50))
    assert row["success_rate_ci95"] is not None
    low, high = row["success_rate_ci95"]
    assert 5 < high - low < 10  # that of 50 puzzles, not of 100 samples
    assert row["success_rate"] in (low, high)


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=4), min_size=1, max_size=40))
def test_the_interval_holds_the_rate_and_lies_in_0_to_100(flags: list[list[bool]]) -> None:
    row = summarise("rl", "maze", [[verdict(flag) for flag in puzzle] for puzzle in flags])
    assert row["success_rate_ci95"] is not None
    low, high = row["success_rate_ci95"]
    assert 0 <= low <= row["success_rate"] <= high <= 100
    assert low < high


def _judged(rng: np.random.Generator, rates: np.ndarray, num_seeds: int) -> list[list[Verdict]]:
    return [[verdict(bool(flag)) for flag in rng.random(num_seeds) < rate] for rate in rates]


def test_coverage_for_repeated_seeds_is_near_95_percent() -> None:
    """Puzzles differ in difficulty (Beta(.4, .6)), two seeds each; the binomial interval covers too little."""
    rng = np.random.default_rng(1)
    covered = naive = 0
    for _ in range(1000):
        solved = rng.binomial(2, rng.beta(0.4, 0.6, 100)).astype(float)
        low, high = clustered_interval(solved, np.full(100, 2.0))
        covered += low <= 0.4 <= high
        low, high = wilson(solved.sum() / 200, 200)
        naive += low <= 0.4 <= high
    assert 930 <= covered <= 970
    assert naive < 910


def test_coverage_and_width_of_the_paired_gain() -> None:
    """Both systems find the same puzzles hard: pairing narrows the interval and keeps its coverage."""
    rng = np.random.default_rng(2)
    covered, paired_width, unpaired_width = 0, 0.0, 0.0
    for _ in range(200):
        hardness = rng.beta(0.6, 0.6, 80)
        before = _judged(rng, 0.8 * hardness, 2)
        after = _judged(rng, 0.8 * hardness + 0.1, 2)
        gain = paired_gain("sft", "rl", "maze", before, after)
        covered += gain["gain_ci95"][0] <= 10 <= gain["gain_ci95"][1]
        loose = unpaired_gain(summarise("sft", "maze", before), summarise("rl", "maze", after))
        assert loose["gain"] == pytest.approx(gain["gain"])
        paired_width += gain["gain_ci95"][1] - gain["gain_ci95"][0]
        unpaired_width += loose["gain_ci95"][1] - loose["gain_ci95"][0]
    assert 183 <= covered <= 198
    assert paired_width < 0.9 * unpaired_width


def test_a_gain_is_after_minus_before_and_never_certain() -> None:
    gain = paired_gain("sft", "rl", "maze", verdicts(*["00"] * 40), verdicts(*["11"] * 40))
    assert gain["gain"] == 100
    assert 80 < gain["gain_ci95"][0] < gain["gain_ci95"][1] == 100
    nothing = paired_gain("sft", "rl", "maze", verdicts(*["00"] * 40), verdicts(*["00"] * 40))
    assert nothing["gain"] == 0
    assert nothing["gain_ci95"][0] < 0 < nothing["gain_ci95"][1]


def test_the_mean_gain_weighs_tasks_alike() -> None:
    one = paired_gain("sft", "rl", "maze", verdicts(*["0"] * 50), verdicts(*["0"] * 25, *["1"] * 25))
    other = paired_gain("sft", "rl", "sokoban", verdicts(*["0"] * 100), verdicts(*["0"] * 90, *["1"] * 10))
    mean = mean_gain([one, other])
    assert mean["gain"] == pytest.approx(30)
    assert mean["num_puzzles"] == 150
    low, high = mean["gain_ci95"]
    assert 30 - low == pytest.approx(np.hypot(50 - one["gain_ci95"][0], 10 - other["gain_ci95"][0]) / 2)
    assert high > 30


@pytest.mark.parametrize("judged", [[], [[]], [[verdict(True)], []]])
def test_a_system_without_samples_is_refused(judged: list[list[Verdict]]) -> None:
    with pytest.raises(UserError, match="at least one puzzle and one noise seed"):
        summarise("rl", "maze", judged)


def test_gains_of_unlike_test_sets_and_of_published_rows_are_refused() -> None:
    with pytest.raises(UserError, match="2 maze puzzles and rl on 1"):
        paired_gain("sft", "rl", "maze", verdicts("1", "0"), verdicts("1"))
    row = summarise("rl", "maze", verdicts("1"))
    published = summarise("VideoRLVR", "maze", verdicts("1"), source="published")
    published["success_rate_ci95"] = None
    with pytest.raises(UserError, match="VideoRLVR on maze has no interval"):
        unpaired_gain(published, row)
