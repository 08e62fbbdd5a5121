"""What is wrong, or deserves a word, in rows of results: published ones and measured ones alike.

A printed number stands for an interval: 16.5 means 16.45 to 16.55. A number that follows from others is doubted only where its
interval and theirs leave no room. Numbers of full precision are held to their own last digit.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple, cast

from vrlvr.evaluation.metrics import Row, wilson
from vrlvr.evaluation.vbvr_rows import CATEGORIES, NUM_VIDEOS, VbvrRow, weighted_average
from vrlvr.puzzles.verdict import f1

FEW = 100  # puzzles below which a 95 % interval is wider than some 20 points
_NOISE = 1e-6  # of sums in floating point, in percent
_OTHERS = {"precision": "precision", "recall": "recall", "f1": "F1"}
_TITLES = _OTHERS | {"success_rate": "SR"}


class Flag(NamedTuple):
    """What is to be said of one number of a row: a sentence without a full stop."""

    column: str  # the row's field
    text: str


def half_unit(value: float) -> float:
    """Half a unit of a number's last decimal as written, at most that of one decimal: 16.5 -> 0.05, 40.25 -> 0.005."""
    exponent = Decimal(repr(float(value))).as_tuple().exponent
    return min(0.05, 0.5 * 10.0 ** float(exponent)) + _NOISE


def audit(rows: Sequence[Row]) -> list[list[Flag]]:
    """For each row what is to be said of it; an empty list where nothing is."""
    checks: tuple[Callable[[Row], str | None], ...] = (
        _success_against_recall,
        _counts_add_up,
        _rate_is_a_share,
        _interval_holds_the_rate,
        _interval_fits_the_count,
        _few,
        _failed_answers,
    )
    found = []
    for row in rows:
        doubts = [Flag("f1", text)] if (text := _f1_follows(row)) else []
        doubts += [Flag(column, text) for column in _OTHERS if (text := _outside(row, column))]
        found.append(doubts + [Flag("success_rate", text) for check in checks if (text := check(row))])
    for i, text in _mixtures(rows):
        found[i].append(Flag("success_rate", text))
    return found


def audit_vbvr(rows: Sequence[VbvrRow]) -> list[list[Flag]]:
    """The same for rows of VBVR's out-of-domain set, all of it about the average."""
    checks = (_average_follows, _average_interval, _whole_set, _unknown_categories)
    found = [[Flag("average", text) for check in checks if (text := check(row))] for row in rows]
    measured = [i for i, row in enumerate(rows) if row["source"] == "measured"]
    for name in ("evaluator", "scoring"):
        values = {i: str(rows[i].get(name, "unknown")) for i in measured}
        for i, text in _unlike(values, f"its {name} differs from that of other measured rows"):
            found[i].append(Flag("average", text))
    return found


def _f1_follows(row: Row) -> str | None:
    """F1 of the aggregated precision and recall. It grows with both, so the ends of their intervals bound it.

    The harmonic mean is concave: the mean of many videos' F1 lies below the F1 of their mean precision and recall (Jensen),
    so a lower one may be another average, and a higher one is none.
    """
    p, r = row["precision"], row["recall"]
    low = f1(max(0.0, p - half_unit(p)), max(0.0, r - half_unit(r)))
    high = f1(min(100.0, p + half_unit(p)), min(100.0, r + half_unit(r)))
    slack = half_unit(row["f1"])
    if low - slack <= row["f1"] <= high + slack:
        return None
    why = "the mean of every video's own F1 can be lower" if row["f1"] < low else "no mean over videos is higher"
    return f"F1 {row['f1']:.1f} does not follow from its precision and recall, which give {f1(p, r):.1f}; {why}"


def _success_against_recall(row: Row) -> str | None:
    if row["success_rate"] <= row["recall"] + half_unit(row["recall"]) + half_unit(row["success_rate"]):
        return None
    return (
        f"SR {row['success_rate']:.1f} above recall {row['recall']:.1f}: possible only if many were solved by another way "
        "than the reference"
    )


def _counts_add_up(row: Row) -> str | None:
    samples, failed = row.get("num_samples"), row.get("num_missing", 0) + row.get("num_undecodable", 0)
    if samples is None:
        return None
    if failed > samples:
        return f"{failed} missing or undecodable answers of {samples} are impossible"
    if row["num_puzzles"] is not None and samples < row["num_puzzles"]:
        return f"{samples} samples of {row['num_puzzles']} puzzles are impossible"
    if samples and row["success_rate"] > 100 * (samples - failed) / samples + half_unit(row["success_rate"]):
        return f"SR {row['success_rate']:.1f} is impossible with {failed} of {samples} answers missing or undecodable"
    return None


def _rate_is_a_share(row: Row) -> str | None:
    """SR times the number of samples is a whole number of solved ones."""
    samples = row.get("num_samples")
    if not samples:
        return None
    solved = row["success_rate"] / 100 * samples
    if abs(solved - round(solved)) <= half_unit(row["success_rate"]) / 100 * samples:
        return None
    return f"SR {row['success_rate']} of {samples} samples is no whole number of them"


def _interval_holds_the_rate(row: Row) -> str | None:
    if row["success_rate_ci95"] is None:
        return "measured, but has no interval" if row["source"] == "measured" else None
    return _outside(row, "success_rate")


def _outside(row: Row, column: str) -> str | None:
    """Whether a rate lies outside its interval, if it has one."""
    known = cast(Mapping[str, Any], row)
    value, bounds = known[column], known.get(f"{column}_ci95")
    if bounds is None or bounds[0] - half_unit(bounds[0]) <= value <= bounds[1] + half_unit(bounds[1]):
        return None
    return f"{_TITLES[column]} {value:.1f} lies outside its interval {bounds[0]:.1f} to {bounds[1]:.1f}"


def _interval_fits_the_count(row: Row) -> str | None:
    """Wilson's interval on some number of independent samples: at most the samples, at least the puzzles."""
    bounds, puzzles = row["success_rate_ci95"], row["num_puzzles"]
    if bounds is None or puzzles is None:
        return None
    width = bounds[1] - bounds[0]
    slack = half_unit(bounds[0]) + half_unit(bounds[1])
    rate = row["success_rate"] / 100
    low, high = wilson(rate, puzzles)
    if width > 100 * (high - low) + slack:
        return f"the interval is wider than {puzzles} puzzles give"
    if samples := row.get("num_samples"):
        low, high = wilson(rate, samples)
        if width < 100 * (high - low) - slack:
            return f"the interval is narrower than {samples} samples allow"
    return None


def _few(row: Row) -> str | None:
    puzzles = row["num_puzzles"]
    return f"{puzzles} puzzles are few" if puzzles is not None and puzzles < FEW else None


def _failed_answers(row: Row) -> str | None:
    missing, undecodable = row.get("num_missing", 0), row.get("num_undecodable", 0)
    if not missing + undecodable:
        return None
    return f"{missing} missing and {undecodable} undecodable answers count as not solved"


def _mixtures(rows: Sequence[Row]) -> list[tuple[int, str]]:
    """Measured rows of one task that another verifier judged, or that saw other puzzles, than most."""
    found = []
    for task in dict.fromkeys(row["task"] for row in rows):
        measured = [i for i, row in enumerate(rows) if row["task"] == task and row["source"] == "measured"]
        verifiers = {i: rows[i].get("verifier", "unknown") for i in measured}
        found += _unlike(verifiers, "the verifier differs from that of other measured rows")
        puzzles = {i: rows[i].get("test_set", f"unknown ({rows[i]['num_puzzles']} puzzles)") for i in measured}
        found += _unlike(puzzles, "the test set differs from that of other measured rows")
        names = Counter(rows[i]["system"] for i in measured)
        found += [(i, "measured more than once") for i in measured if names[rows[i]["system"]] > 1]
    return found


def _unlike(values: dict[int, str], text: str) -> list[tuple[int, str]]:
    """Every row, if they are not all alike: which of them is the odd one nobody can tell."""
    return [(i, f"{text}: {value}") for i, value in values.items()] if len(set(values.values())) > 1 else []


def _average_follows(row: VbvrRow) -> str | None:
    """Of a whole set, the average is the categories' weighted by their tasks."""
    average = weighted_average(row["categories"])
    if average is None or row["num_videos"] not in (None, NUM_VIDEOS):
        return None
    room = max(half_unit(row["categories"][name]) for name in CATEGORIES) + half_unit(row["average"])
    if abs(average - row["average"]) <= room:
        return None
    weights = " + ".join(map(str, CATEGORIES.values()))
    return f"Avg {row['average']:.1f} does not follow from its categories, which give {average:.1f} ({weights} tasks)"


def _average_interval(row: VbvrRow) -> str | None:
    bounds = row["average_ci95"]
    if bounds is None or bounds[0] - _NOISE <= row["average"] <= bounds[1] + _NOISE:
        return None
    return f"Avg {row['average']:.1f} lies outside its interval {bounds[0]:.1f} to {bounds[1]:.1f}"


def _whole_set(row: VbvrRow) -> str | None:
    parts = []
    if row["num_videos"] is not None and row["num_videos"] != NUM_VIDEOS:
        parts.append(f"only {row['num_videos']} videos of {row['num_tasks']} tasks: the whole set has {NUM_VIDEOS}")
    if row.get("num_missing"):
        parts.append(f"{row['num_missing']} videos without a score count as 0")
    return "; ".join(parts) or None


def _unknown_categories(row: VbvrRow) -> str | None:
    others = sorted(row["categories"].keys() - CATEGORIES.keys())
    return f"the evaluator has other categories than the paper: {', '.join(others)}" if others else None
