"""Starting factors: normal numbers that depend on (seed, side, id, coordinate) and on nothing else."""

from __future__ import annotations

import numpy as np

from wals_spark.splitmix64 import GOLDEN_GAMMA, mix64
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
    key = _next(np.array([seed & 0xFFFFFFFFFFFFFFFF], np.uint64) + np.uint64(SIDES.index(side) + 1))
    counter = (ids.astype(np.uint64)[:, None] << np.uint64(16)) + np.arange(k, dtype=np.uint64)  # (r, k)
    first = _next(counter ^ key)
    second = _next(first ^ _next(key))
    # Box and Muller: the first uniform is in (0, 1], so its logarithm is finite.
    radius = np.sqrt(-2.0 * np.log(((first >> np.uint64(11)).astype(np.float64) + 1.0) * 2.0**-53))
    angle = (second >> np.uint64(11)).astype(np.float64) * (2.0 * np.pi * 2.0**-53)
    return radius * np.cos(angle) / np.sqrt(k)


def _next(x: np.ndarray) -> np.ndarray:
    """What SplitMix64 gives after state x."""
    return mix64(x + np.uint64(GOLDEN_GAMMA))
