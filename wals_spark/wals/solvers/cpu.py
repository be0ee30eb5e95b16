"""Half-steps on the processors: choose the kernel for each row, feed it rows, check what comes back."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from wals_spark.errors import InputError
from wals_spark.wals.solvers.kernels.arguments import CsrArrays, FixedSide, RotatedSide, RowTerms, Solution
from wals_spark.wals.solvers.row_block import RowBlock
from wals_spark.wals.solvers.system import EigenBasis, FixedFactors, System, one_blas_thread

logger = logging.getLogger(__name__)

TILE = 128
"""Cells gathered at once: two panels of 128 lines fit the first cache."""
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

        Parameters
        ----------
        block : RowBlock
        system : System

        Returns
        -------
        x : array of shape (r, solved coordinates), of the dtype of the fixed factors
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
        Rows that cost less so are solved through a system of the size of their cells, see
        `wals_spark.wals.solvers.kernels.woodbury`; all others, and those that this cannot solve, by Cholesky.
    """

    def __init__(self, threads: int, *, woodbury: bool = False) -> None:
        self.threads, self.woodbury = threads, woodbury

    def solve(self, block: RowBlock, system: System) -> tuple[np.ndarray, np.ndarray]:
        """As `Solver.solve`."""
        count, free = system.ridge.shape
        dtype = system.fixed_factors.z.dtype
        x, row_loss = np.zeros((count, free), dtype), np.zeros(count)
        short = np.zeros(0, np.int64)
        if self.woodbury and (system.fixed_factors.rho == 0 or system.rotation_pays):
            short = np.flatnonzero(short_rows(block.lengths, free - system.biases))
        rows = np.setdiff1d(np.arange(count), short, assume_unique=True)
        if len(short):
            rows = np.union1d(rows, self._solve_by_woodbury(block, system, short, x, row_loss))
        again = self._solve_by_cholesky(block, system, rows, x, row_loss)
        if len(again):
            logger.warning("%d rows are nearly singular in %s, solved in float64", len(again), dtype)
            exact, double = np.zeros((count, free)), system.astype(np.dtype(np.float64))
            refuse_singular(block, self._solve_by_cholesky(block, double, again, exact, row_loss))
            x[again] = exact[again]
        return x, row_loss

    def _solve_by_cholesky(
        self, block: RowBlock, system: System, rows: np.ndarray, x: np.ndarray, row_loss: np.ndarray
    ) -> np.ndarray:
        """Some rows by Cholesky, into `x` and `row_loss`; returns those that are not positive definite."""
        from wals_spark.wals.solvers.kernels.normal_equations import solve_rows

        if not len(rows):
            return rows
        fixed = _fixed_side(system.fixed_factors, system.fixed_factors.padded, system.fixed_factors.gramian)
        cells, terms = _csr_arrays(block, x.dtype), _row_terms(block, system, x.dtype)
        solution = Solution(x, row_loss, np.zeros(len(block), np.int8))
        self._run(
            row_chunks(block, system.fixed_factors.z.shape[1], self.threads, rows),
            lambda chunk: solve_rows(chunk, cells, fixed, terms, solution, TILE),
        )
        return np.flatnonzero(solution.failed)

    def _solve_by_woodbury(
        self, block: RowBlock, system: System, rows: np.ndarray, x: np.ndarray, row_loss: np.ndarray
    ) -> np.ndarray:
        """Some rows through their cells, into `x` and `row_loss`; returns those that cannot be solved so."""
        from wals_spark.wals.solvers.kernels.woodbury import solve_short_rows

        k = x.shape[1] - system.biases
        rotated = system.fixed_factors.in_eigenbasis(k, self.threads)
        fixed, cells = _rotated_side(system.fixed_factors, rotated), _csr_arrays(block, x.dtype)
        terms = _rotated_terms(block, system, rotated, k)
        solution = Solution(x, row_loss, np.zeros(len(block), np.int8))
        allowed = EXCESS_ALLOWED[x.dtype.name]
        self._run(
            row_chunks(block, k, self.threads, rows),
            lambda chunk: solve_short_rows(chunk, cells, fixed, terms, solution, allowed),
        )
        x[rows, :k] = rotated.back(x[rows, :k])
        return np.flatnonzero(solution.failed)

    def _run(self, chunks: Sequence[np.ndarray], work: Callable[[np.ndarray], None]) -> None:
        with one_blas_thread(), ThreadPoolExecutor(self.threads) as pool:
            list(pool.map(work, chunks))


class ConjugateGradientSolver(CpuSolver):
    """A few preconditioned steps from the rows as they are; for large k, where exact solutions cost too much.

    The basis is rotated to the eigenvectors of the Gramian first, where the diagonal is a good preconditioner.
    Objectives with biases, and rows that are all zero yet, are solved exactly.

    Parameters
    ----------
    threads : int
    steps : int
    """

    def __init__(self, threads: int, steps: int) -> None:
        super().__init__(threads)
        self.steps = steps

    def solve(self, block: RowBlock, system: System) -> tuple[np.ndarray, np.ndarray]:
        """As `Solver.solve`; the rows after their steps, and their losses there."""
        from wals_spark.wals.solvers.kernels.conjugate_gradient import refine_rows

        if not _can_improve(system) or system.linear_term is not None:
            return super().solve(block, system)
        assert system.start is not None
        rotated = system.fixed_factors.in_eigenbasis(system.ridge.shape[1], self.threads)
        x, row_loss = rotated.forward(system.start), np.zeros(len(block))
        fixed = _fixed_side(system.fixed_factors, rotated.z, np.diag(rotated.eigenvalues))
        cells, terms = _csr_arrays(block, x.dtype), _row_terms(block, system, x.dtype)
        solution = Solution(x, row_loss, np.zeros(len(block), np.int8))
        self._run(
            row_chunks(block, x.shape[1], self.threads),
            lambda chunk: refine_rows(chunk, cells, fixed, terms, solution, self.steps),
        )
        return rotated.back(x), row_loss


class BlockSolver(CpuSolver):
    """Blocks of coordinates in turn from the rows as they are (iALS++); for large k.

    Objectives with biases, and rows that are all zero yet, are solved exactly.

    Parameters
    ----------
    threads : int
    width : int
        Coordinates of a block.
    """

    def __init__(self, threads: int, width: int) -> None:
        super().__init__(threads)
        self.width = width

    def solve(self, block: RowBlock, system: System) -> tuple[np.ndarray, np.ndarray]:
        """As `Solver.solve`; the rows after a pass over their coordinates, and their losses there."""
        from wals_spark.wals.solvers.kernels.block_coordinate_descent import descend_rows

        if not _can_improve(system):
            return super().solve(block, system)
        assert system.start is not None
        k = system.ridge.shape[1]
        rotated = system.fixed_factors.in_eigenbasis(k, self.threads)
        x, row_loss = rotated.forward(system.start), np.zeros(len(block))
        fixed, cells = _rotated_side(system.fixed_factors, rotated), _csr_arrays(block, x.dtype)
        terms = _rotated_terms(block, system, rotated, k)
        solution, width = Solution(x, row_loss, np.zeros(len(block), np.int8)), min(self.width, k)
        self._run(
            row_chunks(block, self.width, self.threads),
            lambda chunk: descend_rows(chunk, cells, fixed, terms, solution, width, TILE),
        )
        return rotated.back(x), row_loss


def _can_improve(system: System) -> bool:
    """Whether there are rows to start from, and nothing beside factors."""
    return not system.known.shape[1] and system.start is not None and bool(system.start.any())


def _csr_arrays(block: RowBlock, dtype: np.dtype) -> CsrArrays:
    m, d = block.target.astype(dtype, copy=False), block.weight.astype(dtype, copy=False)
    return CsrArrays(block.indptr, block.indices, m, d)


def _fixed_side(fixed: FixedFactors, z: np.ndarray, gramian: np.ndarray) -> FixedSide:
    dtype = z.dtype
    return FixedSide(z, fixed.h.astype(dtype), gramian.astype(dtype), dtype.type(fixed.rho))


def _rotated_side(fixed: FixedFactors, basis: EigenBasis) -> RotatedSide:
    h = fixed.h.astype(basis.z.dtype)
    return RotatedSide(basis.z, h, basis.eigenvalues, basis.rest, basis.cross, basis.corner, fixed.rho)


def _row_terms(block: RowBlock, system: System, dtype: np.dtype) -> RowTerms:
    """In the precision of the factors."""
    return RowTerms(block.popularity.astype(dtype), system.ridge.astype(dtype), system.known, _linear_term(system))


def _rotated_terms(block: RowBlock, system: System, basis: EigenBasis, k: int) -> RowTerms:
    """With the ridge in float64 and the linear term of k factors in the eigenbasis."""
    g = block.popularity.astype(basis.z.dtype)
    return RowTerms(g, system.ridge, system.known, basis.forward(_linear_term(system)[:, :k]))


def _linear_term(system: System) -> np.ndarray:
    return np.zeros((0, system.ridge.shape[1])) if system.linear_term is None else system.linear_term


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
    """Rows of a block in falling order of cost, cut into chunks of nearly equal cost.

    Parameters
    ----------
    block : RowBlock
    width : int
        A row of n cells costs n + width / 3, in units of width^2.
    threads : int
        There are at most `CHUNKS_PER_THREAD` chunks for each.
    rows : int64 array, optional
        Which rows; None = all.

    Returns
    -------
    list of int64 array
    """
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
