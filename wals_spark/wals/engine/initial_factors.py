"""Starting factors: normal numbers that depend on (seed, side, id, coordinate) and on nothing else."""

from __future__ import annotations

import numpy as np

from wals_spark.wals.partition.side import SIDES


def initial_factors(seed: int, side: str, ids: np.ndarray, k: int) -> np.ndarray:
    """Independent normal numbers with standard deviation 1 / sqrt(k), by hashing their coordinates.

    Parameters
    ----------
    seed : int
    side : {"row", "col"}
    ids : int64 array of shape (r,)
    k : int

    Returns
    -------
    float64 array of shape (r, k)
    """
    key = _mix(np.array([seed & 0xFFFFFFFFFFFFFFFF], np.uint64) + np.uint64(SIDES.index(side) + 1))
    counter = (ids.astype(np.uint64)[:, None] << np.uint64(16)) + np.arange(k, dtype=np.uint64)  # (r, k)
    first = _mix(counter ^ key)
    second = _mix(first ^ _mix(key))
    # Box and Muller: the first uniform is in (0, 1], so its logarithm is finite.
    radius = np.sqrt(-2.0 * np.log(((first >> np.uint64(11)).astype(np.float64) + 1.0) * 2.0**-53))
    angle = (second >> np.uint64(11)).astype(np.float64) * (2.0 * np.pi * 2.0**-53)
    return radius * np.cos(angle) / np.sqrt(k)


def _mix(x: np.ndarray) -> np.ndarray:
    """A bijection of 64-bit words whose output bits all depend on all input bits (splitmix64's finaliser)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
