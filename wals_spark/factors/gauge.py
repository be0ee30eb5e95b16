"""The canonical gauge: of all pairs (U A, V A^-T), which have the same product, the one made of its singular vectors.

::

    U = Q_U R_U,  V = Q_V R_V,  R_U R_V^T = A S B^T
    U' = Q_U A S^p,  V' = Q_V B S^(1 - p),  so that U' V'^T = U V^T

Columns stand in falling order of the singular values S of U V^T; the largest entry of every column of U' in
absolute value is positive. The result, and with it every cosine of rows, does not depend on the basis of U and V.

References
----------
G. H. Golub, C. F. Van Loan. Matrix Computations, 4th edition, 2013. Sections 5.2 (QR) and 8.6 (SVD).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

CHUNK_ROWS = 8192
"""Rows that are copied to float64 and factorised at a time."""


def triangular_factor(matrix: np.ndarray) -> np.ndarray:
    """R of ``X = Q R``, in float64 and a chunk of rows at a time.

    Parameters
    ----------
    matrix : array of shape (n, k)
        X.

    Returns
    -------
    float64 array of shape (k, k)
        Unique up to the signs of its rows where X has full rank.
    """
    chunks = (matrix[start : start + CHUNK_ROWS] for start in range(0, len(matrix), CHUNK_ROWS))
    return stack_factors(chunks, matrix.shape[1])


def stack_factors(parts: Iterable[np.ndarray], k: int) -> np.ndarray:
    """R of ``X = Q R``, X being all parts on top of each other; a part may itself be an R of some rows of X.

    Parameters
    ----------
    parts : iterable of arrays of shapes (n_p, k)
    k : int

    Returns
    -------
    float64 array of shape (k, k)
    """
    r = np.zeros((k, k))
    for part in parts:
        r = np.asarray(np.linalg.qr(np.vstack([r, part.astype(np.float64)]), mode="r"))  # (k, k)
    return r


def gauge_transforms(r_u: np.ndarray, r_v: np.ndarray, power: float = 0.5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """T_U and T_V with ``U' = U T_U`` and ``V' = V T_V`` in the canonical gauge, up to the signs.

    Parameters
    ----------
    r_u, r_v : float64 arrays of shape (k, k)
        R_U and R_V, see `triangular_factor`.
    power : float
        p in [0, 1]: 0.5 balances the sides.

    Returns
    -------
    t_u, t_v : float64 arrays of shape (k, k)
        Columns for singular values that are zero to rounding are zero.
    singular : float64 array of shape (k,)
        Singular values of U V^T, falling.
    """
    _, s_u, w_u = np.linalg.svd(r_u)
    _, s_v, w_v = np.linalg.svd(r_v)
    inner = (s_u[:, None] * w_u) @ (w_v.T * s_v)  # diag(s_u) W_u W_v^T diag(s_v), (k, k)
    a, singular, b = np.linalg.svd(inner)
    tiny = len(singular) * np.finfo(np.float64).eps * (singular[0] if len(singular) else 0.0)
    kept = singular > tiny
    scale = np.where(kept, singular, 0.0)
    t_u = w_u.T @ (_inverse(s_u)[:, None] * a) * np.where(kept, scale**power, 0.0)
    t_v = w_v.T @ (_inverse(s_v)[:, None] * b.T) * np.where(kept, scale ** (1.0 - power), 0.0)
    return t_u, t_v, scale


def fix_signs(t_u: np.ndarray, t_v: np.ndarray, extremes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flip columns so that the entry of U' that is largest in absolute value is positive.

    Parameters
    ----------
    t_u, t_v : float64 arrays of shape (k, k)
    extremes : float64 array of shape (k,)
        That entry of every column of ``U t_u``, see `column_extremes`.

    Returns
    -------
    t_u, t_v : float64 arrays of shape (k, k)
    """
    sign = np.where(extremes < 0, -1.0, 1.0)
    return t_u * sign, t_v * sign


def column_extremes(matrix: np.ndarray) -> np.ndarray:
    """``x_ij with i = argmax_i |x_ij|``, for every column j; zeros for a matrix without rows.

    Parameters
    ----------
    matrix : array of shape (n, k)

    Returns
    -------
    array of shape (k,)
    """
    if not len(matrix):
        return np.zeros(matrix.shape[1])
    return np.take_along_axis(matrix, np.abs(matrix).argmax(0)[None, :], 0)[0]


def canonical(u: np.ndarray, v: np.ndarray, power: float = 0.5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """U and V in the canonical gauge, and the singular values of U V^T.

    Parameters
    ----------
    u : array of shape (m, k)
    v : array of shape (n, k)
    power : float
        p in [0, 1].

    Returns
    -------
    u, v : arrays of the given shapes and dtypes
    singular : float64 array of shape (k,)
        Falling; 0 where it is zero to rounding.
    """
    t_u, t_v, singular = gauge_transforms(triangular_factor(u), triangular_factor(v), power)
    t_u, t_v = fix_signs(t_u, t_v, column_extremes(u.astype(np.float64) @ t_u))
    return (u @ t_u).astype(u.dtype), (v @ t_v).astype(v.dtype), singular


def _inverse(values: np.ndarray) -> np.ndarray:
    """Reciprocals, 0 for what is zero to rounding."""
    tiny = len(values) * np.finfo(np.float64).eps * (values[0] if len(values) else 0.0)
    return np.divide(1.0, values, out=np.zeros_like(values), where=values > tiny)
