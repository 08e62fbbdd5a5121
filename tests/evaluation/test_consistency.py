"""The audit of results: what it doubts, and what it leaves alone."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vrlvr.evaluation.consistency import audit, audit_vbvr, half_unit
from vrlvr.evaluation.metrics import Row, summarise, wilson
from vrlvr.evaluation.published import published_rows, published_vbvr_rows
from vrlvr.evaluation.vbvr_rows import CATEGORIES, NUM_TASKS, NUM_VIDEOS, TASK, VbvrRow
from vrlvr.puzzles.verdict import Verdict, f1


def row(**changes: Any) -> Row:
    bounds = [100 * bound for bound in wilson(0.4, 300)]
    values: dict[str, Any] = {
        "system": "rl",
        "task": "maze",
        "precision": 60.0,
        "recall": 50.0,
        "f1": 100 * f1(0.6, 0.5),
        "success_rate": 40.0,
        "success_rate_ci95": bounds,
        "num_puzzles": 300,
        "source": "measured",
        "num_samples": 300,
        "num_missing": 0,
        "num_undecodable": 0,
        "date": "2026-11-23",
        "verifier": "v1",
        "test_set": "t1",
    }
    return values | changes  # type: ignore[return-value]


def texts(*rows: Row) -> list[str]:
    return [flag.text for flags in audit(rows) for flag in flags]


def test_the_published_f1_that_do_not_follow() -> None:
    rows = published_rows()
    doubted = {
        (row["system"], row["task"]): flag.text
        for row, flags in zip(rows, audit(rows), strict=True)
        for flag in flags
        if flag.column == "f1"
    }
    assert set(doubted) == {
        ("Sora 2", "flowfree"),
        ("Sora 2", "sokoban"),
        ("Veo 3.1", "flowfree"),
        ("HunyuanVideo", "sokoban"),
        ("Wan2.2-TI2V-5B", "flowfree"),
        ("Wan2.2-TI2V-5B", "sokoban"),
        ("VideoRLVR", "sokoban"),
    }
    # Only the last lies above what its precision and recall give, which no mean of F1 over videos can do.
    higher = [where for where, text in doubted.items() if "no mean over videos is higher" in text]
    assert higher == [("VideoRLVR", "sokoban")]
    assert "F1 29.4" in doubted["VideoRLVR", "sokoban"]
    assert "18.3" in doubted["VideoRLVR", "sokoban"]


def test_published_success_above_recall_is_remarked() -> None:
    rows = published_rows()
    above = [
        (row["system"], row["task"])
        for row, flags in zip(rows, audit(rows), strict=True)
        if any("above recall" in flag.text for flag in flags)
    ]
    assert above == [("Kling V3", "maze"), ("Veo 3.1", "maze")]


@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)).filter(lambda pair: sum(pair) > 1e-6), min_size=1, max_size=8)
)
def test_a_mean_of_f1_never_exceeds_the_f1_of_the_means(pairs: list[tuple[float, float]]) -> None:
    means = [sum(values) / len(pairs) for values in zip(*pairs, strict=True)]
    assert sum(f1(*pair) for pair in pairs) / len(pairs) <= f1(*means) + 1e-12


@given(st.floats(0, 100), st.floats(0, 100))
def test_rounding_to_one_decimal_is_never_doubted(precision: float, recall: float) -> None:
    printed = row(
        precision=round(precision, 1),
        recall=round(recall, 1),
        f1=round(f1(precision, recall), 1),
        source="published",
        success_rate=0.0,
        success_rate_ci95=None,
        num_puzzles=None,
    )
    assert not [flag for flag in audit([printed])[0] if flag.column == "f1"]


@settings(max_examples=30)
@given(st.lists(st.lists(st.booleans(), min_size=2, max_size=3), min_size=100, max_size=120))
def test_what_we_summarise_ourselves_is_never_doubted(solved: list[list[bool]]) -> None:
    verdicts = [
        [Verdict(won, {}, None, None, 1.0 if won else 0.3, 1.0 if won else 0.2) for won in puzzle] for puzzle in solved
    ]
    ours = summarise("rl", "maze", verdicts)
    ours["num_samples"] = sum(map(len, solved))
    assert texts(ours) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"f1": 54.7}, "F1 54.7 does not follow"),
        ({"f1": 54.5}, None),  # one decimal stands for 54.45 to 54.55
        ({"precision": 60.001, "recall": 50.001, "f1": 54.53}, "F1 54.5 does not follow"),
        ({"success_rate": 55.0, "success_rate_ci95": None}, "no interval"),
        ({"success_rate": 60.0, "success_rate_ci95": [54.4, 65.4]}, "SR 60.0 above recall 50.0"),
        ({"success_rate": 40.123456}, "is no whole number"),
        ({"recall_ci95": [30.0, 35.0]}, "recall 50.0 lies outside its interval 30.0 to 35.0"),
        ({"success_rate_ci95": [30.0, 35.0]}, "lies outside its interval 30.0 to 35.0"),
        ({"success_rate_ci95": [39.0, 41.0]}, "narrower than 300 samples allow"),
        ({"success_rate_ci95": [20.0, 60.0]}, "wider than 300 puzzles give"),
        ({"num_samples": 1200, "success_rate_ci95": [37.3, 42.8]}, None),  # several noise seeds of a puzzle
        ({"num_puzzles": 30, "num_samples": 30, "success_rate_ci95": [24.6, 57.7]}, "30 puzzles are few"),
        ({"num_missing": 3, "num_undecodable": 1}, "3 missing and 1 undecodable answers count as not solved"),
        ({"num_missing": 301}, "301 missing or undecodable answers of 300 are impossible"),
        ({"num_missing": 200}, "SR 40.0 is impossible with 200 of 300"),
        ({"num_samples": 299}, "299 samples of 300 puzzles are impossible"),
    ],
)
def test_one_row(change: dict[str, Any], told: str | None) -> None:
    assert texts(row()) == []
    found = texts(row(**change))
    assert (found == []) if told is None else any(told in text for text in found), found


def test_rows_that_are_not_alike() -> None:
    assert texts(row(), row(system="sft")) == []
    assert texts(row(), row(system="sft", task="sokoban", verifier="v2")) == [], "tasks have verifiers of their own"
    assert texts(row(), row(system="sft", verifier="v2")) == [
        "the verifier differs from that of other measured rows: v1",
        "the verifier differs from that of other measured rows: v2",
    ]
    assert len(texts(row(), row(system="sft", test_set="t2"))) == 2
    assert texts(row(), row(date="2026-11-24")) == ["measured more than once"] * 2


def test_half_units() -> None:
    assert half_unit(16.5) == pytest.approx(0.05, abs=1e-5)
    assert half_unit(16.0) == pytest.approx(0.05, abs=1e-5)
    assert half_unit(40) == pytest.approx(0.05, abs=1e-5)
    assert half_unit(40.25) == pytest.approx(0.005, abs=1e-5)
    assert half_unit(100 / 3) < 1e-5


def vbvr(**changes: Any) -> VbvrRow:
    values: dict[str, Any] = {
        "system": "ours",
        "task": TASK,
        "average": 50.0,
        "average_ci95": [45.0, 55.0],
        "categories": dict.fromkeys(CATEGORIES, 50.0),
        "num_tasks": NUM_TASKS,
        "num_videos": NUM_VIDEOS,
        "source": "measured",
        "num_missing": 0,
        "scoring": "task_specific only",
        "evaluator": "commit abc",
        "date": "2026-11-23",
    }
    return values | changes  # type: ignore[return-value]


def test_the_published_average_that_does_not_follow() -> None:
    rows = published_vbvr_rows()
    doubted = {row["system"]: flags for row, flags in zip(rows, audit_vbvr(rows), strict=True) if flags}
    assert list(doubted) == ["VideoRLVR"]
    (flag,) = doubted["VideoRLVR"]
    assert flag.column == "average"
    assert "Avg 60.2 does not follow from its categories, which give 60.4" in flag.text


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"average": 51.0}, "Avg 51.0 does not follow"),
        ({"average": 50.1}, None),  # all six are printed with one decimal
        ({"average": 50.0, "average_ci95": [51.0, 55.0]}, "outside its interval"),
        ({"num_videos": 10, "num_tasks": 2, "average": 51.0}, "only 10 videos of 2 tasks"),
        ({"num_missing": 7}, "7 videos without a score count as 0"),
        ({"categories": {"Physics": 50.0}}, "other categories than the paper: Physics"),
    ],
)
def test_one_vbvr_row(change: dict[str, Any], told: str | None) -> None:
    assert audit_vbvr([vbvr()]) == [[]]
    found = [flag.text for flag in audit_vbvr([vbvr(**change)])[0]]
    assert (found == []) if told is None else any(told in text for text in found), found


def test_vbvr_rows_that_are_not_alike() -> None:
    flags = audit_vbvr([vbvr(), vbvr(evaluator="commit def"), vbvr(source="published")])
    assert [len(found) for found in flags] == [1, 1, 0]
    assert "its evaluator differs" in flags[1][0].text
