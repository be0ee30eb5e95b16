"""What kernels take: groups of arrays as named tuples, which compiled code unpacks at no cost.

Arrays of floats have the precision of the factors unless another is given here.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class CsrArrays(NamedTuple):
    """The observed cells of a block of rows.

    Attributes
    ----------
    indptr : int64 array of shape (r + 1,)
    indices : int32 array of shape (nnz,)
        Rows of the fixed side.
    m, d : arrays of shape (nnz,)
        Targets, and the weights beyond those of unobserved cells.
    """

    indptr: np.ndarray
    indices: np.ndarray
    m: np.ndarray
    d: np.ndarray


class FixedSide(NamedTuple):
    """The fixed side of a half-step.

    Attributes
    ----------
    z : array of shape (n, K in whole lines)
        z_j, see `wals_spark.wals.solvers.cache_lines`; its last coordinates may be those that have a known value on
        the solved side.
    h : array of shape (n,)
    gramian : array of shape (K, K)
        G = sum_j h_j z_j z_j^T.
    rho : float
    """

    z: np.ndarray
    h: np.ndarray
    gramian: np.ndarray
    rho: float


class RotatedSide(NamedTuple):
    """The fixed side in the eigenbasis of the Gramian of its factors: ``G = Q Lambda Q^T`` for its first k coordinates.

    Attributes
    ----------
    z : array of shape (n, k in whole lines)
        The factors in the eigenbasis, see `wals_spark.wals.solvers.cache_lines`.
    h : array of shape (n,)
    eigenvalues : float64 array of shape (k,)
        Lambda.
    rest : array of shape (n, K - k)
        The other coordinates: that of a free bias, if there is one, then those with a known value.
    cross : float64 array of shape (k, K - k)
        Their columns of the Gramian, in the eigenbasis.
    corner : float64 array of shape (K - k, K - k)
        Their block of it.
    rho : float
    """

    z: np.ndarray
    h: np.ndarray
    eigenvalues: np.ndarray
    rest: np.ndarray
    cross: np.ndarray
    corner: np.ndarray
    rho: float


class RowTerms(NamedTuple):
    """What the systems of the solved rows have beside their cells.

    Attributes
    ----------
    g : array of shape (r,)
    ridge : array of shape (r, solved coordinates)
        The diagonal that is added, lambda_i for factors and 0 for a bias.
    known : float64 array of shape (r, K - solved coordinates)
        Values of the last coordinates of z.
    linear_term : float64 array of shape (r, solved coordinates), or without rows for none
        Added to the right-hand sides.
    """

    g: np.ndarray
    ridge: np.ndarray
    known: np.ndarray
    linear_term: np.ndarray


class Solution(NamedTuple):
    """Where kernels write.

    Attributes
    ----------
    x : array of shape (r, solved coordinates)
        The rows; where a kernel improves rows, also where it starts from.
    row_loss : float64 array of shape (r,)
        The row's part of the objective, its own regularisation included.
    failed : int8 array of shape (r,)
        1 where a row could not be solved.
    """

    x: np.ndarray
    row_loss: np.ndarray
    failed: np.ndarray
