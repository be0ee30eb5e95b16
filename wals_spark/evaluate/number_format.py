"""Numbers, intervals and durations as text for people."""

from __future__ import annotations

import math

from wals_spark.evaluate.masked_lm import LOWER_IS_BETTER
from wals_spark.mlm.statistics import Interval

NEGLIGIBLE = 5e-4
"""The smallest difference that is called one: what three decimals show."""
VERDICT_WORDS = {"better": "better", "worse": "worse", "unclear": "not distinguishable"}


def verdict(difference: Interval, metric: str) -> str:
    """``better``, ``worse`` or ``unclear``: where the 95 % interval of after - before lies.

    A difference below `NEGLIGIBLE` is unclear, however narrow its interval.
    """
    if not difference.excludes_zero or abs(difference.value) < NEGLIGIBLE:
        return "unclear"
    return "better" if (difference.value < 0) == (metric in LOWER_IS_BETTER) else "worse"


def format_signed(value: float, digits: int = 3) -> str:
    """A difference with its sign, a true minus, and no ``-0.000``."""
    if not math.isfinite(value):
        return "–"
    text = f"{abs(value):.{digits}f}"
    if float(text) == 0:
        return text
    return f"{'−' if value < 0 else '+'}{text}"


def format_value(value: float, digits: int = 3) -> str:
    """A number with a true minus, or a dash where there is none."""
    if not math.isfinite(value):
        return "–"
    text = f"{abs(value):.{digits}f}"
    return f"−{text}" if value < 0 and float(text) != 0 else text


def format_bounds(interval: Interval, digits: int = 3, *, sign: bool = False) -> str:
    """The interval in brackets; empty where it has no bounds."""
    if not math.isfinite(interval.low):
        return ""
    show = format_signed if sign else format_value
    return f"[{show(interval.low, digits)}, {show(interval.high, digits)}]"


def format_estimate(interval: Interval) -> str:
    """A number and its interval: ``0.600 [0.500, 0.700]``."""
    return f"{format_value(interval.value)} {format_bounds(interval)}"


def format_difference(interval: Interval) -> str:
    """A difference and its interval, with signs: ``−0.300 [−0.400, −0.200]``."""
    return f"{format_signed(interval.value)} {format_bounds(interval, sign=True)}"


def format_number(value: float) -> str:
    """A number in few characters, with a true minus: ``1.235 M``, ``1,234``, ``−0.25``."""
    size = abs(value)
    if size >= 1e6:
        text = f"{size / 1e6:,.4g} M" if size < 1e10 else f"{size:.3g}".replace("e+", "e")
    else:
        text = f"{size:,.0f}" if size >= 1000 else f"{size:.4g}"
    return f"−{text}" if value < 0 else text


def format_duration(seconds: float) -> str:
    """A duration: ``3.2 s``, ``1 min 15 s``, ``2 h 01 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"
