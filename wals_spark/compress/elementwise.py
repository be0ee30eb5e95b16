r"""Low-rank factors under a weight for every entry, which have no closed form: alternating sweeps by the WALS solvers.

::

    minimise  sum_ij w_ij (x_ij - u_i.v_j)^2 + lambda (sum_i |u_i|^2 + sum_j |v_j|^2)

Every entry is an observed cell of the engine's objective (rho = 0), so the loss after every half-sweep is exact. The
rows are solved first, for columns that come from the closed form with the rows' mean weights.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass

import numpy as np

from wals_spark.progress import Progress
from wals_spark.wals.engine.convergence import has_converged
from wals_spark.wals.solvers.cpu import ConjugateGradientSolver, CpuSolver, Solver
from wals_spark.wals.solvers.row_block import RowBlock
from wals_spark.wals.solvers.system import FixedFactors, System

logger = logging.getLogger(__name__)

EXACT_UP_TO = 192
"""Ranks up to this are solved by Cholesky, higher ones by `STEPS` steps of conjugate gradients: both lower the loss in
every half-sweep."""
STEPS = 6


@dataclass(frozen=True)
class WeightedFactors:
    """Factors after the last sweep.

    Attributes
    ----------
    rows : float array of shape (V, r)
        U.
    basis : float array of shape (r, d)
        V^T.
    losses : list of float
        The objective after every half-sweep, rows first.
    """

    rows: np.ndarray
    basis: np.ndarray
    losses: list[float]


def weighted_least_squares(
    X: np.ndarray,
    weights: np.ndarray,
    basis: np.ndarray,
    *,
    sweeps: int,
    ridge: float,
    tolerance: float,
    precision: str = "float32",
    threads: int | None = None,
) -> WeightedFactors:
    """Sweep until the loss decreases no more.

    Parameters
    ----------
    X : float array of shape (V, d)
        The centred matrix.
    weights : float array of shape (V, d)
        w, above 0.
    basis : float array of shape (r, d)
        Where the columns start.
    sweeps : int
        At most.
    ridge : float
        lambda, above 0.
    tolerance : float
        Relative decrease of the loss in a sweep below which it ends.
    precision : {"float32", "float64"}
    threads : int, optional
        None = one per core.

    Returns
    -------
    WeightedFactors
    """
    dtype = np.dtype(precision)
    threads = threads or len(os.sched_getaffinity(0))
    blocks = [_row_block(X.astype(dtype, copy=False), weights.astype(dtype, copy=False))]
    blocks.append(_row_block(blocks[0].target.reshape(X.shape).T, blocks[0].weight.reshape(X.shape).T))
    solver: Solver = CpuSolver(threads) if len(basis) <= EXACT_UP_TO else ConjugateGradientSolver(threads, STEPS)
    factors = [np.zeros((len(X), len(basis)), dtype), np.ascontiguousarray(basis.T, dtype)]
    losses: list[float] = []
    with Progress("fisher", 2 * sweeps, "half-sweeps") as progress:
        for half in range(2 * sweeps):
            own, other = half % 2, 1 - half % 2
            factors[own], row_loss = solver.solve(blocks[own], _system(factors[other], factors[own], ridge))
            losses.append(float(row_loss.sum()) + ridge * float((factors[other].astype(np.float64) ** 2).sum()))
            progress.update(half + 1, loss=losses[-1])
            if own == 1 and has_converged(losses, tolerance):
                break
    return WeightedFactors(factors[0], factors[1].T, losses)


def _row_block(targets: np.ndarray, weights: np.ndarray) -> RowBlock:
    """Every entry of a dense matrix as an observed cell."""
    size, width = targets.shape
    return RowBlock(
        ids=np.arange(size),
        indptr=np.arange(size + 1) * width,
        indices=np.tile(np.arange(width, dtype=np.int32), size),
        target=np.ascontiguousarray(targets).reshape(-1),
        weight=np.ascontiguousarray(weights).reshape(-1),
        popularity=np.zeros(size),
    )


def _system(fixed: np.ndarray, start: np.ndarray, ridge: float) -> System:
    width = fixed.shape[1]
    return System(
        FixedFactors(fixed, np.zeros(len(fixed)), np.zeros((width, width)), rho=0.0),
        known=np.zeros((len(start), 0)),
        ridge=np.full((len(start), width), ridge),
        start=start,
    )
