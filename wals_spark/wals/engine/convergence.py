"""The rules for the loss: when a training has converged, and the errors of a loss that rises or is not finite."""

from __future__ import annotations

import logging
import math

import numpy as np

from wals_spark.errors import WalsSparkError
from wals_spark.wals.engine.factors import FactorStore

RISE_ALLOWED = {"float32": 1e-5, "float64": 1e-9}
ROUNDING = {"float32": 1e-6, "float64": 1e-14}
"""Of the first loss: a loss near zero is the difference of numbers as large as that."""


FLOOR = 100.0
"""Roundings within which a loss that rises is at its floor."""
logger = logging.getLogger(__name__)


class DivergedError(WalsSparkError):
    """The loss of an exact solver rose, or is not a number: a bug or a broken machine, never the data."""


def has_converged(losses: list[float], tolerance: float) -> bool:
    """Whether the last sweep lowered the loss by less than the tolerance, relatively, or to nothing at all."""
    if tolerance <= 0 or len(losses) < 4:
        return False
    return losses[-1] == 0 or losses[-3] - losses[-1] < tolerance * abs(losses[-3])


def without_rounding(loss: float, losses: list[float], precision: str, magnitude: float) -> float:
    """0 for a loss that is negative by rounding only, since it is a sum of terms that are not.

    Parameters
    ----------
    loss : float
    losses : list of float
        Of the half-sweeps before.
    precision : {"float32", "float64"}
    magnitude : float
        See `loss_magnitude`.

    Returns
    -------
    float
    """
    rounding = ROUNDING[precision] * (magnitude + abs(losses[0] if losses else 0.0))
    return 0.0 if -rounding <= loss < 0 else loss


def check_loss(loss: float, losses: list[float], precision: str, half: int, magnitude: float) -> bool:
    """Compare the loss after half-sweep `half` with those before.

    Parameters
    ----------
    loss : float
    losses : list of float
        Of the half-sweeps before.
    precision : {"float32", "float64"}
        Of the factors: decides what is rounding.
    half : int
    magnitude : float
        Of the terms of a loss, see `loss_magnitude`.

    Returns
    -------
    bool
        Whether the loss is so small that it rose by rounding: it can fall no further in this precision.

    Raises
    ------
    DivergedError
        The loss is not finite, or rose by more than rounding.
    """
    if not math.isfinite(loss):
        raise DivergedError(f"the loss after half-sweep {half} is {loss}; expected a finite number")
    if not losses:
        return False
    rise, rounding = RISE_ALLOWED[precision], ROUNDING[precision]
    floor = rounding * (magnitude + abs(losses[0]))
    if loss > losses[-1] + rise * abs(losses[-1]) + floor:
        if loss <= FLOOR * floor:
            logger.warning(
                "the loss rose from %g to %g in half-sweep %d: with terms of the size %.3g that is rounding in %s, so "
                "the training ends here; train.precision: float64 goes further",
                losses[-1],
                loss,
                half,
                magnitude,
                precision,
            )
            return True
        raise DivergedError(
            f"the loss rose from {losses[-1]!r} to {loss!r} in half-sweep {half} although no row's part of it may "
            f"rise; try train.precision: float64 (now {precision}) or more regularisation, and report this"
        )
    return False


def loss_magnitude(store: FactorStore, rho: float) -> float:
    """``sum_observed (|d_ij| + rho g_i h_j) m_ij^2``: the size of the terms that cancel in a loss near zero."""
    h = float(store.sides["col"].popularity.max(initial=0.0))
    total = 0.0
    for block in store.sides["row"].blocks:
        rows = block.rows
        weight = np.abs(rows.weight) + rho * h * np.repeat(rows.popularity, np.diff(rows.indptr))
        total += float((weight * rows.target.astype(np.float64) ** 2).sum())
    return float(store.group.all_reduce(np.array(total)))
