"""The methods by name, their presets, and which rank a target asks for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from wals_spark.checkpoints.raw_tensor import ITEM_BYTES
from wals_spark.compress import alternating, closed_form, elementwise, lowrank
from wals_spark.compress.closed_form import ClosedForm
from wals_spark.compress.lowrank import LowRank
from wals_spark.compress.text import Sensitivity
from wals_spark.errors import ConfigError, InputError
from wals_spark.factors.gauge import canonical

METHODS = ("svd", "frequency", "logits", "kronecker", "fisher", "wals")
TEXT_METHODS = ("logits", "kronecker", "fisher")
FISHER_FLOOR = 0.1
"""Share of equal weights in Fisher's: rows that the text lacks must not be given up."""


@dataclass(frozen=True)
class Preset:
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
    "standard": Preset("svd", 128, 10, 1e-4, "float32", 1e-3),
    "extra_quality": Preset("wals", 512, 100, 1e-4, "float64", 1e-7),
}


@dataclass(frozen=True)
class Problem:
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
        forms = {"svd": closed_form.solve(self.E)}
        if self.frequencies is not None:
            forms["frequency"] = closed_form.solve(self.E, self.frequencies)
        if self.sensitivity is not None:
            H, rows = self.sensitivity.second_moment, self.fisher_weights().mean(axis=1)
            forms["logits"] = closed_form.solve(self.E, metric=H)
            forms["kronecker"] = closed_form.solve(self.E, rows, H)
            forms["fisher"] = closed_form.solve(self.E, rows)
        return forms

    def fisher_weights(self) -> np.ndarray:
        """w_ij = (1 - eps) F_ij / mean F + eps, float32 (V, d)."""
        assert self.sensitivity is not None
        F = self.sensitivity.fisher
        return (F * np.float32((1 - FISHER_FLOOR) / F.mean(dtype=np.float64)) + np.float32(FISHER_FLOOR)).astype(
            np.float32, copy=False
        )


@dataclass(frozen=True)
class Solution:
    """Factors and how they were come by.

    Attributes
    ----------
    factors : LowRank
    facts : dict
        Losses per half-sweep and their bound, where there were sweeps.
    """

    factors: LowRank
    facts: dict[str, Any]


def solve(problem: Problem, method: str, rank: int, settings: Preset, form: ClosedForm, seed: int = 0) -> Solution:
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
    return Solution(closed_factors(problem, rank, form), {})


def closed_factors(problem: Problem, rank: int, form: ClosedForm) -> LowRank:
    """The factors of a closed form."""
    return _stored(*form.factors(problem.E, rank), form.mean, problem.dtype)


def closed_form_of(method: str) -> str:
    """The closed form that a method is, or starts from."""
    return "svd" if method == "wals" else method


def _wals(problem: Problem, rank: int, settings: Preset, form: ClosedForm, seed: int) -> Solution:
    found = alternating.alternate(
        form.gram, rank, sweeps=settings.sweeps, ridge=settings.ridge, tolerance=settings.tolerance, seed=seed
    )
    reached = replace(form, encode=found.transform, decode=found.basis)
    facts = {"losses": found.losses, "error": found.error, "bound": found.bound}
    return Solution(closed_factors(problem, rank, reached), facts)


def _fisher(problem: Problem, rank: int, settings: Preset, form: ClosedForm) -> Solution:
    weights = problem.fisher_weights()
    mean = (weights * problem.E).sum(axis=0, dtype=np.float64) / weights.sum(axis=0, dtype=np.float64)
    found = elementwise.factorise(
        problem.E - mean.astype(np.float32),
        weights,
        form.decode[:rank],
        sweeps=settings.sweeps,
        ridge=settings.ridge,
        tolerance=settings.tolerance,
        precision=settings.precision,
    )
    factors = _stored(found.rows.astype(np.float64), found.basis.astype(np.float64), mean, problem.dtype)
    return Solution(factors, {"losses": found.losses})


def _stored(A: np.ndarray, B: np.ndarray, mean: np.ndarray, dtype: str) -> LowRank:
    """In the gauge with an orthonormal basis, strongest direction first: the best one to round."""
    A, columns, _ = canonical(A, np.ascontiguousarray(B.T), power=1.0)
    return lowrank.store(A, columns.T, mean, dtype)


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
                f"--target-bytes {target_bytes:,}: rank 1 takes {lowrank.parameters(V, d, 1) * size:,} bytes; give more"
            )
        return int(min(fits, top))
    asked = default if rank is None else rank
    if not 1 <= asked <= top:
        whose = "the preset's rank is" if rank is None else "--rank"
        raise InputError(f"{whose} {asked}: the embedding is {V:,} x {d}, expected 1 to {top}; set --rank")
    return asked
