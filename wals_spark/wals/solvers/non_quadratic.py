"""Objectives that are not quadratic in one side, a half-step at a time.

A half-step first evaluates: a pass over the cells with the factors as they are gives the exact loss, and what the
update of the rows needs. Then every row is updated so that the loss cannot rise.
"""

from __future__ import annotations

from wals_spark.objective import Objective
from wals_spark.wals.solvers.gauss_newton import SquaredNormGaussNewton
from wals_spark.wals.solvers.majorization import SoftplusMajorization
from wals_spark.wals.solvers.row_update import RowUpdate


def make_row_update(objective: Objective, threads: int) -> RowUpdate | None:
    """What updates the rows of an objective; None where it is quadratic in each side."""
    if objective.is_quadratic:
        return None
    kind = SquaredNormGaussNewton if objective.prediction == "squared_norm" else SoftplusMajorization
    return kind(threads)
