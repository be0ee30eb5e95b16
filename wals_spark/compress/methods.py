"""The methods by name, their presets, and which rank a target asks for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from wals_spark.checkpoints.raw_tensor import ITEM_BYTES
from wals_spark.compress import alternating, closed_form, elementwise, lowrank
from wals_spark.compress.closed_form import ClosedForm
from wals_spark.compress.lowrank import LowRankEmbedding
from wals_spark.compress.text import Sensitivity
from wals_spark.errors import ConfigError, InputError
from wals_spark.factors.gauge import canonical

METHODS = ("svd", "frequency", "logits", "kronecker", "fisher", "wals")
TEXT_METHODS = ("logits", "kronecker", "fisher")
FISHER_FLOOR = 0.1
"""Share of equal weights in Fisher's: rows that the text lacks must not be given up."""


@dataclass(frozen=True)
class CompressionPreset:
    """What a name stands for; `sweeps` and what follows matter to ``wals`` and ``fisher`` only.

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
    """The embedding and what is known about its entries.

    Attributes
    ----------
    E : float32 (V, d)
    dtype : str
        Of the checkpoint, in safetensors' spelling.
    frequencies : float64 (V,) or None
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
    """Factors and how they were come by.

    Attributes
    ----------
    factors : LowRank
    facts : dict
        Losses per half-sweep and their bound, where there were sweeps.
    """

    factors: LowRankEmbedding
    facts: dict[str, Any]


def factorise_embedding(
    problem: CompressionProblem, method: str, rank: int, settings: CompressionPreset, form: ClosedForm, seed: int = 0
) -> CompressionSolution:
    """Factors by a method.

    Parameters
    ----------
    problem : Problem
    method : one of `METHODS`
    rank : r
    settings : Preset
        For ``wals`` and ``fisher``.
    form : ClosedForm
        Of the method (see `closed_form_of`): the solution, or where it starts.
    seed : of the first columns of ``wals``
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
    """In the gauge with an orthonormal basis, strongest direction first: the best one to round."""
    A, columns, _ = canonical(A, np.ascontiguousarray(B.T), power=1.0)
    return lowrank.round_to_grids(A, columns.T, mean, dtype)


def choose_rank(
    form: ClosedForm,
    shape: tuple[int, int],
    dtype: str,
    *,
    rank: int | None,
    target_mse: float | None,
    target_bytes: int | None,
    default: int,
) -> int:
    """The rank that is asked for: given, the least that meets an MSE, or the greatest that fits into bytes.

    Raises
    ------
    ConfigError
        More than one of them.
    InputError
        A rank above min(V, d), or a target that no rank meets.
    """
    V, d = shape
    given = [
        name
        for name, value in (("--rank", rank), ("--target-mse", target_mse), ("--target-bytes", target_bytes))
        if value is not None
    ]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} are given: each picks the rank, keep one")
    top = min(V, d)
    if target_mse is not None:
        meets = np.flatnonzero(form.curve[1 : top + 1] <= target_mse)
        if not len(meets):
            raise InputError(
                f"--target-mse {target_mse:g}: the full rank {top} leaves {form.curve[top]:.3g}; give a larger target"
            )
        return int(meets[0]) + 1
    if target_bytes is not None:
        size = ITEM_BYTES[dtype]
        fits = (target_bytes // size - d) // (V + d)
        if fits < 1:
            raise InputError(
                f"--target-bytes {target_bytes:,}: rank 1 takes {lowrank.parameter_count(V, d, 1) * size:,} bytes; "
                "give more"
            )
        return int(min(fits, top))
    asked = default if rank is None else rank
    if not 1 <= asked <= top:
        whose = "the preset's rank is" if rank is None else "--rank"
        raise InputError(f"{whose} {asked}: the embedding is {V:,} x {d}, expected 1 to {top}; set --rank")
    return asked
