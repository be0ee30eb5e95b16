"""Charts as HTML that scales with the page: no script, no outside resource, no text inside a stretched picture.

This module computes positions in per cent of the frame; ``templates/charts.html.j2`` draws them. Lines are drawn in a
stretched SVG without text; labels and points are HTML, so they keep their size on a narrow screen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from wals_spark.evaluate.number_format import format_number

COLOURS = 6


@dataclass(frozen=True)
class SeriesPoint:
    """A point with an optional interval."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None

    @property
    def has_interval(self) -> bool:
        """Whether both bounds are given."""
        return self.low is not None and self.high is not None


@dataclass(frozen=True)
class Series:
    """A named line; `points` by rising x."""

    name: str
    points: Sequence[SeriesPoint]


@dataclass(frozen=True)
class IntervalRow:
    """A row of an interval plot.

    Attributes
    ----------
    label, note : str
        Left of the plot, the note in small print.
    value, low, high : float
    text : str
        Right of the plot.
    verdict : {"better", "worse", "unclear", "control", ""}
        Colours the mark.
    """

    label: str
    value: float
    low: float
    high: float
    text: str
    verdict: str = ""
    note: str = ""


@dataclass(frozen=True)
class Tick:
    """A label of an axis at a position in per cent."""

    position: float
    label: str


@dataclass(frozen=True)
class Dot:
    """A measurement: per cent from the left and from the top, and what it says when pointed at."""

    left: float
    top: float
    title: str


@dataclass(frozen=True)
class DrawnLine:
    """A line of a chart.

    Attributes
    ----------
    name, summary : str
        The legend: the name, and the last value.
    colour : int
    path, band : sequence of (left, top)
        In per cent; the band is the outline of the intervals, empty where there are fewer than two.
    dots : sequence of Dot
        Those inside the frame.
    """

    name: str
    summary: str
    colour: int
    path: Sequence[tuple[float, float]]
    band: Sequence[tuple[float, float]]
    dots: Sequence[Dot]


@dataclass(frozen=True)
class LineChart:
    """Labels, ticks and lines of a line chart; positions in per cent."""

    x_label: str
    y_label: str
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    lines: Sequence[DrawnLine]


@dataclass(frozen=True)
class DrawnInterval:
    """A row of an interval plot: where its mark stands, and (left, width) of its bar where it has an interval."""

    row: IntervalRow
    mark: float
    bar: tuple[float, float] | None


@dataclass(frozen=True)
class IntervalPlot:
    """Rows on a common scale; positions in per cent, `zero` None where the scale does not mark it."""

    scale_label: str
    ticks: Sequence[Tick]
    zero: float | None
    rows: Sequence[DrawnInterval]


@dataclass(frozen=True)
class Bar:
    """A horizontal bar; its width in per cent of the longest."""

    label: str
    width: float
    text: str


@dataclass(frozen=True)
class Axis:
    """A scale from `low` to `high`, both logarithms to base 10 with `log`."""

    low: float
    high: float
    log: bool = False

    def scaled(self, value: float) -> float:
        """The value on the scale."""
        return math.log10(value) if self.log else value

    def from_low(self, value: float) -> float:
        """Per cent of the way from `low` to `high`."""
        return 100 * (self.scaled(value) - self.low) / (self.high - self.low)

    def from_high(self, value: float) -> float:
        """Per cent of the way from `high` to `low`."""
        return 100 * (self.high - self.scaled(value)) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Round numbers inside; on a logarithmic scale 1, 2, 5 times powers of ten where at least two lie inside."""
        if not self.log:
            return ticks(self.low, self.high)
        exponents = range(math.floor(self.low), math.ceil(self.high) + 1)
        found = [factor * 10.0**exponent for exponent in exponents for factor in (1, 2, 5)]
        found = [value for value in found if self.low <= math.log10(value) <= self.high]
        return found if len(found) >= 2 else [10**value for value in ticks(self.low, self.high, 4)]


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers inside [low, high], approximately `about` of them."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low] if math.isfinite(low) else []
    raw = (high - low) / max(1, about)
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * size for factor in (1, 2, 2.5, 5, 10) if factor * size >= 0.8 * raw)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _widened(low: float, high: float, margin: float = 0.06) -> tuple[float, float]:
    """The range with a margin on both sides."""
    span = high - low
    if span <= 0:
        span = abs(low) or 1.0
    return low - margin * span, high + margin * span


def line_chart(
    series: Sequence[Series], *, x_label: str, y_label: str, y_log: bool = False, late: bool = False
) -> LineChart | None:
    """Lines over x with their intervals as bands, a point per measurement and a legend.

    Parameters
    ----------
    series : sequence of Series
        Values that are no numbers are left out.
    x_label : str
    y_label : str
    y_log : bool
        A logarithmic y axis; values that are not positive are left out.
    late : bool
        The scale is made for all points but the first of each line; what lies above is cut off, and the legend says
        where it began.

    Returns
    -------
    LineChart or None
        None where there is nothing to draw.
    """
    drawn = [Series(line.name, [p for p in line.points if _can_be_drawn(p.y, y_log)]) for line in series]
    drawn = [line for line in drawn if line.points]
    if not drawn:
        return None
    x_axis, y_axis = _x_axis(drawn), _y_axis(drawn, y_log, late)
    return LineChart(
        x_label,
        y_label,
        # Steps are whole.
        [Tick(x_axis.from_low(x), format_number(x)) for x in x_axis.ticks() if x == round(x)],
        [Tick(y_axis.from_high(y), format_number(y)) for y in y_axis.ticks()],
        [_line(line, number % COLOURS, x_axis, y_axis, x_label, late) for number, line in enumerate(drawn)],
    )


def _can_be_drawn(y: float, y_log: bool) -> bool:
    return math.isfinite(y) and (not y_log or y > 0)


def _x_axis(series: Sequence[Series]) -> Axis:
    xs = [p.x for line in series for p in line.points]
    return Axis(min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1)


def _y_axis(series: Sequence[Series], y_log: bool, late: bool) -> Axis:
    scaled = Axis(0, 1, y_log).scaled
    found = [scaled(y) for line in series for p in line.points for y in (p.y, p.low, p.high) if y is not None]
    ys = [y for y in found if math.isfinite(y)]
    low, high = _widened(min(ys), max(ys))
    if late:
        later = [scaled(p.high if p.high is not None else p.y) for line in series for p in line.points[1:]]
        high = _widened(min(ys), max(later, default=max(ys)))[1]
    return Axis(low, high, y_log)


def _line(line: Series, colour: int, x_axis: Axis, y_axis: Axis, x_label: str, late: bool) -> DrawnLine:
    banded = [p for p in line.points if p.low is not None and p.high is not None and math.isfinite(p.low + p.high)]
    band = []
    if len(banded) > 1:
        band = [(x_axis.from_low(p.x), y_axis.from_high(p.high or 0)) for p in banded]
        band += [(x_axis.from_low(p.x), y_axis.from_high(p.low or 0)) for p in reversed(banded)]
    dots = [
        Dot(x_axis.from_low(p.x), y_axis.from_high(p.y), _title(line.name, p, x_label))
        for p in line.points
        if y_axis.scaled(p.y) <= y_axis.high
    ]
    summary = format_number(line.points[-1].y)
    if late:
        summary = f"{format_number(line.points[0].y)} → {summary}"
    path = [(x_axis.from_low(p.x), y_axis.from_high(p.y)) for p in line.points]
    return DrawnLine(line.name, summary, colour, path, band, dots)


def _title(name: str, p: SeriesPoint, x_label: str) -> str:
    interval = f" [{p.low:.4g}, {p.high:.4g}]" if p.has_interval else ""
    return f"{name}, {x_label} {format_number(p.x)}: {p.y:.5g}{interval}"


def interval_plot(rows: Sequence[IntervalRow], *, zero: bool, scale_label: str) -> IntervalPlot | None:
    """A row per number: label, its interval on a common scale, the number in words.

    Parameters
    ----------
    rows : sequence of IntervalRow
        Those whose value is no number are left out.
    zero : bool
        Whether the scale holds 0, marked by a line.
    scale_label : str
        Says what the scale is.

    Returns
    -------
    IntervalPlot or None
        None where there is nothing to draw.
    """
    rows = [row for row in rows if math.isfinite(row.value)]
    if not rows:
        return None
    ends = [end for row in rows for end in (row.value, row.low, row.high) if math.isfinite(end)]
    ends += [0.0] if zero else []
    axis = Axis(*_widened(min(ends), max(ends)))
    drawn = []
    for row in rows:
        bar = None
        if math.isfinite(row.low) and math.isfinite(row.high):
            bar = (axis.from_low(row.low), axis.from_low(row.high) - axis.from_low(row.low))
        drawn.append(DrawnInterval(row, axis.from_low(row.value), bar))
    return IntervalPlot(
        scale_label,
        [Tick(axis.from_low(x), format_number(x)) for x in ticks(axis.low, axis.high, 4)],
        axis.from_low(0) if zero else None,
        drawn,
    )


def bar_chart(rows: Sequence[tuple[str, float, str]]) -> list[Bar]:
    """Horizontal bars from 0: (label, value, text)."""
    largest = max((value for _, value, _ in rows), default=0.0) or 1.0
    return [Bar(label, 100 * value / largest, text) for label, value, text in rows]
