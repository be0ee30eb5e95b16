"""Half-steps without negative factors, on the processors, in float64."""

from __future__ import annotations

import numpy as np

from wals_spark.wals.solvers.cpu import CpuSolver, refuse_singular, row_chunks
from wals_spark.wals.solvers.kernels.arguments import CsrArrays, FixedSide, RowTerms, Solution
from wals_spark.wals.solvers.row_block import RowBlock
from wals_spark.wals.solvers.system import System


class NonnegativeSolver(CpuSolver):
    """The exact minimum of every row over factors that are not negative; without biases.

    Parameters
    ----------
    threads : int
    """

    def solve(self, block: RowBlock, system: System) -> tuple[np.ndarray, np.ndarray]:
        """As `Solver.solve`."""
        from wals_spark.wals.solvers.kernels.nonnegative import solve_rows_nonnegative

        fixed, double = system.fixed_factors, np.dtype(np.float64)
        z = np.ascontiguousarray(fixed.z, double)
        cells = CsrArrays(block.indptr, block.indices, block.target.astype(double), block.weight.astype(double))
        side = FixedSide(z, fixed.h.astype(double), np.ascontiguousarray(fixed.gramian, double), float(fixed.rho))
        terms = RowTerms(block.popularity.astype(double), system.ridge.astype(double), system.known, np.zeros((0, 0)))
        x = np.zeros(system.ridge.shape, fixed.z.dtype)
        solution = Solution(x, np.zeros(len(block)), np.zeros(len(block), np.int8))
        self._run(
            row_chunks(block, z.shape[1], self.threads),
            lambda chunk: solve_rows_nonnegative(chunk, cells, side, terms, solution),
        )
        refuse_singular(block, np.flatnonzero(solution.failed))
        return solution.x, solution.row_loss
