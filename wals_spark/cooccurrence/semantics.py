"""What a co-occurrence is: window, weights, boundaries, and the fixed-point unit of the counts.

A pair at distance d weighs an integer number of *units*; the weighted count is ``units / unit``. Sums of
integers do not depend on their order, so any partitioning, retry or merge gives the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from wals_spark.config import CooccurrenceConfig
from wals_spark.errors import ConfigError, InputError

HEAD_ROOM_BITS = 32
"""An occurrence adds at most 2^32 units to a sum, which leaves 2^31 occurrences of one token."""
ROUNDED_UNIT_BITS = 24
"""Unit 2^24 where the exact one would leave less."""


@dataclass(frozen=True)
class Semantics:
    """All that determines a count, in the letters of docs/cooccurrence.md.

    Attributes
    ----------
    window_left, window_right : int
    distance_weighting, boundary, oov, diagonal : str
        See `wals_spark.config.CooccurrenceConfig`.
    subsample : float or None
    min_pair_count : float
    seed : int
        Of the subsampling; 0 where there is none.
    unit : int
        Units of a weight of 1.
    exact_unit : bool
        Whether every weight is a whole number of units; see `weight_error`.
    left, right : tuple of int
        Units at distance 1 .. window_left, 1 .. window_right.
    """

    window_left: int
    window_right: int
    distance_weighting: str
    boundary: str
    oov: str
    diagonal: str
    subsample: float | None
    min_pair_count: float
    seed: int
    unit: int
    exact_unit: bool
    left: tuple[int, ...] = field(repr=False)
    right: tuple[int, ...] = field(repr=False)

    @property
    def symmetric(self) -> bool:
        """Whether X(i, j) = X(j, i) for every pair."""
        return self.left == self.right

    @property
    def window(self) -> int:
        """The longer of the two sides."""
        return max(self.window_left, self.window_right)

    @property
    def self_units(self) -> int:
        """Units that each occurrence adds to the diagonal (Swivel's convention), else 0."""
        return self.unit if self.diagonal == "occurrences" else 0

    @property
    def units_per_occurrence(self) -> int:
        """The most units an occurrence can add to its row: sum of all weights of the window."""
        return sum(self.left) + sum(self.right) + self.self_units

    @property
    def weight_error(self) -> float:
        """Bound of the error of one pair's weight: 0, or 1 / (2 unit) with a rounded unit."""
        return 0.0 if self.exact_unit else 0.5 / self.unit

    @property
    def minimum_units(self) -> int:
        """`min_pair_count` in units, rounded up: pairs with fewer are dropped.

        The decimal number is meant, not the binary one nearest to it: with 1.1 a pair of exactly 1.1 stays.
        """
        return math.ceil(Fraction(repr(self.min_pair_count)) * self.unit)

    def facts(self) -> dict[str, Any]:
        """For the manifest: everything but the weights themselves, which follow from it."""
        facts = {name: value for name, value in asdict(self).items() if name not in ("left", "right")}
        return {**facts, "weight_error": self.weight_error}

    def weights(self) -> tuple[np.ndarray, np.ndarray]:
        """Units by distance, left and right: int64 arrays of shape (window + 1,), index 0 unused.

        Distances whose weight was rounded to 0 are cut off.
        """
        return _with_zero(self.left), _with_zero(self.right)

    def check_head_room(self, largest_count: int) -> None:
        """Refuse counts that an int64 might not hold.

        A row sum, and so any cell, is at most ``count of the token x units_per_occurrence``; the same
        holds for a column sum.

        Raises
        ------
        InputError
            The bound for the most frequent token reaches 2^63.
        """
        bound = largest_count * self.units_per_occurrence
        if bound >= 2**63:
            bits = max(1, self.unit.bit_length() - 1 - (bound.bit_length() - 62))
            raise InputError(
                f"counts could overflow: the most frequent token occurs {largest_count:,} times and each occurrence "
                f"adds up to {self.units_per_occurrence:,} units of 1/{self.unit:,}, {bound:.3g} in all; an int64 "
                f"holds 9.22e18. Set cooccurrence.unit_bits to {bits} or less, or count smaller batches"
            )


def semantics_of(config: CooccurrenceConfig, seed: int = 0) -> Semantics:
    """Resolve a configuration.

    The unit is the least common multiple that makes every weight whole: lcm(1 .. W) for 1/d, W for
    (W - d + 1)/W, 1 for no weighting. Where an occurrence would add 2^32 units or more (1/d with a
    window above 22), or where ``unit_bits`` says so, the unit is a power of two, and a weight is
    rounded to the nearest unit (ties to even).
    """
    sides = (config.window_left, config.window_right)
    exact = _exact_unit(config.distance_weighting, sides)
    if config.unit_bits is not None:
        unit = 1 << config.unit_bits
    else:
        total = sum(sum(_weights(config.distance_weighting, side, exact)) for side in sides)
        unit = exact if total < 1 << HEAD_ROOM_BITS else 1 << ROUNDED_UNIT_BITS
    left, right = (tuple(_weights(config.distance_weighting, side, unit)) for side in sides)
    if config.min_pair_count * unit >= 2**63:
        raise ConfigError(
            f"cooccurrence.min_pair_count is {config.min_pair_count:g}, and no count is as large: an int64 holds "
            f"{2**63 / unit:.3g} in units of 1/{unit:,}"
        )
    return Semantics(
        window_left=config.window_left,
        window_right=config.window_right,
        distance_weighting=config.distance_weighting,
        boundary=config.boundary,
        oov=config.oov,
        diagonal=config.diagonal,
        subsample=config.subsample,
        min_pair_count=config.min_pair_count,
        seed=seed if config.subsample is not None else 0,
        unit=unit,
        exact_unit=unit % exact == 0,
        left=left,
        right=right,
    )


def semantics_from_facts(facts: Mapping[str, Any]) -> Semantics:
    """The inverse of `Semantics.facts`."""
    known = {name: value for name, value in facts.items() if name != "weight_error"}
    sides = {
        side: tuple(_weights(facts["distance_weighting"], facts[f"window_{side}"], facts["unit"]))
        for side in ("left", "right")
    }
    return Semantics(**known, left=sides["left"], right=sides["right"])


def _with_zero(units: tuple[int, ...]) -> np.ndarray:
    return np.array([0, *(number for number in units if number)], np.int64)


def _exact_unit(weighting: str, sides: tuple[int, int]) -> int:
    if weighting == "inverse":
        return math.lcm(*range(1, max(sides) + 1))
    if weighting == "linear":
        return math.lcm(*(side for side in sides if side))
    return 1


def _weights(weighting: str, window: int, unit: int) -> list[int]:
    """Units at distance 1 .. window, to the nearest, ties to even."""
    if weighting == "none":
        return [unit] * window
    if weighting == "linear":
        return [_nearest(unit * (window - d + 1), window) for d in range(1, window + 1)]
    return [_nearest(unit, d) for d in range(1, window + 1)]


def _nearest(numerator: int, denominator: int) -> int:
    quotient, rest = divmod(numerator, denominator)
    return quotient + (2 * rest > denominator or (2 * rest == denominator and quotient % 2 == 1))


def keep_thresholds(counts: np.ndarray, subsample: float) -> np.ndarray:
    """An occurrence of token i stays where its 64-bit hash is below threshold i.

    The probability is p_i = min(1, sqrt(t N / count_i)), N the sum of all counts (Mikolov et al. 2013, as in
    word2vec's paper and hyperwords; word2vec's code adds t N / count).

    Returns
    -------
    uint64 array of shape (V,)
        floor(p_i 2^64), at most 2^64 - 1, which stands for "always".
    """
    total = float(counts.sum())
    share = np.sqrt(subsample * total / np.maximum(counts, 1).astype(np.float64))
    thresholds = np.full(len(counts), np.iinfo(np.uint64).max, np.uint64)
    rare = share < 1.0
    thresholds[rare] = (share[rare] * 2.0**64).astype(np.uint64)
    return thresholds
