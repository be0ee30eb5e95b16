r"""Low-rank factors in closed form, for weights that are a product of row weights and a metric.

::

    minimise  sum_i w_i (e_i - mu - a_i B) H (e_i - mu - a_i B)^T

    mu = sum_i w_i e_i / sum_i w_i,    x_i = e_i - mu,    G_w = sum_i w_i x_i^T x_i
    H^1/2 G_w H^1/2 = Q S^2 Q^T  (eigenvalues falling),   A = X H^1/2 Q_r,   B = Q_r^T H^-1/2

w = 1, H = I is the truncated SVD; w = frequency, H = I the frequency-weighted one; H = second moment of the head's
input h preserves logits: sum_i (x_i.h - a_i B h)^2 in expectation over h. The rows enter through d x d sums alone, so
the error of every rank is known before any factor is computed.

References
----------
C. Eckart, G. Young, "The approximation of one matrix by another of lower rank", Psychometrika 1, 1936.

Y.-C. Hsu, T. Hua, S. Chang, Q. Lou, Y. Shen, H. Jin, "Language model compression with weighted low-rank factorization",
ICLR 2022 (row weights from Fisher information).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wals_spark.compress.lowrank import CHUNK_ROWS

METRIC_FLOOR = 1e-6
"""Smallest eigenvalue of the metric, relative to the largest, so that directions without hidden states remain
representable."""


@dataclass(frozen=True)
class ClosedForm:
    """The factors of every rank.

    Attributes
    ----------
    mean : float64 array of shape (d,)
        mu.
    encode : float64 array of shape (d, d)
        H^1/2 Q: the first r columns turn x_i into a_i.
    decode : float64 array of shape (d, d)
        Q^T H^-1/2: its first r rows are B.
    curve : float64 array of shape (d + 1,)
        Mean squared error of the reconstruction, unweighted, by rank 0 .. d.
    gram : float64 array of shape (d, d)
        sum_i x_i^T x_i, unweighted.
    """

    mean: np.ndarray
    encode: np.ndarray
    decode: np.ndarray
    curve: np.ndarray
    gram: np.ndarray

    def factors(self, E: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
        """A (V, r) and B (r, d), float64; the rows of B are orthonormal where H is the identity."""
        A = np.empty((len(E), rank))
        for start in range(0, len(E), CHUNK_ROWS):
            part = slice(start, start + CHUNK_ROWS)
            A[part] = (E[part].astype(np.float64) - self.mean) @ self.encode[:, :rank]
        return A, self.decode[:rank]


def solve_closed_form(E: np.ndarray, weights: np.ndarray | None = None, metric: np.ndarray | None = None) -> ClosedForm:
    """Solve for every rank at once.

    Parameters
    ----------
    E : float array of shape (V, d)
    weights : float array of shape (V,), optional
        w, none negative; None = all equal.
    metric : float array of shape (d, d), optional
        H, symmetric and positive semidefinite; None = identity.

    Returns
    -------
    ClosedForm
    """
    V, d = E.shape
    w = np.full(V, 1 / V) if weights is None else weights.astype(np.float64) / weights.sum(dtype=np.float64)
    mean = weighted_mean(E, w)
    weighted, plain = gram_matrices(E, mean, w)
    if metric is None:
        root = inverse = np.eye(d)
    else:
        values, basis = np.linalg.eigh((metric + metric.T) / 2)
        values = np.maximum(values, METRIC_FLOOR * values[-1])
        root = (basis * np.sqrt(values)) @ basis.T
        inverse = (basis / np.sqrt(values)) @ basis.T
    Q = np.linalg.eigh(root @ weighted @ root)[1][:, ::-1]  # (d, d), strongest first
    encode, decode = root @ Q, Q.T @ inverse
    return ClosedForm(mean, encode, decode, _curve(plain, encode, decode) / (V * d), plain)


def weighted_mean(E: np.ndarray, w: np.ndarray) -> np.ndarray:
    """sum_i w_i e_i for weights that add up to 1, float64 (d,)."""
    return sum(
        (w[s : s + CHUNK_ROWS] @ E[s : s + CHUNK_ROWS].astype(np.float64) for s in range(0, len(E), CHUNK_ROWS)),
        np.zeros(E.shape[1]),
    )


def gram_matrices(E: np.ndarray, mean: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """sum_i w_i x_i^T x_i and sum_i x_i^T x_i, float64 (d, d) both."""
    d = E.shape[1]
    weighted, plain = np.zeros((d, d)), np.zeros((d, d))
    for start in range(0, len(E), CHUNK_ROWS):
        part = slice(start, start + CHUNK_ROWS)
        X = E[part].astype(np.float64) - mean
        plain += X.T @ X
        weighted += (X.T * w[part]) @ X
    return weighted, plain


def _curve(gram: np.ndarray, encode: np.ndarray, decode: np.ndarray) -> np.ndarray:
    """sum_i |x_i - x_i P_r|^2 with P_r = encode_r decode_r: tr G - 2 tr P_r^T G + tr P_r^T G P_r, float64 (d + 1,)."""
    d = len(gram)
    image = gram @ encode
    linear = np.einsum("pi,ip->p", decode, image)  # (d,)
    square = (decode @ decode.T) * (encode.T @ image)  # (d, d)
    corner = np.diagonal(square.cumsum(0).cumsum(1))  # sums over p, q < r
    curve = np.empty(d + 1)
    curve[0] = np.trace(gram)
    curve[1:] = curve[0] - 2 * linear.cumsum() + corner
    return np.maximum(curve, 0.0)
