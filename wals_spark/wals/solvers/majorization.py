"""Swivel's loss by majorization-minimization: parabolas above the softplus of every unobserved cell.

::

    ln(1 + exp x) <= ln(1 + exp x0) + sigmoid(x0) (x - x0) + (x - x0)^2 / 8

with equality at x0, where the factors are. The bound is the quadratic objective with rho = 1/8 and one more term in the
right-hand sides, so the exact half-step minimises it. An evaluation goes over every cell of the dense matrix: 4 m n k
operations in blocks, as Swivel itself, for a loss that no Gramian gives. The processors do it, also where a rank has a
GPU.

References
----------
Shazeer, Doherty, Evans and Waterson, "Swivel: improving embeddings by noticing what's missing", 2016.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from wals_spark.objective import SOFTPLUS_CURVATURE
from wals_spark.wals.solvers.cpu import CpuSolver, Solver
from wals_spark.wals.solvers.kernels.arguments import CsrArrays
from wals_spark.wals.solvers.row_block import RowBlock
from wals_spark.wals.solvers.row_update import Offsets, RowUpdate
from wals_spark.wals.solvers.system import System, one_blas_thread

DENSE_ROWS, DENSE_COLS = 256, 4096
"""Cells whose predictions are in memory at once, per thread."""


class SoftplusMajorization(RowUpdate):
    """The exact minimum of the bound, for ``swivel``; see the module.

    Attributes
    ----------
    linear_term : float64 array of shape (r, k)
        Of the last `evaluate`: the negative half of the gradient of the unobserved cells' loss, without the part that
        the bound's Gramian gives.
    """

    linear_term: np.ndarray

    def evaluate(self, block: RowBlock, start: np.ndarray, z: np.ndarray, offsets: Offsets) -> np.ndarray:
        """The loss of every row, see `RowUpdate.evaluate`; keeps the bound's linear term.

        Parameters
        ----------
        block : RowBlock
        start : array of shape (r, k)
        z : array of shape (n, k)
        offsets : Offsets

        Returns
        -------
        float64 array of shape (r, 1)
        """
        from wals_spark.wals.solvers.kernels.softplus import expand_cells

        dtype = z.dtype
        own, others, filled = (array.astype(dtype) for array in offsets)
        self.linear_term = np.zeros((len(block), z.shape[1]))
        row_loss = np.zeros(len(block))
        cells = CsrArrays(block.indptr, block.indices, block.target, block.weight)
        rho = dtype.type(SOFTPLUS_CURVATURE)

        def expand(begin: int) -> None:
            rows = np.arange(begin, min(begin + DENSE_ROWS, len(block)))
            for first in range(0, len(z), DENSE_COLS):
                cols = slice(first, first + DENSE_COLS)
                s = start[rows] @ z[cols].T  # (B, C)
                gradient = np.empty_like(s)
                expand_cells(
                    rows, first, cells, rho, Offsets(own[rows], others[cols], filled[cols]), s, gradient, row_loss
                )
                self.linear_term[rows] += gradient @ z[cols]

        with one_blas_thread(), ThreadPoolExecutor(self.threads) as pool:
            list(pool.map(expand, range(0, len(block), DENSE_ROWS)))
        return row_loss[:, None]

    def loss(self, sums: np.ndarray) -> float:
        """The sum of all rows' losses."""
        return float(sums.sum())

    def update_rows(self, block: RowBlock, system: System, solver: Solver) -> np.ndarray:
        """The rows that minimise the bound; shape (r, k)."""
        assert system.start is not None
        fixed = system.fixed_factors
        linear_term = self.linear_term + fixed.rho * (system.start @ fixed.gramian)
        if not isinstance(solver, CpuSolver):
            solver = CpuSolver(self.threads, woodbury=True)
        solved, _ = solver.solve(block, replace(system, linear_term=linear_term))
        return solved
