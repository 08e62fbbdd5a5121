"""Charts: round ticks, honest averages, and curves drawn where their values are."""

import math
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vrlvr.evaluation.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    MAX_POINTS,
    RIGHT,
    TOP,
    WIDTH,
    Estimate,
    Series,
    interval_chart,
    line_chart,
    smooth,
    thin,
    ticks,
    value_range,
)


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6))
def test_ticks_are_round_few_and_enclose_the_range(low: float, width: float) -> None:
    found = ticks(low, low + width)
    step = found[1] - found[0]
    assert found[0] <= low + 1e-6 * step
    assert found[-1] >= low + width - 1e-6 * step
    assert 2 <= len(found) <= 7
    mantissa = step / 10 ** math.floor(math.log10(step) + 1e-9)
    assert min(abs(mantissa - factor) for factor in (1, 2, 5, 10)) < 1e-6 * (1 + abs(low) / step)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 0.83, [0, 0.5, 1.0]), (0, 80, [0, 20, 40, 60, 80]), (0, 0, [0, 0.5, 1]), (-3, -3, [-3, -2, -1, 0])],
)
def test_ticks_of_common_ranges(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def test_thinning_keeps_the_mean_and_the_order() -> None:
    points = [(float(i), float(i % 7)) for i in range(6000)]
    thinned = thin(points)
    assert len(thinned) == MAX_POINTS
    assert sum(y for _, y in thinned) / MAX_POINTS == pytest.approx(sum(y for _, y in points) / 6000)
    assert thinned == sorted(thinned)
    assert thin(points[:10]) == points[:10]


def test_smoothing_averages_neighbours() -> None:
    points = [(float(i), float(i % 2)) for i in range(90)]
    assert all(0.4 <= y <= 0.6 for _, y in smooth(points)[3:-3])
    assert smooth(points[:20]) == points[:20]  # too few to average


def test_a_single_outlier_does_not_flatten_the_rest_but_averages_stay_inside() -> None:
    noisy = [(float(i), 1.0 + i % 3) for i in range(200)]
    noisy[100] = (100.0, 1000.0)
    low, high = value_range([Series("loss", noisy)])
    assert low == 1
    assert 3 < high < 100
    assert value_range([Series("val", [(0, 1.0), (1, 1000.0)], sparse=True)]) == (1, 1000)


def _elements(svg: str, name: str) -> list[ElementTree.Element]:
    return list(ElementTree.fromstring(svg).iter(name))


def test_a_curve_runs_from_corner_to_corner() -> None:
    svg = line_chart("t", [Series("a", [(0, 0.0), (10, 1.0)], colour=2, sparse=True)], 0, 1)
    (curve,) = _elements(svg, "polyline")
    start, end = (tuple(map(float, point.split(","))) for point in curve.attrib["points"].split())
    assert start == pytest.approx((LEFT, HEIGHT - BOTTOM))
    assert end == pytest.approx((WIDTH - RIGHT, TOP))
    assert curve.attrib["class"] == "line c2"
    assert len(_elements(svg, "circle")) == 2


def test_a_noisy_curve_is_faint_under_its_average_and_a_single_point_is_a_dot() -> None:
    noisy = line_chart("t", [Series("a", [(float(i), float(i % 2)) for i in range(60)])], 0, 1)
    assert [curve.attrib["class"] for curve in _elements(noisy, "polyline")] == ["faint c0", "line c0"]
    assert len(_elements(line_chart("t", [Series("a", [(5, 0.5)])], 0.5, 0.5), "circle")) == 1


def test_percent_labels() -> None:
    labels = [
        text.text for text in _elements(line_chart("t", [Series("a", [(0, 0.1), (4, 0.4)])], 0, 0.4, True), "text")
    ]
    assert labels[:5] == ["0 %", "10 %", "20 %", "30 %", "40 %"]
    assert labels[5:] == ["0", "1", "2", "3", "4"]


def test_an_interval_lies_around_its_dot_and_text_is_escaped() -> None:
    svg = interval_chart("<&>", [Estimate("<b>", 50.0, (40.0, 60.0)), Estimate("published", 25.0, None)], 100)
    (whisker,) = (line for line in _elements(svg, "line") if "whisker" in line.attrib["class"])
    first, second = (float(circle.attrib["cx"]) for circle in _elements(svg, "circle"))
    assert float(whisker.attrib["x1"]) < first < float(whisker.attrib["x2"])
    assert second < first
    assert "<b>" not in svg
    assert ElementTree.fromstring(svg).attrib["aria-label"] == "<&>"
