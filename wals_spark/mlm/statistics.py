"""Intervals by resampling clusters, the same resamples in every arm.

For a ratio of sums over clusters c (documents, token types), theta = sum_c a_c / sum_c b_c, a resample
draws as many clusters with replacement: theta* = sum_c n_c a_c / sum_c n_c b_c with multinomial n. Two arms
measured on the same clusters share n, so the interval of their difference is a paired one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from wals_spark.errors import InputError

LEVEL = 0.95
_WEIGHTS_AT_ONCE = 8_000_000


@dataclass(frozen=True)
class Interval:
    """A number with its 95 % percentile interval.

    Attributes
    ----------
    value, low, high : float
        NaN where there is nothing to measure; low and high are NaN with fewer than two clusters.
    n, clusters : int
        Observations and clusters behind it.
    """

    value: float
    low: float
    high: float
    n: int
    clusters: int

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` is the inverse."""
        return {"value": self.value, "low": self.low, "high": self.high, "targets": self.n, "documents": self.clusters}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Interval:
        """The inverse of `to_json`."""
        return cls(found["value"], found["low"], found["high"], found["targets"], found["documents"])

    @property
    def excludes_zero(self) -> bool:
        """Of a difference: whether 0 lies outside the interval."""
        return self.low > 0 or self.high < 0


def percentile_interval(draws: np.ndarray) -> tuple[float, float]:
    """The central 95 % of the draws that are numbers; NaN where there are none."""
    draws = draws[np.isfinite(draws)]
    if len(draws) == 0:
        return float("nan"), float("nan")
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)


class Clusters:
    """Observations grouped into clusters; draws resamples once per seed, whatever is measured on them.

    Parameters
    ----------
    labels : integer array of shape (n,)
        The cluster of each observation.
    resamples : int
    seed : int
    """

    def __init__(self, labels: np.ndarray, resamples: int, seed: int) -> None:
        self.labels = np.asarray(labels)
        _, self.index = np.unique(self.labels, return_inverse=True)
        self.count = int(self.index.max()) + 1 if len(self.index) else 0
        self.sizes = np.bincount(self.index, minlength=self.count)
        self.resamples = resamples
        self.seed = seed

    def _sums(self, *columns: np.ndarray) -> np.ndarray:
        """Resampled sums of per-cluster columns, of shape (len(columns), resamples)."""
        generator = np.random.default_rng([self.seed, 1])
        stacked = np.stack([np.asarray(column, np.float64) for column in columns])  # (s, c)
        sums = np.empty((len(columns), self.resamples))
        step = max(1, _WEIGHTS_AT_ONCE // max(1, self.count))
        for start in range(0, self.resamples, step):
            stop = min(self.resamples, start + step)
            draw = generator.integers(self.count, size=(stop - start, self.count))
            offset = np.arange(stop - start)[:, None] * self.count
            weights = np.bincount((draw + offset).ravel(), minlength=draw.size).reshape(draw.shape)
            sums[:, start:stop] = stacked @ weights.T
        return sums

    def _per_cluster(self, values: np.ndarray) -> np.ndarray:
        if len(values) != len(self.index):
            raise InputError(f"{len(values)} values for {len(self.index)} observations: two arms that cannot be paired")
        return np.bincount(self.index, weights=np.asarray(values, np.float64), minlength=self.count)

    def mean(self, values: np.ndarray) -> Interval:
        """The mean of a value per observation."""
        if self.count == 0:
            return Interval(float("nan"), float("nan"), float("nan"), 0, 0)
        sums = self._per_cluster(values)
        value = float(sums.sum() / self.sizes.sum())
        low, high = float("nan"), float("nan")
        if self.count > 1:
            numerator, denominator = self._sums(sums, self.sizes)
            low, high = percentile_interval(numerator / denominator)
        return Interval(value, low, high, len(self.index), self.count)

    def difference(self, after: np.ndarray, before: np.ndarray) -> Interval:
        """The mean of ``after - before``, paired."""
        return self.mean(np.asarray(after, np.float64) - np.asarray(before, np.float64))

    def macro(self, values: np.ndarray) -> Interval:
        """The mean over clusters of their means: every cluster counts the same."""
        if self.count == 0:
            return Interval(float("nan"), float("nan"), float("nan"), 0, 0)
        means = self._per_cluster(values) / self.sizes
        low, high = float("nan"), float("nan")
        if self.count > 1:
            (sums,) = self._sums(means)
            low, high = percentile_interval(sums / self.count)
        return Interval(float(means.mean()), low, high, len(self.index), self.count)


def two_level_bootstrap(
    after: np.ndarray, before: np.ndarray, labels: np.ndarray, resamples: int, seed: int
) -> Interval:
    """The mean of ``after - before`` over seeds and observations; seeds and clusters are both drawn with replacement.

    The interval is that of a repetition with other seeds on other documents.

    Parameters
    ----------
    after, before : arrays of shape (seeds, n)
        Paired: the same seeds, the same observations.
    labels : integer array of shape (n,)
        The cluster of each observation.
    resamples : int
    seed : int

    Returns
    -------
    Interval

    Raises
    ------
    InputError
        The shapes do not fit.

    References
    ----------
    Sellam et al. (2022), The MultiBERTs: BERT Reproductions for Robustness Analysis, ICLR (Multi-Bootstrap).
    """
    difference = np.asarray(after, np.float64) - np.asarray(before, np.float64)
    if difference.ndim != 2 or difference.shape[1] != len(labels):
        raise InputError(f"values of shape {difference.shape} for {len(labels)} observations: expected (seeds, n)")
    if difference.size == 0:
        return Interval(float("nan"), float("nan"), float("nan"), 0, 0)
    _, index = np.unique(labels, return_inverse=True)
    sizes = np.bincount(index)
    sums = np.stack([np.bincount(index, weights=row) for row in difference])  # (seeds, clusters)
    low, high = float("nan"), float("nan")
    if len(sizes) > 1:
        generator = np.random.default_rng([seed, 6])
        draws = np.empty(resamples)
        for number in range(resamples):
            clusters = generator.integers(len(sizes), size=len(sizes))
            seeds = generator.integers(len(sums), size=len(sums))
            draws[number] = sums[np.ix_(seeds, clusters)].sum() / (len(seeds) * sizes[clusters].sum())
        low, high = percentile_interval(draws)
    return Interval(float(difference.mean()), low, high, len(index), len(sizes))
