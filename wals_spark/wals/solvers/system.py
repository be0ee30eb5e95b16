"""What a half-step is solved from, beside the own rows: the fixed side's factors, and what is known of the solved side.

`FixedFactors` belongs to one half-step. The engine's arrays change in place between half-steps, so the other layouts
that kernels need of them are made once per half-step and go with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from wals_spark.wals.solvers.cache_lines import pad_rows, padded_zeros


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """One thread for BLAS meanwhile.

    The solvers have threads of their own, beside which a BLAS that starts some for every small product is slower by a
    factor of a hundred.
    """
    import scipy.linalg  # noqa: F401  # its BLAS must be loaded to be limited
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, user_api="blas"):
        yield


@dataclass(frozen=True, eq=False)
class FixedFactors:
    """The factors of the fixed side in one half-step, or those that a block of rows names.

    Make a new one for each half-step, and whenever an array below has changed.

    Attributes
    ----------
    z : array of shape (n, K)
        z_j: the factors, then the coordinates of the biases.
    h : float64 array of shape (n,)
        Popularity.
    gramian : float64 array of shape (K, K)
        G = sum_j h_j z_j z_j^T over all rows of the side.
    rho : float
    """

    z: np.ndarray
    h: np.ndarray
    gramian: np.ndarray
    rho: float
    _eigenbases: dict[int, EigenBasis] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def padded(self) -> np.ndarray:
        """Z in whole cache lines, see `wals_spark.wals.solvers.cache_lines`; z itself where it lies so."""
        return pad_rows(self.z)

    def in_eigenbasis(self, k: int, threads: int) -> EigenBasis:
        """Z in the eigenbasis of the Gramian of its first k coordinates."""
        if k not in self._eigenbases:
            self._eigenbases[k] = EigenBasis(self, k, threads)
        return self._eigenbases[k]

    def astype(self, dtype: np.dtype) -> FixedFactors:
        """The same in another precision."""
        return replace(self, z=self.z.astype(dtype))


@dataclass(frozen=True, eq=False)
class System:
    """The linear systems of the rows of a block, without their cells.

    Attributes
    ----------
    fixed_factors : FixedFactors
        The last ``known.shape[1]`` coordinates of its z have a known value on the solved side.
    known : float64 array of shape (r, known coordinates)
    ridge : float64 array of shape (r, K - known coordinates)
    start : array of shape (r, K - known coordinates), optional
        The own rows as they are: where iterative solvers begin.
    linear_term : float64 array of shape (r, K - known coordinates), optional
        Added to the right-hand sides; a row's loss is then known up to a constant.
    biases : int
        1 where the last solved coordinate is a bias, else 0.
    rotation_pays : bool
        Whether short rows are worth a rotation of the fixed factors, see `wals_spark.wals.solvers.cpu.rotation_pays`:
        decided over all rows of the side, so that it depends neither on the block nor on the ranks.
    """

    fixed_factors: FixedFactors
    known: np.ndarray
    ridge: np.ndarray
    start: np.ndarray | None = None
    linear_term: np.ndarray | None = None
    biases: int = 0
    rotation_pays: bool = True

    def astype(self, dtype: np.dtype) -> System:
        """With fixed factors of another precision."""
        return replace(self, fixed_factors=self.fixed_factors.astype(dtype))


class EigenBasis:
    """The fixed side in the eigenbasis of the Gramian of its first k coordinates; as it is where rho is 0.

    Attributes
    ----------
    eigenvalues : float64 array of shape (k,)
        Zeros where rho is 0.
    z : array of shape (n, k in whole lines)
        See `wals_spark.wals.solvers.cache_lines`.
    rest : array of shape (n, K - k)
        The other coordinates.
    cross, corner : float64 arrays of shapes (k, K - k) and (K - k, K - k)
        Their part of the Gramian.
    """

    def __init__(self, fixed: FixedFactors, k: int, threads: int) -> None:
        self.threads = threads
        gramian = fixed.gramian
        self.basis: np.ndarray | None = None
        self.eigenvalues = np.zeros(k)
        if fixed.rho != 0:
            eigenvalues, self.basis = np.linalg.eigh(gramian[:k, :k])
            self.eigenvalues = np.maximum(eigenvalues, 0.0)
        self.z = padded_zeros(len(fixed.z), k, fixed.z.dtype)
        self._rotate(fixed.z[:, :k], self.basis, self.z[:, :k])
        self.rest = np.ascontiguousarray(fixed.z[:, k:])
        self.cross, self.corner = self.forward(gramian[:k, k:].T).T, np.ascontiguousarray(gramian[k:, k:])
        self.cross = np.ascontiguousarray(self.cross)

    def forward(self, x: np.ndarray) -> np.ndarray:
        """Rows in the eigenbasis."""
        return self._rotate(x, self.basis)

    def back(self, x: np.ndarray) -> np.ndarray:
        """The inverse of `forward`."""
        return self._rotate(x, None if self.basis is None else self.basis.T)

    def _rotate(self, x: np.ndarray, basis: np.ndarray | None, out: np.ndarray | None = None) -> np.ndarray:
        out = np.empty_like(x, order="C") if out is None else out
        if basis is None:
            out[:] = x
            return out
        matrix = basis.astype(x.dtype)
        with one_blas_thread(), ThreadPoolExecutor(self.threads) as pool:
            parts = zip(np.array_split(x, self.threads), np.array_split(out, self.threads), strict=True)
            list(pool.map(lambda part: np.matmul(part[0], matrix, out=part[1]), parts))
        return out
