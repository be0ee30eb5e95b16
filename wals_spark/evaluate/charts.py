"""Charts as HTML that scales with the page: no script, no outside resource, no text inside a stretched picture.

Lines are drawn in a stretched SVG without text; labels and points are HTML placed in per cent, so they
keep their size on a narrow screen. Everything that comes from data is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape


@dataclass(frozen=True)
class SeriesPoint:
    """A point with an optional interval."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


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


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers inside [low, high], about so many."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low] if math.isfinite(low) else []
    raw = (high - low) / max(1, about)
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * size for factor in (1, 2, 2.5, 5, 10) if factor * size >= 0.8 * raw)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def format_number(value: float) -> str:
    """A number in few characters, with a true minus."""
    size = abs(value)
    if size >= 1e6:
        text = f"{size / 1e6:,.4g} M" if size < 1e10 else f"{size:.3g}".replace("e+", "e")
    else:
        text = f"{size:,.0f}" if size >= 1000 else f"{size:.4g}"
    return f"−{text}" if value < 0 else text


def _scale(low: float, high: float, margin: float = 0.06) -> tuple[float, float]:
    span = high - low
    if span <= 0:
        span = abs(low) or 1.0
    return low - margin * span, high + margin * span


def line_chart(
    lines: Sequence[Series], *, x_label: str, y_label: str, y_log: bool = False, late: bool = False
) -> Markup:
    """Lines over x with their intervals as bands, a point per measurement and a legend.

    With ``y_log`` y must be positive; values that are no numbers are left out. With ``late`` the scale is made
    for all points but the first of each line; what lies above is cut off, and the legend says where it began.
    """

    def shown(y: float) -> float:
        return math.log10(y) if y_log else y

    drawn = [
        Series(line.name, [p for p in line.points if math.isfinite(p.y) and (not y_log or p.y > 0)]) for line in lines
    ]
    drawn = [line for line in drawn if line.points]
    if not drawn:
        return Markup('<p class="quiet">Nothing was measured.</p>')
    xs = [p.x for line in drawn for p in line.points]
    ys = [shown(y) for line in drawn for p in line.points for y in (p.y, p.low, p.high) if y is not None]
    ys = [y for y in ys if math.isfinite(y)]
    x_low, x_high = min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1
    y_low, y_high = _scale(min(ys), max(ys))
    if late:
        later = [shown(p.high if p.high is not None else p.y) for line in drawn for p in line.points[1:]]
        y_high = _scale(min(ys), max(later, default=max(ys)))[1]

    def left(x: float) -> float:
        return 100 * (x - x_low) / (x_high - x_low)

    def top(y: float) -> float:
        return 100 * (y_high - shown(y)) / (y_high - y_low)

    x_ticks = [x for x in ticks(x_low, x_high) if x == round(x)]  # steps are whole
    if y_log:
        y_ticks = [
            v for e in range(math.floor(y_low), math.ceil(y_high) + 1) for v in (10.0**e, 2 * 10.0**e, 5 * 10.0**e)
        ]
        y_ticks = [v for v in y_ticks if y_low <= math.log10(v) <= y_high]
        if len(y_ticks) < 2:
            y_ticks = [10**v for v in ticks(y_low, y_high, 4)]
    else:
        y_ticks = ticks(y_low, y_high)
    parts = ['<figure class="line-chart"><div class="y-label">', escape(y_label), '</div><div class="frame">']
    parts += [f'<span class="y-tick" style="top:{top(y):.2f}%">{format_number(y)}</span>' for y in y_ticks]
    parts.append('<svg viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true">')
    parts += [f'<line class="grid" x1="0" x2="100" y1="{top(y):.3f}" y2="{top(y):.3f}"/>' for y in y_ticks]
    for index, line in enumerate(drawn):
        banded = [p for p in line.points if p.low is not None and p.high is not None and math.isfinite(p.low + p.high)]
        if len(banded) > 1:
            upper = [f"{left(p.x):.3f},{top(p.high or 0):.3f}" for p in banded]
            lower = [f"{left(p.x):.3f},{top(p.low or 0):.3f}" for p in reversed(banded)]
            parts.append(f'<polygon class="band s{index % 6}" points="{" ".join(upper + lower)}"/>')
        path = " ".join(f"{left(p.x):.3f},{top(p.y):.3f}" for p in line.points)
        parts.append(f'<polyline class="curve s{index % 6}" points="{path}"/>')
    parts.append("</svg>")
    for index, line in enumerate(drawn):
        for p in line.points:
            if shown(p.y) > y_high:
                continue
            interval = f" [{p.low:.4g}, {p.high:.4g}]" if p.low is not None and p.high is not None else ""
            title = escape(f"{line.name}, {x_label} {format_number(p.x)}: {p.y:.5g}{interval}")
            parts.append(
                f'<i class="dot s{index % 6}" style="left:{left(p.x):.2f}%;top:{top(p.y):.2f}%" title="{title}"></i>'
            )
    parts += [f'<span class="x-tick" style="left:{left(x):.2f}%">{format_number(x)}</span>' for x in x_ticks]
    parts += ['</div><div class="x-label">', escape(x_label), "</div>"]
    if len(drawn) > 1:
        parts.append('<figcaption class="legend">')
        for index, line in enumerate(drawn):
            last = format_number(line.points[-1].y)
            if late:
                last = f"{format_number(line.points[0].y)} → {last}"
            parts.append(f'<span><i class="key s{index % 6}"></i>{escape(line.name)} <b>{escape(last)}</b></span>')
        parts.append("</figcaption>")
    parts.append("</figure>")
    return Markup("".join(str(part) for part in parts))


def interval_plot(rows: Sequence[IntervalRow], *, zero: bool, scale_label: str) -> Markup:
    """A row per number: label, its interval on a common scale, the number in words.

    Parameters
    ----------
    zero : whether the scale holds 0, marked by a line
    scale_label : says what the scale is
    """
    rows = [row for row in rows if math.isfinite(row.value)]
    if not rows:
        return Markup('<p class="quiet">Nothing was measured.</p>')
    ends = [end for row in rows for end in (row.value, row.low, row.high) if math.isfinite(end)]
    low, high = _scale(min([*ends, *([0.0] if zero else [])]), max([*ends, *([0.0] if zero else [])]))

    def left(x: float) -> float:
        return 100 * (x - low) / (high - low)

    scale = ticks(low, high, 4)
    rule = "".join(f'<i class="rule" style="left:{left(x):.2f}%"></i>' for x in scale)
    zero_line = f'<i class="zero" style="left:{left(0):.2f}%"></i>' if zero else ""
    parts = ['<div class="interval-plot" role="table">']
    for row in rows:
        verdict = row.verdict or "plain"
        bar = ""
        if math.isfinite(row.low) and math.isfinite(row.high):
            bar = f'<i class="bar" style="left:{left(row.low):.2f}%;width:{left(row.high) - left(row.low):.2f}%"></i>'
        parts.append(
            f'<div class="row {verdict}" role="row"><div class="name" role="cell">{escape(row.label)}'
            f"{f' <small>{escape(row.note)}</small>' if row.note else ''}</div>"
            f'<div class="track" role="cell" aria-hidden="true">{rule}{zero_line}{bar}'
            f'<i class="mark" style="left:{left(row.value):.2f}%"></i></div>'
            f'<div class="text" role="cell">{escape(row.text)}</div></div>'
        )
    labels = "".join(f'<span style="left:{left(x):.2f}%">{format_number(x)}</span>' for x in scale)
    parts.append(
        f'<div class="row axis" aria-hidden="true"><div class="name">{escape(scale_label)}</div>'
        f'<div class="track">{labels}</div><div class="text"></div></div></div>'
    )
    return Markup("".join(parts))


def bar_chart(rows: Sequence[tuple[str, float, str]]) -> Markup:
    """Horizontal bars from 0: (label, value, text)."""
    largest = max((value for _, value, _ in rows), default=0.0) or 1.0
    parts = ['<div class="bars">']
    for label, value, text in rows:
        parts.append(
            f'<div class="name">{escape(label)}</div><div class="track"><i style="width:{100 * value / largest:.2f}%">'
            f'</i></div><div class="text">{escape(text)}</div>'
        )
    parts.append("</div>")
    return Markup("".join(parts))
