"""One half-step on a rank: choose the kernel, feed it rows, check what comes back."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from wals_spark.errors import InputError
from wals_spark.wals.solvers.row_block import RowBlock
from wals_spark.wals.solvers.system import System, one_blas_thread

logger = logging.getLogger(__name__)

TILE = 128
"""Cells gathered at once: two panels of so many lines fit the first cache."""
CHUNKS_PER_THREAD = 32
EXCESS_ALLOWED = {"float32": 1e-7, "float64": 1e-15}
"""Woodbury form: how far a row's loss may be above its minimum, relatively, before it is solved by Cholesky."""
CHOLESKY_OVERHEAD, WOODBURY_OVERHEAD, ROTATION_COST = 40.0, 70.0, 2.0
"""Slower work of both forms, in the units of `_woodbury_saving`."""
WOODBURY_MIN_K = 64
"""Factors from which the Woodbury form is tried: below, Cholesky is quick, and compiling another kernel is not."""


class Solver(ABC):
    """Solves the rows of a block."""

    @abstractmethod
    def solve(self, block: RowBlock, system: System) -> tuple[np.ndarray, np.ndarray]:
        """The solution and the loss of every row.

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
    woodbury : bool
        Rows with so few cells that it costs less are solved through a system of the size of their cells, see
        `wals_spark.wals.solvers.kernels.woodbury`; all others, and those that this cannot solve, by Cholesky.
    """

    def __init__(self, threads: int, *, woodbury: bool = False) -> None:
        self.threads, self.woodbury = threads, woodbury

    def solve(self, block: RowBlock, system: System) -> tuple[np.ndarray, np.ndarray]:
        count, free = system.ridge.shape
        out, row_loss = np.zeros((count, free), system.fixed_factors.z.dtype), np.zeros(count)
        short = np.zeros(0, np.int64)
        if self.woodbury and (system.fixed_factors.rho == 0 or system.rotation_pays):
            short = np.flatnonzero(short_rows(block.lengths, free - system.biases))
        rows = np.setdiff1d(np.arange(count), short, assume_unique=True)
        if len(short):
            rows = np.union1d(rows, self._solve_by_woodbury(block, system, short, out, row_loss))
        again = self._solve_by_cholesky(block, system, rows, out, row_loss)
        if len(again):
            logger.warning(
                "%d rows are nearly singular in %s, solved in float64", len(again), system.fixed_factors.z.dtype
            )
            exact = np.zeros((count, free))
            refuse_singular(
                block, self._solve_by_cholesky(block, system.astype(np.dtype(np.float64)), again, exact, row_loss)
            )
            out[again] = exact[again]
        return out, row_loss

    def _solve_by_cholesky(
        self, block: RowBlock, system: System, rows: np.ndarray, out: np.ndarray, row_loss: np.ndarray
    ) -> np.ndarray:
        """Some rows by Cholesky, into `out` and `row_loss`; returns those that are not positive definite."""
        from wals_spark.wals.solvers.kernels.normal_equations import solve_rows

        if not len(rows):
            return rows
        cells, dense = _Cells(block, system), system.fixed_factors.gramian.astype(out.dtype)
        features = system.fixed_factors.padded

        def work(chunk: np.ndarray) -> None:
            solve_rows(
                chunk, *cells.arrays, features, cells.h, dense, cells.g, cells.ridge, cells.rho, system.known,
                cells.pull, out, row_loss, failed, TILE,
            )  # fmt: skip

        failed = np.zeros(len(block), np.int8)
        self._run(row_chunks(block, system.fixed_factors.z.shape[1], self.threads, rows), work)
        return np.flatnonzero(failed)

    def _solve_by_woodbury(
        self, block: RowBlock, system: System, rows: np.ndarray, out: np.ndarray, row_loss: np.ndarray
    ) -> np.ndarray:
        """Some rows through their cells, into `out` and `row_loss`; returns those that cannot be solved so."""
        from wals_spark.wals.solvers.kernels.woodbury import solve_short_rows

        k = out.shape[1] - system.biases
        fixed = system.fixed_factors
        rotated = fixed.in_eigenbasis(k, self.threads)
        cells = _Cells(block, system)
        pull = rotated.forward(cells.pull[:, :k])
        allowed = EXCESS_ALLOWED[out.dtype.name]

        def work(chunk: np.ndarray) -> None:
            solve_short_rows(
                chunk, *cells.arrays, rotated.features, rotated.values, rotated.rest, rotated.across, rotated.inner,
                cells.h, cells.g, system.ridge, fixed.rho, system.known, pull, allowed, out, row_loss, failed,
            )  # fmt: skip

        failed = np.zeros(len(block), np.int8)
        self._run(row_chunks(block, k, self.threads, rows), work)
        out[rows, :k] = rotated.back(out[rows, :k])
        return np.flatnonzero(failed)

    def _run(self, chunks: Sequence[np.ndarray], work: Callable[[np.ndarray], None]) -> None:
        with one_blas_thread(), ThreadPoolExecutor(self.threads) as pool:
            list(pool.map(work, chunks))


class ConjugateGradientSolver(CpuSolver):
    """A few preconditioned steps from the rows as they are; for large k, where exact solutions cost too much.

    The basis is rotated to the eigenvectors of the Gramian first, where the diagonal is a good preconditioner.
    Objectives with biases, and rows that are all zero yet, are solved exactly.
    """

    def __init__(self, threads: int, steps: int) -> None:
        super().__init__(threads)
        self.steps = steps

    def solve(self, block: RowBlock, system: System) -> tuple[np.ndarray, np.ndarray]:
        from wals_spark.wals.solvers.kernels.conjugate_gradient import improve_rows

        if not _can_improve(system):
            return super().solve(block, system)
        assert system.start is not None
        cells = _Cells(block, system)
        rotated = system.fixed_factors.in_eigenbasis(system.ridge.shape[1], self.threads)
        out, row_loss = rotated.forward(system.start), np.zeros(len(block))
        dense = np.diag(rotated.values).astype(out.dtype)

        def work(chunk: np.ndarray) -> None:
            improve_rows(
                chunk, *cells.arrays, rotated.features, cells.h, dense, cells.g, cells.ridge, cells.rho, self.steps,
                out, row_loss,
            )  # fmt: skip

        self._run(row_chunks(block, out.shape[1], self.threads), work)
        return rotated.back(out), row_loss


class BlockSolver(CpuSolver):
    """Blocks of coordinates in turn from the rows as they are (iALS++); for large k.

    Objectives with biases, and rows that are all zero yet, are solved exactly.
    """

    def __init__(self, threads: int, width: int) -> None:
        super().__init__(threads)
        self.width = width

    def solve(self, block: RowBlock, system: System) -> tuple[np.ndarray, np.ndarray]:
        from wals_spark.wals.solvers.kernels.block_coordinate_descent import descend_rows

        if not _can_improve(system, linear=True):
            return super().solve(block, system)
        assert system.start is not None
        fixed, cells = system.fixed_factors, _Cells(block, system)
        rotated = fixed.in_eigenbasis(system.ridge.shape[1], self.threads)
        out, row_loss = rotated.forward(system.start), np.zeros(len(block))
        pull = rotated.forward(cells.pull)

        def work(chunk: np.ndarray) -> None:
            descend_rows(
                chunk, *cells.arrays, rotated.features, rotated.values, cells.h, cells.g, system.ridge, fixed.rho, pull,
                min(self.width, out.shape[1]), TILE, out, row_loss,
            )  # fmt: skip

        self._run(row_chunks(block, self.width, self.threads), work)
        return rotated.back(out), row_loss


def _can_improve(system: System, *, linear: bool = False) -> bool:
    """Whether there are rows to start from, and nothing beside factors."""
    if system.known.shape[1] or (system.linear_term is not None and not linear):
        return False
    return system.start is not None and bool(system.start.any())


class _Cells:
    """What every kernel is told, in the precision of the features."""

    def __init__(self, block: RowBlock, system: System) -> None:
        dtype = system.fixed_factors.z.dtype
        m, d = block.target.astype(dtype, copy=False), block.weight.astype(dtype, copy=False)
        self.arrays = (block.indptr, block.indices, m, d)
        self.h, self.g = system.fixed_factors.h.astype(dtype), block.popularity.astype(dtype)
        self.ridge, self.rho = system.ridge.astype(dtype), dtype.type(system.fixed_factors.rho)
        self.pull = np.zeros((0, system.ridge.shape[1])) if system.linear_term is None else system.linear_term


def short_rows(lengths: np.ndarray, k: int) -> np.ndarray:
    """Which rows cost less through their cells than by Cholesky, a bool array of the shape of `lengths`."""
    return _woodbury_saving(lengths, k) > 0


def rotation_pays(cell_counts: np.ndarray, k: int, others: int) -> bool:
    """Whether the short ones among all rows of a side save more than rotating the fixed factors costs.

    Parameters
    ----------
    cell_counts : int64 array of shape (size,)
        Of all rows, whoever solves them: the answer must not depend on the ranks.
    k, others : int
        Factors, and rows of the other side.
    """
    return float(np.maximum(_woodbury_saving(cell_counts, k), 0.0).sum()) > ROTATION_COST * others * float(k) ** 2


def _woodbury_saving(lengths: np.ndarray, k: int) -> np.ndarray:
    """What the Woodbury form saves, in multiplications at the speed of large products.

    ::

        Cholesky   n k^2 + k^3 / 3 + a k^2
        Woodbury   n^2 k + n^3 / 3 + b n k + 2 k^2      the last for rotating the solution back

    a and b stand for slower work and are measured, see `benchmarks/wals.py`.
    """
    n, width = lengths.astype(np.float64), float(k)
    cholesky = n * width**2 + width**3 / 3 + CHOLESKY_OVERHEAD * width**2
    woodbury = n**2 * width + n**3 / 3 + WOODBURY_OVERHEAD * n * width + ROTATION_COST * width**2
    return np.where((n > 0) & (k >= WOODBURY_MIN_K), cholesky - woodbury, 0.0)


def row_chunks(block: RowBlock, width: int, threads: int, rows: np.ndarray | None = None) -> list[np.ndarray]:
    """Rows of a block (all, or some) in falling order of cost, cut into pieces of nearly equal cost."""
    rows = np.arange(len(block)) if rows is None else rows
    cost = block.lengths[rows] + width / 3
    order = np.argsort(-cost, kind="stable")
    ends = np.cumsum(cost[order])
    if not len(ends):
        return []
    pieces = threads * CHUNKS_PER_THREAD
    bounds = np.unique(np.searchsorted(ends, ends[-1] * np.arange(1, pieces) / pieces))
    return [piece for piece in np.split(rows[order], bounds) if len(piece)]


def refuse_singular(block: RowBlock, failed: np.ndarray) -> None:
    """Raise for rows without a unique solution."""
    if len(failed):
        ids = ", ".join(str(int(block.ids[i])) for i in failed[:5])
        raise InputError(
            f"{len(failed)} rows have no unique solution (ids {ids}{', ...' if len(failed) > 5 else ''}): fewer cells "
            "than factors and hardly any regularisation; raise train.regularization or train.rho, or lower train.k"
        )
