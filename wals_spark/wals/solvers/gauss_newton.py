"""``sum w (m - z - |u_i + v_j|^2)^2``, quartic in a row, by a damped Gauss-Newton step per row.

z, the constant of the predictions, is ``sum w e / sum w`` with ``e = m - |u_i + v_j|^2``, in closed form. The
processors do it, also where a rank has a GPU.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from wals_spark.wals.solvers.cpu import TILE, Solver, row_chunks
from wals_spark.wals.solvers.kernels.arguments import CsrArrays
from wals_spark.wals.solvers.row_block import RowBlock
from wals_spark.wals.solvers.row_update import Offsets, RowUpdate
from wals_spark.wals.solvers.system import System


class SquaredNormGaussNewton(RowUpdate):
    """A step per row, halved until the row's loss falls, for ``squared_norm``; see the module.

    Attributes
    ----------
    constant : float
        z, from the last `loss`.
    """

    def evaluate(self, block: RowBlock, start: np.ndarray, z: np.ndarray, offsets: Offsets) -> np.ndarray:
        """Sums of w, w e and w e^2 of every row, see `RowUpdate.evaluate`.

        Parameters
        ----------
        block : RowBlock
        start : array of shape (r, k)
        z : array of shape (n, k)
        offsets : Offsets
            Not used.

        Returns
        -------
        float64 array of shape (r, 3)
        """
        from wals_spark.wals.solvers.kernels.gauss_newton import sum_residuals

        sums, cells = np.zeros((len(block), 3)), CsrArrays(block.indptr, block.indices, block.target, block.weight)

        def add(rows: np.ndarray) -> None:
            sum_residuals(rows, cells, z, start, sums)

        with ThreadPoolExecutor(self.threads) as pool:
            list(pool.map(add, row_chunks(block, z.shape[1], self.threads)))
        return sums

    def loss(self, sums: np.ndarray) -> float:
        """``sum w (e - z)^2`` for the best z."""
        weight, first, second = sums.sum(0)
        self.constant = float(first / weight)
        return float(second - first * self.constant)

    def update_rows(self, block: RowBlock, system: System, solver: Solver) -> np.ndarray:
        """The rows after their step, at the z of the last `loss`; shape (r, k)."""
        from wals_spark.wals.solvers.kernels.gauss_newton import step_rows

        assert system.start is not None
        cells = CsrArrays(block.indptr, block.indices, block.target, block.weight)
        v, out = system.fixed_factors.z, system.start.copy()

        def work(rows: np.ndarray) -> None:
            step_rows(rows, cells, v, self.constant, system.ridge[:, 0], out, TILE)

        with ThreadPoolExecutor(self.threads) as pool:
            list(pool.map(work, row_chunks(block, out.shape[1], self.threads)))
        return out
