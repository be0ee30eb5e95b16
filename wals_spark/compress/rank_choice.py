"""The rank of a compression: given, or from a target."""

from __future__ import annotations

import numpy as np

from wals_spark.checkpoints.raw_tensor import ITEM_BYTES
from wals_spark.compress import lowrank
from wals_spark.compress.closed_form import ClosedForm
from wals_spark.errors import ConfigError, InputError


def choose_rank(
    form: ClosedForm,
    shape: tuple[int, int],
    dtype: str,
    *,
    rank: int | None,
    target_mse: float | None,
    target_bytes: int | None,
    default: int,
) -> int:
    """The given rank, the least that meets an MSE, or the greatest that fits into bytes.

    Parameters
    ----------
    form : ClosedForm
        Its errors by rank decide on an MSE.
    shape : tuple of int
        (V, d).
    dtype : str
        Of the factors as stored, in safetensors' spelling.
    rank : int or None
        The given rank.
    target_mse : float or None
    target_bytes : int or None
    default : int
        The rank where none of the three is given.

    Returns
    -------
    int

    Raises
    ------
    ConfigError
        More than one of them.
    InputError
        A rank above min(V, d), or a target that no rank meets.
    """
    V, d = shape
    given = [
        name
        for name, value in (("--rank", rank), ("--target-mse", target_mse), ("--target-bytes", target_bytes))
        if value is not None
    ]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} are given: each picks the rank, keep one")
    top = min(V, d)
    if target_mse is not None:
        return _least_rank_for_mse(form.curve[: top + 1], target_mse)
    if target_bytes is not None:
        return min(_greatest_rank_for_bytes(V, d, ITEM_BYTES[dtype], target_bytes), top)
    asked = default if rank is None else rank
    if not 1 <= asked <= top:
        whose = "the preset's rank is" if rank is None else "--rank"
        raise InputError(f"{whose} {asked}: the embedding is {V:,} x {d}, expected 1 to {top}; set --rank")
    return asked


def _least_rank_for_mse(curve: np.ndarray, target: float) -> int:
    """The least rank, 1 or more, whose error in `curve` (by rank from 0) is at most the target."""
    meets = np.flatnonzero(curve[1:] <= target)
    if not len(meets):
        raise InputError(
            f"--target-mse {target:g}: the full rank {len(curve) - 1} leaves {curve[-1]:.3g}; give a larger target"
        )
    return int(meets[0]) + 1


def _greatest_rank_for_bytes(V: int, d: int, item_bytes: int, target: int) -> int:
    """The greatest r with ((V + d) r + d) numbers in `target` bytes."""
    fits = (target // item_bytes - d) // (V + d)
    if fits < 1:
        least = lowrank.parameter_count(V, d, 1) * item_bytes
        raise InputError(f"--target-bytes {target:,}: rank 1 takes {least:,} bytes; give more")
    return int(fits)
