"""The formulas of docs/objectives.md a cell at a time in plain Python: targets, weights, popularities, ridge, offsets.

Of the objective only the numbers and names of its fields are used, none of its methods.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from wals_spark.objective import Objective

Matrix = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Sums:
    """Of a dense matrix whose zeros are unobserved: r_i, c_j, numbers of cells that count, D and N."""

    rows: list[float]
    cols: list[float]
    row_cells: list[int]
    col_cells: list[int]

    @property
    def total(self) -> float:
        return sum(self.rows)

    @property
    def cells(self) -> int:
        return sum(self.row_cells)


def sums_of(objective: Objective, x: Matrix) -> Sums:
    """Preferences (target one) count where they are positive, all others where they are not 0."""
    columns = list(zip(*x, strict=True))
    counted = (lambda value: value > 0) if objective.target == "one" else (lambda value: value != 0)
    return Sums(
        [math.fsum(row) for row in x],
        [math.fsum(column) for column in columns],
        [sum(map(counted, row)) for row in x],
        [sum(map(counted, column)) for column in columns],
    )


def popularity(objective: Objective, sums: Sequence[float], cells: Sequence[int], i: int) -> float:
    """``g_i = max((r_i / geometric mean of r)^exponent, floor)``, 0 for an empty row, 1 with exponent 0."""
    if not cells[i]:
        return 0.0
    if objective.popularity_exponent == 0:
        return 1.0
    filled = [value for value, number in zip(sums, cells, strict=True) if number]
    mean = math.exp(math.fsum(map(math.log, filled)) / len(filled))
    return max((sums[i] / mean) ** objective.popularity_exponent, objective.popularity_floor)


def regularizer(objective: Objective, cells: Sequence[int], others: int, i: int) -> float:
    """``lambda (n_i + rho n)^nu``, an empty row as if it had one cell."""
    unobserved = objective.rho * others if objective.unobserved_regularize else 0.0
    return float(objective.regularization * (max(cells[i], 1) + unobserved) ** objective.regularization_exponent)


def offset(objective: Objective, sums: Sums, i: int) -> float:
    """b_i: half of ln D less than ln r_i, or half the mean less than the row's mean; 0 for an empty row."""
    if not sums.row_cells[i]:
        return 0.0
    if objective.target == "value":
        return sums.rows[i] / sums.row_cells[i] - sums.total / sums.cells / 2.0
    a = objective.marginal_smoothing
    return math.log((sums.rows[i] + a) / math.sqrt(sums.total + a))


def target(objective: Objective, x: float, sums: Sums, i: int, j: int) -> float:
    """m_ij before it is clipped."""
    if objective.target == "pmi":
        a, power = objective.marginal_smoothing, objective.context_smoothing
        total = math.fsum(c**power for c in sums.cols) + a
        return math.log(x * total / ((sums.rows[i] + a) * (sums.cols[j] + a) ** power * objective.shift))
    if objective.target == "log_conditional":
        return math.log(x / sums.rows[i])
    if objective.target == "smoothed_conditional":
        return math.log(1.0 + x / objective.shift)
    if objective.target == "log":
        return math.log(x)
    if objective.target == "one":
        return objective.scale if x > 0 else 0.0
    assert objective.target == "value"
    return x


def weight(objective: Objective, x: float) -> float:
    """w_ij where it is a function of the count."""
    if objective.weight == "power":
        return float(min(x / objective.x_max, 1.0) ** objective.weight_exponent)
    if objective.weight == "root":
        return math.sqrt(x) / 2.0
    if objective.weight == "confidence":
        return objective.alpha * abs(x)
    assert objective.weight == "constant"
    return objective.constant


def cell(objective: Objective, x: Matrix, i: int, j: int, given: float | None = None) -> tuple[float, float]:
    """m_ij and d_ij of an observed cell.

    Parameters
    ----------
    objective : Objective
    x : matrix of shape (m, n)
    i, j : int
    given : float, optional
        The weight that comes with the cell.

    Returns
    -------
    m, d : float
    """
    sums = sums_of(objective, x)
    m = target(objective, x[i][j], sums, i, j)
    w = weight(objective, x[i][j]) if given is None else given
    g = popularity(objective, sums.rows, sums.row_cells, i)
    h = popularity(objective, sums.cols, sums.col_cells, j)
    d = w if objective.additive else w - objective.rho * g * h
    if objective.clipped_are_unobserved and m <= 0:
        d = 0.0
    return max(m, 0.0) if objective.clipped else m, d
