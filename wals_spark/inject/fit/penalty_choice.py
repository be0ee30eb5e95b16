r"""The penalty of a fit, chosen on documents that were held out of it.

The prior spread of a logit is sigma = |h| / sqrt(lambda_R). Penalties are tried from strong to weak, each fit starting
from the one before, until the loss on held-out documents rises; of those whose loss is no more than `TOLERATED` above
the best, or not clearly above it (the 95 % interval of the paired difference, resampled by document, reaches 0), the
strongest is taken. Where general text is at hand, a penalty that makes it worse by more than `GENERAL_LOSS` is not
taken if a stronger one does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wals_spark.mlm.statistics import Clusters, Interval

SPREADS = (0.9, 1.5, 2.8)
"""sigma of the penalties that are tried, in this order."""
TOLERATED = 0.003
GENERAL_LOSS = 0.01
RESAMPLES = 1000


@dataclass(frozen=True)
class HeldOutLoss:
    """A fit on held-out text.

    Attributes
    ----------
    ridge : float
        lambda_R.
    losses : float64 array of shape (n,)
        -log p(y_t) at the held-out positions, nats.
    general : float64 array of shape (m,) or None
        The same on general text.
    """

    ridge: float
    losses: np.ndarray
    general: np.ndarray | None = None


@dataclass(frozen=True)
class HeldOutGain:
    """What a fit gains over the base, in nats per masked token, with its interval by document."""

    ridge: float
    domain: Interval
    general: Interval | None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "lambda_rows": self.ridge,
            "gain": self.domain.to_json(),
            **({"general_gain": self.general.to_json()} if self.general is not None else {}),
        }


def ridge_grid(mean_square: float) -> tuple[float, ...]:
    """lambda_R of each of `SPREADS` for states of mean squared length |h|^2, strongest first."""
    return tuple(mean_square / spread**2 for spread in SPREADS)


def still_falls(tried: Sequence[HeldOutLoss]) -> bool:
    """Whether the newest of some fits, strongest penalty first, is better on held-out text than the one before."""
    return len(tried) < 2 or float(tried[-1].losses.mean()) < float(tried[-2].losses.mean())


def choose_ridge(
    tried: Sequence[HeldOutLoss], documents: np.ndarray, seed: int, base_general: np.ndarray | None
) -> int:
    """The number of the fit whose penalty is taken.

    Parameters
    ----------
    tried : sequence of HeldOutLoss
        Strongest penalty first.
    documents : integer array of shape (n,)
        Document of each held-out position.
    seed : int
        Of the bootstrap.
    base_general : float64 array of shape (m,) or None
        The base's losses on general text.

    Returns
    -------
    int
    """
    best = min(range(len(tried)), key=lambda number: float(tried[number].losses.mean()))
    clusters = Clusters(documents, RESAMPLES, seed)
    chosen = best
    for number in range(best):
        worse = clusters.difference(tried[number].losses, tried[best].losses)
        if worse.value <= TOLERATED or worse.low <= 0:
            chosen = number
            break
    if base_general is not None:
        while chosen > 0 and _general_change(tried[chosen], base_general) > GENERAL_LOSS:
            chosen -= 1
    return chosen


def held_out_gain(
    fit: HeldOutLoss,
    base: np.ndarray,
    documents: np.ndarray,
    seed: int,
    base_general: np.ndarray | None = None,
    general_documents: np.ndarray | None = None,
) -> HeldOutGain:
    """The gain of a fit over the base.

    Parameters
    ----------
    fit : HeldOutLoss
    base : float64 array of shape (n,)
        The base's losses at the same positions.
    documents : integer array of shape (n,)
    seed : int
        Of the bootstrap.
    base_general : float64 array of shape (m,), optional
    general_documents : integer array of shape (m,), optional

    Returns
    -------
    HeldOutGain
    """
    domain = Clusters(documents, RESAMPLES, seed).difference(base, fit.losses)
    general = None
    if fit.general is not None and base_general is not None and general_documents is not None:
        general = Clusters(general_documents, RESAMPLES, seed).difference(base_general, fit.general)
    return HeldOutGain(fit.ridge, domain, general)


def _general_change(fit: HeldOutLoss, base_general: np.ndarray) -> float:
    assert fit.general is not None
    return float((fit.general - base_general).mean())
