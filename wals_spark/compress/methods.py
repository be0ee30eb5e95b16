"""The methods of compression by name, and their presets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from wals_spark.compress import alternating, closed_form, elementwise, lowrank
from wals_spark.compress.closed_form import ClosedForm
from wals_spark.compress.lowrank import LowRankEmbedding
from wals_spark.compress.text_statistics import Sensitivity
from wals_spark.factors.gauge import canonical

METHODS = ("svd", "frequency", "logits", "kronecker", "fisher", "wals")
TEXT_METHODS = ("logits", "kronecker", "fisher")
FISHER_FLOOR = 0.1
"""Share eps of equal weights in Fisher's, so that rows which the text lacks keep a weight."""


@dataclass(frozen=True)
class CompressionPreset:
    """Settings of a method; `sweeps` and those after it matter to ``wals`` and ``fisher`` only.

    Attributes
    ----------
    method : str
    rank : int
    sweeps : int
        At most.
    ridge : float
        lambda.
    precision : {"float32", "float64"}
    tolerance : float
        Relative decrease of the loss in a sweep below which it ends.
    """

    method: str
    rank: int
    sweeps: int
    ridge: float
    precision: str
    tolerance: float


PRESETS = {
    "standard": CompressionPreset("svd", 128, 10, 1e-4, "float32", 1e-3),
    "extra_quality": CompressionPreset("wals", 512, 100, 1e-4, "float64", 1e-7),
}


@dataclass(frozen=True)
class CompressionProblem:
    """An embedding to compress, with the frequencies and sensitivities of its entries where they are known.

    Attributes
    ----------
    E : float32 array of shape (V, d)
    dtype : str
        Of the checkpoint, in safetensors' spelling.
    frequencies : float64 array of shape (V,) or None
    sensitivity : Sensitivity or None
    """

    E: np.ndarray
    dtype: str
    frequencies: np.ndarray | None = None
    sensitivity: Sensitivity | None = None

    def closed_forms(self) -> dict[str, ClosedForm]:
        """Every closed form that the inputs allow, by method; ``fisher`` is that of the rows' mean weights."""
        forms = {"svd": closed_form.solve_closed_form(self.E)}
        if self.frequencies is not None:
            forms["frequency"] = closed_form.solve_closed_form(self.E, self.frequencies)
        if self.sensitivity is not None:
            H, rows = self.sensitivity.second_moment, self.fisher_weights().mean(axis=1)
            forms["logits"] = closed_form.solve_closed_form(self.E, metric=H)
            forms["kronecker"] = closed_form.solve_closed_form(self.E, rows, H)
            forms["fisher"] = closed_form.solve_closed_form(self.E, rows)
        return forms

    def fisher_weights(self) -> np.ndarray:
        """w_ij = (1 - eps) F_ij / mean F + eps, float32 (V, d)."""
        assert self.sensitivity is not None
        F = self.sensitivity.fisher
        return (F * np.float32((1 - FISHER_FLOOR) / F.mean(dtype=np.float64)) + np.float32(FISHER_FLOOR)).astype(
            np.float32, copy=False
        )


@dataclass(frozen=True)
class CompressionSolution:
    """Factors and the figures of their fit.

    Attributes
    ----------
    factors : LowRankEmbedding
    facts : dict of str to object
        Losses per half-sweep and their bound, where there were sweeps.
    """

    factors: LowRankEmbedding
    facts: dict[str, Any]


def factorise_embedding(
    problem: CompressionProblem, method: str, rank: int, settings: CompressionPreset, form: ClosedForm, seed: int = 0
) -> CompressionSolution:
    """Factorise an embedding by a method.

    Parameters
    ----------
    problem : CompressionProblem
    method : str
        One of `METHODS`.
    rank : int
        r.
    settings : CompressionPreset
        For ``wals`` and ``fisher``.
    form : ClosedForm
        Of the method (`closed_form_of`): the solution, or where it starts.
    seed : int
        Of the first columns of ``wals``.

    Returns
    -------
    CompressionSolution
    """
    if method == "fisher":
        return _fisher(problem, rank, settings, form)
    if method == "wals":
        return _wals(problem, rank, settings, form, seed)
    return CompressionSolution(closed_factors(problem, rank, form), {})


def closed_factors(problem: CompressionProblem, rank: int, form: ClosedForm) -> LowRankEmbedding:
    """The factors of a closed form."""
    return _stored(*form.factors(problem.E, rank), form.mean, problem.dtype)


def closed_form_of(method: str) -> str:
    """The closed form that a method is, or starts from."""
    return "svd" if method == "wals" else method


def _wals(
    problem: CompressionProblem, rank: int, settings: CompressionPreset, form: ClosedForm, seed: int
) -> CompressionSolution:
    found = alternating.alternate(
        form.gram, rank, sweeps=settings.sweeps, ridge=settings.ridge, tolerance=settings.tolerance, seed=seed
    )
    reached = replace(form, encode=found.transform, decode=found.basis)
    facts = {"losses": found.losses, "error": found.error, "bound": found.bound}
    return CompressionSolution(closed_factors(problem, rank, reached), facts)


def _fisher(
    problem: CompressionProblem, rank: int, settings: CompressionPreset, form: ClosedForm
) -> CompressionSolution:
    weights = problem.fisher_weights()
    mean = (weights * problem.E).sum(axis=0, dtype=np.float64) / weights.sum(axis=0, dtype=np.float64)
    found = elementwise.weighted_least_squares(
        problem.E - mean.astype(np.float32),
        weights,
        form.decode[:rank],
        sweeps=settings.sweeps,
        ridge=settings.ridge,
        tolerance=settings.tolerance,
        precision=settings.precision,
    )
    factors = _stored(found.rows.astype(np.float64), found.basis.astype(np.float64), mean, problem.dtype)
    return CompressionSolution(factors, {"losses": found.losses})


def _stored(A: np.ndarray, B: np.ndarray, mean: np.ndarray, dtype: str) -> LowRankEmbedding:
    """Factors as stored, rotated to an orthonormal basis with the strongest direction first, which rounds best."""
    A, columns, _ = canonical(A, np.ascontiguousarray(B.T), power=1.0)
    return lowrank.round_to_grids(A, columns.T, mean, dtype)
