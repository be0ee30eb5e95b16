"""One half-step on a rank: choose the kernel, feed it rows, check what comes back."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from wals_spark.errors import InputError
from wals_spark.wals.lines import empty_lines, in_lines
from wals_spark.wals.sides import Side

logger = logging.getLogger(__name__)

TILE = 128
"""Cells gathered at once: two panels of so many lines fit the first cache."""
CHUNKS_PER_THREAD = 32
EXCESS_ALLOWED = {"float32": 1e-7, "float64": 1e-15}
"""Dual form: how far a row's loss may be above its minimum, relatively, before it is solved by Cholesky."""
CHOLESKY_EXTRA, DUAL_EXTRA, TURN = 40.0, 70.0, 2.0
"""Slower work of both forms, in the units of `_won`."""
DUAL_FROM = 64
"""Factors from which the dual form is tried: below, Cholesky is quick, and compiling another kernel is not."""


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
    biases : int
        1 where the last solved coordinate is a bias, else 0.
    """

    features: np.ndarray
    h: np.ndarray
    gramian: np.ndarray
    rho: float
    held: np.ndarray
    ridge: np.ndarray
    start: np.ndarray | None = None
    pull: np.ndarray | None = None
    biases: int = 0

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
    """Exact solution in compiled code on some threads; every row by one thread alone.

    A row's result does not depend on the threads, on the ranks or on the other rows.

    Parameters
    ----------
    threads : int
    dual : bool
        Rows with so few cells that it costs less are solved through a system of the size of their cells, see
        `wals_spark.wals.kernels.dual`; all others, and those that this cannot solve, by Cholesky.
    """

    def __init__(self, threads: int, *, dual: bool = False) -> None:
        self.threads, self.dual = threads, dual
        self._last: tuple[System, _Turned] | None = None
        self._lined: tuple[np.ndarray, np.ndarray] | None = None

    def solve(self, side: Side, system: System) -> tuple[np.ndarray, np.ndarray]:
        count, free = system.ridge.shape
        out, row_loss = np.zeros((count, free), system.features.dtype), np.zeros(count)
        short = np.zeros(0, np.int64)
        if self.dual and self._dual_pays(side, system):
            short = np.flatnonzero(short_rows(np.diff(side.indptr), free - system.biases))
        rows = np.setdiff1d(np.arange(count), short, assume_unique=True)
        if len(short):
            rows = np.union1d(rows, self._solve_short(side, system, short, out, row_loss))
        again = self._solve(side, system, rows, out, row_loss)
        if len(again):
            logger.warning("%d rows are nearly singular in %s, solved in float64", len(again), system.features.dtype)
            exact = np.zeros((count, free))
            refuse_singular(side, self._solve(side, system.in_dtype(np.dtype(np.float64)), again, exact, row_loss))
            out[again] = exact[again]
        return out, row_loss

    def _dual_pays(self, side: Side, system: System) -> bool:
        k = system.ridge.shape[1] - system.biases
        return system.rho == 0 or turning_pays(side.cells, k, len(system.features))

    def _turned(self, system: System, k: int) -> _Turned:
        """The turned features, which blocks of a half-step have in common."""
        last = self._last
        if last is None or last[0].features is not system.features or last[0].gramian is not system.gramian:
            last = self._last = (system, _Turned(system, k, self.threads))
        return last[1]

    def _in_lines(self, features: np.ndarray) -> np.ndarray:
        """Features in whole lines, which blocks of a half-step have in common."""
        if self._lined is None or self._lined[0] is not features:
            self._lined = None  # before its successor is made
            self._lined = (features, in_lines(features))
        return self._lined[1]

    def _solve(self, side: Side, system: System, rows: np.ndarray, out: np.ndarray, row_loss: np.ndarray) -> np.ndarray:
        """Some rows by Cholesky, into `out` and `row_loss`; returns those that are not positive definite."""
        from wals_spark.wals.kernels.exact import solve_rows

        if not len(rows):
            return rows
        cells, dense = _Cells(side, system), system.gramian.astype(out.dtype)
        features = self._in_lines(system.features)

        def work(chunk: np.ndarray) -> None:
            solve_rows(
                chunk, *cells.arrays, features, cells.h, dense, cells.g, cells.ridge, cells.rho, system.held,
                cells.pull, out, row_loss, failed, TILE,
            )  # fmt: skip

        failed = np.zeros(len(side.rows), np.int8)
        self._over(row_chunks(side, system.features.shape[1], self.threads, rows), work)
        return np.flatnonzero(failed)

    def _solve_short(
        self, side: Side, system: System, rows: np.ndarray, out: np.ndarray, row_loss: np.ndarray
    ) -> np.ndarray:
        """Some rows through their cells, into `out` and `row_loss`; returns those that cannot be solved so."""
        from wals_spark.wals.kernels.dual import solve_short_rows

        k = out.shape[1] - system.biases
        turned = self._turned(system, k)
        cells = _Cells(side, system)
        pull = turned.forward(cells.pull[:, :k])
        allowed = EXCESS_ALLOWED[out.dtype.name]

        def work(chunk: np.ndarray) -> None:
            solve_short_rows(
                chunk, *cells.arrays, turned.features, turned.values, turned.rest, turned.across, turned.inner,
                cells.h, cells.g, system.ridge, system.rho, system.held, pull, allowed, out, row_loss, failed,
            )  # fmt: skip

        failed = np.zeros(len(side.rows), np.int8)
        self._over(row_chunks(side, k, self.threads, rows), work)
        out[rows, :k] = turned.back(out[rows, :k])
        return np.flatnonzero(failed)

    def _over(self, chunks: Sequence[np.ndarray], work: Callable[[np.ndarray], None]) -> None:
        with one_blas_thread(), ThreadPoolExecutor(self.threads) as pool:
            list(pool.map(work, chunks))


class ConjugateGradientSolver(CpuSolver):
    """A few preconditioned steps from the rows as they are; for large k, where exact solutions cost too much.

    The basis is turned to the eigenvectors of the Gramian first, where the diagonal is a good preconditioner.
    Objectives with biases, and rows that are all zero yet, are solved exactly.
    """

    def __init__(self, threads: int, steps: int) -> None:
        super().__init__(threads)
        self.steps = steps

    def solve(self, side: Side, system: System) -> tuple[np.ndarray, np.ndarray]:
        from wals_spark.wals.kernels.conjugate_gradients import improve_rows

        if not _can_improve(system):
            return super().solve(side, system)
        assert system.start is not None
        turned, cells = self._turned(system, system.ridge.shape[1]), _Cells(side, system)
        out, row_loss = turned.forward(system.start), np.zeros(len(side.rows))
        dense = np.diag(turned.values).astype(out.dtype)

        def work(chunk: np.ndarray) -> None:
            improve_rows(
                chunk, *cells.arrays, turned.features, cells.h, dense, cells.g, cells.ridge, cells.rho, self.steps,
                out, row_loss,
            )  # fmt: skip

        self._over(row_chunks(side, out.shape[1], self.threads), work)
        return turned.back(out), row_loss


class BlockSolver(CpuSolver):
    """Blocks of coordinates in turn from the rows as they are (iALS++); for large k.

    Objectives with biases, and rows that are all zero yet, are solved exactly.
    """

    def __init__(self, threads: int, block: int) -> None:
        super().__init__(threads)
        self.block = block

    def solve(self, side: Side, system: System) -> tuple[np.ndarray, np.ndarray]:
        from wals_spark.wals.kernels.block import descend_rows

        if not _can_improve(system, pulled=True):
            return super().solve(side, system)
        assert system.start is not None
        turned, cells = self._turned(system, system.ridge.shape[1]), _Cells(side, system)
        out, row_loss = turned.forward(system.start), np.zeros(len(side.rows))
        pull = turned.forward(cells.pull)

        def work(chunk: np.ndarray) -> None:
            descend_rows(
                chunk, *cells.arrays, turned.features, turned.values, cells.h, cells.g, system.ridge, system.rho, pull,
                min(self.block, out.shape[1]), TILE, out, row_loss,
            )  # fmt: skip

        self._over(row_chunks(side, self.block, self.threads), work)
        return turned.back(out), row_loss


def _can_improve(system: System, *, pulled: bool = False) -> bool:
    """Whether there are rows to start from, and nothing beside factors."""
    if system.held.shape[1] or (system.pull is not None and not pulled):
        return False
    return system.start is not None and bool(system.start.any())


class _Cells:
    """What every kernel is told, in the precision of the features."""

    def __init__(self, side: Side, system: System) -> None:
        dtype = system.features.dtype
        m, d = side.m.astype(dtype, copy=False), side.d.astype(dtype, copy=False)
        self.arrays = (side.indptr, side.indices, m, d)
        self.h, self.g = system.h.astype(dtype), side.g.astype(dtype)
        self.ridge, self.rho = system.ridge.astype(dtype), dtype.type(system.rho)
        self.pull = np.zeros((0, system.ridge.shape[1])) if system.pull is None else system.pull


class _Turned:
    """The fixed side in the eigenbasis of the Gramian of its first k coordinates; as it is where rho is 0.

    Attributes
    ----------
    values : float64 array of shape (k,)
        Eigenvalues.
    features : array of shape (n, k in whole lines)
        See `wals_spark.wals.lines`.
    rest : array of shape (n, K - k)
        The other coordinates.
    across, inner : float64 arrays of shapes (k, K - k) and (K - k, K - k)
        Their part of the Gramian.
    """

    def __init__(self, system: System, k: int, threads: int) -> None:
        self.threads = threads
        gramian = system.gramian
        self.basis: np.ndarray | None = None
        self.values = np.zeros(k)
        if system.rho != 0:
            values, self.basis = np.linalg.eigh(gramian[:k, :k])
            self.values = np.maximum(values, 0.0)
        self.features = empty_lines(len(system.features), k, system.features.dtype)
        self._turn(system.features[:, :k], self.basis, self.features[:, :k])
        self.rest = np.ascontiguousarray(system.features[:, k:])
        self.across, self.inner = self.forward(gramian[:k, k:].T).T, np.ascontiguousarray(gramian[k:, k:])
        self.across = np.ascontiguousarray(self.across)

    def forward(self, x: np.ndarray) -> np.ndarray:
        """Rows in the eigenbasis."""
        return self._turn(x, self.basis)

    def back(self, x: np.ndarray) -> np.ndarray:
        """The inverse of `forward`."""
        return self._turn(x, None if self.basis is None else self.basis.T)

    def _turn(self, x: np.ndarray, basis: np.ndarray | None, out: np.ndarray | None = None) -> np.ndarray:
        out = np.empty_like(x, order="C") if out is None else out
        if basis is None:
            out[:] = x
            return out
        matrix = basis.astype(x.dtype)
        with one_blas_thread(), ThreadPoolExecutor(self.threads) as pool:
            parts = zip(np.array_split(x, self.threads), np.array_split(out, self.threads), strict=True)
            list(pool.map(lambda part: np.matmul(part[0], matrix, out=part[1]), parts))
        return out


def short_rows(lengths: np.ndarray, k: int) -> np.ndarray:
    """Which rows cost less through their cells than by Cholesky, a bool array of the shape of `lengths`."""
    return _won(lengths, k) > 0


def turning_pays(cells: np.ndarray, k: int, others: int) -> bool:
    """Whether the short ones among all rows of a side save more than turning the other side's rows costs.

    Parameters
    ----------
    cells : int64 array of shape (size,)
        Of all rows, whoever solves them: the answer must not depend on the ranks.
    k, others : int
        Factors, and rows of the other side.
    """
    return float(np.maximum(_won(cells, k), 0.0).sum()) > TURN * others * float(k) ** 2


def _won(lengths: np.ndarray, k: int) -> np.ndarray:
    """What the dual form saves, in multiplications at the speed of large products.

    ::

        Cholesky   n k^2 + k^3 / 3 + a k^2
        dual       n^2 k + n^3 / 3 + b n k + 2 k^2      the last for turning the solution back

    a and b stand for slower work and are measured, see `benchmarks/wals.py`.
    """
    n, width = lengths.astype(np.float64), float(k)
    primal = n * width**2 + width**3 / 3 + CHOLESKY_EXTRA * width**2
    dual = n**2 * width + n**3 / 3 + DUAL_EXTRA * n * width + TURN * width**2
    return np.where((n > 0) & (k >= DUAL_FROM), primal - dual, 0.0)


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
