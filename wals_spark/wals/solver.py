"""One half-step on a rank: choose the kernel, feed it rows, check what comes back."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from wals_spark.errors import InputError
from wals_spark.wals.sides import Side

logger = logging.getLogger(__name__)

TILE = 128
"""Cells gathered at once: two panels of so many lines fit the first cache."""
CHUNKS_PER_THREAD = 32


@dataclass(frozen=True)
class System:
    """What a half-step needs beside the own rows.

    Attributes
    ----------
    features : array of shape (n, K)
        z_j: the factors of the fixed side, then the coordinates of the biases; the last ``held.shape[1]``
        coordinates have a given value on the solved side.
    h : float64 array of shape (n,)
        Popularity of the fixed side.
    gramian : float64 array of shape (K, K)
        G = sum_j h_j z_j z_j^T.
    rho : float
    held : float64 array of shape (r, fixed)
    ridge : float64 array of shape (r, K - fixed)
    start : array of shape (r, K - fixed), optional
        The own rows as they are: where iterative solvers begin.
    pull : float64 array of shape (r, K - fixed), optional
        Added to the right-hand sides; a row's loss is then known up to a constant.
    """

    features: np.ndarray
    h: np.ndarray
    gramian: np.ndarray
    rho: float
    held: np.ndarray
    ridge: np.ndarray
    start: np.ndarray | None = None
    pull: np.ndarray | None = None

    def with_pull(self, pull: np.ndarray) -> System:
        """With another term in the right-hand sides."""
        return replace(self, pull=pull)

    def in_dtype(self, dtype: np.dtype) -> System:
        """With features of another precision."""
        return replace(self, features=self.features.astype(dtype))


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Threads are ours: a BLAS that starts its own for every small product is slower by a factor of a hundred."""
    import scipy.linalg  # noqa: F401  # its BLAS must be loaded to be limited
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, user_api="blas"):
        yield


class Solver(ABC):
    """Solves the own rows of a side."""

    @abstractmethod
    def solve(self, side: Side, system: System) -> tuple[np.ndarray, np.ndarray]:
        """The solution and the loss of every own row.

        Returns
        -------
        x : array of shape (r, K - fixed), of the dtype of the features
        row_loss : float64 array of shape (r,)
            The row's part of the objective, its own regularisation included, that of the fixed side not.

        Raises
        ------
        InputError
            A system is not positive definite even in float64; the rows are named.
        """


class CpuSolver(Solver):
    """Exact solution by Cholesky, in compiled code on some threads; every row by one thread alone.

    A row's result does not depend on the threads, on the ranks or on the other rows.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads

    def solve(self, side: Side, system: System) -> tuple[np.ndarray, np.ndarray]:
        out, row_loss, failed = self._solve(side, system, np.arange(len(side.rows)))
        again = np.flatnonzero(failed)
        if len(again):
            logger.warning("%d rows are nearly singular in %s, solved in float64", len(again), system.features.dtype)
            exact, exact_loss, failed = self._solve(side, system.in_dtype(np.dtype(np.float64)), again)
            out[again], row_loss[again] = exact[again], exact_loss[again]
        refuse_singular(side, np.flatnonzero(failed))
        return out, row_loss

    def _solve(self, side: Side, system: System, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        from wals_spark.wals.kernels_cpu import solve_rows

        features = np.ascontiguousarray(system.features)
        dtype = features.dtype
        count, free = len(side.rows), system.ridge.shape[1]
        out, row_loss, failed = np.zeros((count, free), dtype), np.zeros(count), np.zeros(count, np.int8)
        pull = np.zeros((0, free)) if system.pull is None else system.pull
        h, gramian = system.h.astype(dtype), system.gramian.astype(dtype)
        g, ridge = side.g.astype(dtype), system.ridge.astype(dtype)
        m, d = side.m.astype(dtype, copy=False), side.d.astype(dtype, copy=False)

        def work(chunk: np.ndarray) -> None:
            solve_rows(
                chunk, side.indptr, side.indices, m, d, features, h, gramian, g, ridge, dtype.type(system.rho),
                system.held, pull, out, row_loss, failed, TILE,
            )  # fmt: skip

        chunks = row_chunks(side, features.shape[1], self.threads, rows)
        with one_blas_thread(), ThreadPoolExecutor(self.threads) as pool:
            list(pool.map(work, chunks))
        return out, row_loss, failed


class ConjugateGradientSolver(CpuSolver):
    """A few preconditioned steps from the rows as they are; for large k, where exact solutions cost too much.

    The basis is turned to the eigenvectors of the Gramian first, where the diagonal is a good preconditioner.
    Objectives with biases are solved exactly.
    """

    def __init__(self, threads: int, steps: int) -> None:
        super().__init__(threads)
        self.steps = steps

    def solve(self, side: Side, system: System) -> tuple[np.ndarray, np.ndarray]:
        from wals_spark.wals.kernels_cpu import improve_rows

        if system.held.shape[1] or system.start is None or not system.start.any():
            return super().solve(side, system)
        dtype = system.features.dtype
        values, basis = np.linalg.eigh(system.gramian)
        features = (system.features @ basis).astype(dtype)
        out = (system.start @ basis).astype(dtype)
        row_loss = np.zeros(len(side.rows))
        h, gramian, g = system.h.astype(dtype), np.diag(values).astype(dtype), side.g.astype(dtype)
        ridge = system.ridge.astype(dtype)
        m, d = side.m.astype(dtype, copy=False), side.d.astype(dtype, copy=False)

        def work(chunk: np.ndarray) -> None:
            improve_rows(
                chunk, side.indptr, side.indices, m, d, features, h, gramian, g, ridge, dtype.type(system.rho),
                self.steps, out, row_loss,
            )  # fmt: skip

        with one_blas_thread(), ThreadPoolExecutor(self.threads) as pool:
            list(pool.map(work, row_chunks(side, features.shape[1], self.threads)))
        return (out @ basis.T).astype(dtype), row_loss


def row_chunks(side: Side, width: int, threads: int, rows: np.ndarray | None = None) -> list[np.ndarray]:
    """Own rows (all, or some) in falling order of cost, cut into pieces of nearly equal cost."""
    rows = np.arange(len(side.rows)) if rows is None else rows
    cost = np.diff(side.indptr)[rows] + width / 3
    order = np.argsort(-cost, kind="stable")
    ends = np.cumsum(cost[order])
    if not len(ends):
        return []
    pieces = threads * CHUNKS_PER_THREAD
    bounds = np.unique(np.searchsorted(ends, ends[-1] * np.arange(1, pieces) / pieces))
    return [piece for piece in np.split(rows[order], bounds) if len(piece)]


def refuse_singular(side: Side, failed: np.ndarray) -> None:
    """Raise for rows without a unique solution."""
    if len(failed):
        ids = ", ".join(str(int(side.rows[i])) for i in failed[:5])
        raise InputError(
            f"{len(failed)} rows have no unique solution (ids {ids}{', ...' if len(failed) > 5 else ''}): fewer cells "
            "than factors and hardly any regularisation; raise train.regularization or train.rho, or lower train.k"
        )
