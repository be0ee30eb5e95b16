r"""Shares of rows that come from the factors: weights by precision, from two frequencies.

The error of a pretrained row falls with n_i, how often pretraining saw the token; that of a predicted row is the
lack of fit of the map, plus noise that falls with c_i, how often the corpus saw the token. In units of the typical
squared row length rho^2 of the token's frequency::

    |E_i - P_i|^2 / rho_i^2  =  v_E / n_i + s^2 + v_U / c_i            (fitted on frequency strata)
    b_i  = h / (h + n_i) . c_i / (c_i + h_c),   h = v_E / s^2,  h_c = v_U / s^2 (20 at least)
    E'_i = (1 - b_i) E_i + b_i P_i              b_i at most b_max, 0 for protected rows and c_i = 0

The first factor of b_i weighs the two errors against each other, the second is the trust in the prediction itself.
Tokens that are rare in pretraining and frequent in the corpus have a large b, tokens rare in both a small one.
Dividing by rho^2 matters: rows of rare tokens are shorter, so their raw errors are smaller, not larger. The fitted
errors include all that the map cannot express, so h is better chosen by masked-LM loss where the model has that head
(`wals_spark.inject.strength_search`); h = 0 means no change.

Span only: with Q an orthonormal basis of the directions that the map can reach (its rank is k at most), a
row keeps what lies outside, E'_i = E_i + b_i (P_i - mu_e - (E_i - mu_e) Q Q^T), and lengths are matched and
errors measured within.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

LEAST_HALF_COUNT = 20.0
_STRATA = 12
_MIN_EXPOSURE = 0.5


@dataclass(frozen=True)
class Variances:
    """v_E, s^2, v_U of the module's formula, in units of the squared row length."""

    pretrained: float
    mapping: float
    factors: float

    @property
    def half_exposure(self) -> float:
        """The exposure h = v_E / s^2 at which old row and prediction weigh the same."""
        return self.pretrained / self.mapping if self.mapping > 0 else 0.0

    @property
    def half_count(self) -> float:
        """h_c = v_U / s^2, `LEAST_HALF_COUNT` at least: the count at which trust is one half."""
        return max(LEAST_HALF_COUNT, self.factors / self.mapping if self.mapping > 0 else 0.0)

    def to_json(self) -> dict[str, float]:
        """Plain JSON values."""
        return asdict(self)


def fit_variances(relative_error: np.ndarray, exposure: np.ndarray, counts: np.ndarray) -> Variances:
    """Non-negative least squares of the strata means on 1/n, 1, 1/c.

    Parameters
    ----------
    relative_error : float64 array of shape (n,)
        |E_i - P_i|^2 / rho_i^2 of tokens whose own row did not fit the map.
    exposure : float array of shape (n,)
        n_i.
    counts : float array of shape (n,)
        c_i.

    Returns
    -------
    Variances

    Notes
    -----
    Strata are cells of a grid of log n by log c, weighted by their tokens. Where n and c are
    proportional (the corpus is the pretraining text) v_E and v_U cannot be told apart; a small ridge on
    their scaled coefficients then splits the sum evenly.
    """
    from scipy.optimize import nnls

    n = np.maximum(exposure.astype(np.float64), _MIN_EXPOSURE)
    c = np.maximum(counts.astype(np.float64), _MIN_EXPOSURE)
    cell = _quantile_bins(np.log(n)) * _STRATA + _quantile_bins(np.log(c))
    _, cell = np.unique(cell, return_inverse=True)
    size = np.bincount(cell).astype(np.float64)
    mean = np.bincount(cell, relative_error) / size
    columns = np.stack([np.bincount(cell, 1 / n) / size, np.ones_like(size), np.bincount(cell, 1 / c) / size], axis=1)
    scale = np.sqrt((size[:, None] * columns**2).sum(axis=0) / size.sum())
    root = np.sqrt(size / size.sum())[:, None]
    tie = 1e-3 * np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    solution, _ = nnls(np.vstack([root * columns / scale, tie]), np.concatenate([root[:, 0] * mean, [0.0, 0.0]]))
    v_e, s2, v_u = solution / scale
    return Variances(float(v_e), float(s2), float(v_u))


def _quantile_bins(values: np.ndarray) -> np.ndarray:
    """The bin of each value among 12 of equally many, int64 (n,)."""
    edges = np.quantile(values, np.arange(1, _STRATA) / _STRATA)
    return np.searchsorted(edges, values, side="left")


def blend_shares(
    half_exposure: float,
    half_count: float,
    exposure: np.ndarray,
    counts: np.ndarray,
    protected: np.ndarray,
    b_max: float,
) -> np.ndarray:
    """b_i = min(h / (h + n_i) c_i / (c_i + h_c), b_max), 0 for protected ids.

    Parameters
    ----------
    half_exposure : float
        h.
    half_count : float
        h_c.
    exposure : float array of shape (V,)
        n_i.
    counts : float array of shape (V,)
        c_i.
    protected : int64 array of shape (p,)
        Ids whose share is 0.
    b_max : float
        Largest share.

    Returns
    -------
    float32 array of shape (V,)
    """
    n, c = exposure.astype(np.float64), counts.astype(np.float64)
    own = half_exposure / (half_exposure + n) if half_exposure > 0 else np.zeros(len(n))
    share = np.minimum(own * trust(c, half_count), b_max)
    share[protected] = 0.0
    return share.astype(np.float32)


def trust(counts: np.ndarray, half_count: float) -> np.ndarray:
    """c_i / (c_i + h_c), 0 where c_i = 0, float64 (V,)."""
    c = counts.astype(np.float64)
    return np.divide(c, c + half_count, out=np.zeros(len(c)), where=c > 0)


def blend_rows(E: np.ndarray, P: np.ndarray, share: np.ndarray) -> np.ndarray:
    """(1 - b) E + b P, float32 (n, d); rows with b = 0 are E itself."""
    mixed = E + share[:, None] * (P - E)
    return np.where(share[:, None] > 0, mixed, E)


def span_basis(W: np.ndarray) -> np.ndarray:
    """Orthonormal basis Q of the row space of W (k, d), float64 (d, r): what the factors can express."""
    _, S, rows = np.linalg.svd(W.astype(np.float64), full_matrices=False)
    least = S.max(initial=0) * max(W.shape) * np.finfo(np.float64).eps
    return rows[least < S].T


def component_outside_span(E: np.ndarray, centre: np.ndarray, Q: np.ndarray) -> np.ndarray:
    """(e_i - centre) (I - Q Q^T): the component that the factors cannot express, float32 (n, d)."""
    away = (E - centre).astype(np.float32)
    basis = Q.astype(np.float32)
    return away - (away @ basis) @ basis.T
