"""Small charts as inline SVG: a line chart over steps, and a dot with its interval per system.

Drawn by hand rather than by matplotlib because a report must follow the reader's light or dark mode (colours are CSS
variables of `vrlvr.evaluation.page`), scale to a phone and stay small. Coordinates are pixels of a 260-wide canvas.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

Point = tuple[float, float]

WIDTH, HEIGHT = 260, 150
LEFT, RIGHT, TOP, BOTTOM = 40, 10, 8, 22
MAX_POINTS = 300
NUM_COLOURS = 8


@dataclass(frozen=True)
class Series:
    """A named curve. sparse: rare, exact measurements (validation), drawn as dots joined by a line, never smoothed."""

    name: str
    points: Sequence[Point]
    colour: int = 0
    sparse: bool = False


@dataclass(frozen=True)
class Estimate:
    """A rate in percent with its 95 % interval."""

    name: str
    rate: float
    interval: tuple[float, float] | None
    colour: int = 0


def value_range(series: Sequence[Series]) -> tuple[float, float]:
    """Lowest and highest value to show. A hundredth of the points at either end may leave the frame, so that single
    outliers do not flatten the rest; the moving averages always fit.
    """
    drawn = [(thin(one.points), one.sparse) for one in series]
    raw = sorted(y for points, _ in drawn for _, y in points)
    spared = len(raw) // 100
    always = [y for points, sparse in drawn for _, y in (points if sparse else smooth(points))]
    shown = raw[spared : len(raw) - spared] + always
    return min(shown), max(shown)


def line_chart(title: str, series: Sequence[Series], low: float, high: float, percent: bool = False) -> str:
    """Curves over steps in one frame, its y axis from `low` or just below to `high` or just above.

    Noisy curves are faint with a moving average on top. percent: values are fractions in [0, 1], labelled as percent.
    """
    drawn = [(one, thin(one.points), smooth(thin(one.points))) for one in series]
    y_ticks = ticks(low, high)
    xs = [x for _, points, _ in drawn for x, _ in points]
    x_ticks = [tick for tick in ticks(min(xs), max(xs)) if min(xs) <= tick <= max(xs)]
    scale = _Scale(min(xs), max(xs), y_ticks[0], y_ticks[-1])
    axes = [
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{scale.y(tick):.1f}" y2="{scale.y(tick):.1f}"/>'
        f'<text class="tick" text-anchor="end" x="{LEFT - 5}" y="{scale.y(tick) + 3.5:.1f}">'
        f"{_label(tick, percent)}</text>"
        for tick in y_ticks
    ] + [
        f'<text class="tick" text-anchor="middle" x="{scale.x(tick):.1f}" y="{HEIGHT - 6}">{_label(tick, False)}</text>'
        for tick in x_ticks
    ]
    curves = "".join(_curve(one, points, average, scale) for one, points, average in drawn)
    clipped = (  # an inner svg clips what it holds, which needs no id
        f'<svg x="{LEFT}" y="{TOP - 4}" width="{WIDTH - LEFT - RIGHT + 4}" height="{HEIGHT - TOP - BOTTOM + 8}" '
        f'viewBox="{LEFT} {TOP - 4} {WIDTH - LEFT - RIGHT + 4} {HEIGHT - TOP - BOTTOM + 8}">{curves}</svg>'
    )
    return _svg(title, HEIGHT, "".join(axes) + clipped)


def interval_chart(title: str, estimates: Sequence[Estimate], high: float) -> str:
    """One line per estimate: its name, a dot at its rate, its interval as a bar; the axis is 0 to `high` percent."""
    left, right, row = 40, 46, 22
    height = row * len(estimates) + 22

    def x(rate: float) -> float:
        return left + rate / high * (WIDTH - left - right)

    parts = [
        f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="2" y2="{height - 18}"/>'
        f'<text class="tick" text-anchor="middle" x="{x(tick):.1f}" y="{height - 5}">{_label(tick, False)}</text>'
        for tick in ticks(0, high, wanted=5)
        if tick <= high
    ]
    for i, one in enumerate(estimates):
        y = row * i + row / 2 + 2
        parts.append(f'<text class="name" x="0" y="{y + 4:.1f}">{escape(one.name)}</text>')
        if one.interval is not None:
            start, end = map(x, one.interval)
            parts.append(
                f'<line class="whisker c{one.colour}" x1="{start:.1f}" x2="{end:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
            )
        parts.append(f'<circle class="dot c{one.colour}" cx="{x(one.rate):.1f}" cy="{y:.1f}" r="4.5"/>')
        parts.append(f'<text class="value" text-anchor="end" x="{WIDTH}" y="{y + 4:.1f}">{one.rate:.1f} %</text>')
    return _svg(title, height, "".join(parts))


def thin(points: Sequence[Point], limit: int = MAX_POINTS) -> list[Point]:
    """At most `limit` points: means over runs of neighbours."""
    run = -(-len(points) // limit)
    if run <= 1:
        return list(points)
    return [_mean(points[i : i + run]) for i in range(0, len(points), run)]


def smooth(points: Sequence[Point]) -> list[Point]:
    """A moving average over the neighbours within a thirtieth of the points on either side."""
    reach = len(points) // 30
    return [(x, _mean(points[max(0, i - reach) : i + reach + 1])[1]) for i, (x, _) in enumerate(points)]


def ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) from at or below low to at or above high.

    A range of no width is widened to reach 0.
    """
    if high <= low:
        low, high = sorted((0.0, low or 1.0))
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


@dataclass(frozen=True)
class _Scale:
    """From data to pixels of a line chart."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        share = (value - self.x_low) / (self.x_high - self.x_low) if self.x_high > self.x_low else 0.5
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return TOP + (self.y_high - value) / (self.y_high - self.y_low) * (HEIGHT - TOP - BOTTOM)


def _curve(series: Series, points: Sequence[Point], average: Sequence[Point], scale: _Scale) -> str:
    colour = f"c{series.colour % NUM_COLOURS}"
    if series.sparse or len(points) == 1:
        dots = "".join(
            f'<circle class="dot {colour}" cx="{scale.x(x):.1f}" cy="{scale.y(y):.1f}" r="2.5"/>' for x, y in points
        )
        return _path(points, f"line {colour}", scale) + dots
    return _path(points, f"faint {colour}", scale) + _path(average, f"line {colour}", scale)


def _path(points: Sequence[Point], css: str, scale: _Scale) -> str:
    where = " ".join(f"{scale.x(x):.1f},{scale.y(y):.1f}" for x, y in points)
    return f'<polyline class="{css}" points="{where}"/>'


def _mean(points: Sequence[Point]) -> Point:
    return sum(x for x, _ in points) / len(points), sum(y for _, y in points) / len(points)


def _label(value: float, percent: bool) -> str:
    return f"{100 * value:.4g} %" if percent else f"{value:.4g}"


def _svg(title: str, height: int, content: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">{content}</svg>'
