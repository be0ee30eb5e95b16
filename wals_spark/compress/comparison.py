"""A comparison of compressed embeddings: errors of the rows, plain and by frequency, and of the logits, at one size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from wals_spark.compress import quantise
from wals_spark.compress.closed_form import ClosedForm
from wals_spark.compress.lowrank import CHUNK_ROWS, LowRankEmbedding
from wals_spark.compress.methods import CompressionPreset, CompressionProblem, CompressionSolution, closed_factors


@dataclass(frozen=True)
class ComparisonRow:
    """A row of the comparison.

    Attributes
    ----------
    name : str
    rank : int or None
    parameters : int
        Numbers of the embedding as stored.
    bytes : int
        Of the embedding as stored.
    mse : float
        Mean squared error of an entry.
    cosine : float
        Mean cosine of a row with its original.
    weighted_mse : float or None
        `mse` with rows weighted by token frequency, where that is known.
    weighted_cosine : float or None
        `cosine` with rows weighted so.
    logit_rmse : float or None
        sqrt(mean_i (e_i - e'_i) H (e_i - e'_i)^T): root mean square error of a logit on the text, where one was given.
    chosen : bool
        Whether this one is written.
    """

    name: str
    rank: int | None
    parameters: int
    bytes: int
    mse: float
    cosine: float
    weighted_mse: float | None = None
    weighted_cosine: float | None = None
    logit_rmse: float | None = None
    chosen: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class ReconstructionErrors:
    """Measures of reconstructions of one embedding.

    Attributes
    ----------
    E : float32 array of shape (V, d)
    weights : float64 array of shape (V,) or None
        Frequencies.
    second_moment : float64 array of shape (d, d) or None
        H.
    """

    E: np.ndarray
    weights: np.ndarray | None = None
    second_moment: np.ndarray | None = None

    def of(self, values: np.ndarray) -> dict[str, float | None]:
        """The measures of a reconstruction (V, d), named as in `ComparisonRow`."""
        V = len(self.E)
        square, cosine, logit = np.empty(V), np.empty(V), 0.0
        for start in range(0, V, CHUNK_ROWS):
            part = slice(start, start + CHUNK_ROWS)
            old, new = self.E[part].astype(np.float64), values[part].astype(np.float64)
            error = new - old
            square[part] = (error**2).mean(axis=1)
            norms = np.linalg.norm(old, axis=1) * np.linalg.norm(new, axis=1)
            # A row of zeros that stays one is as it was.
            same = np.where(square[part] == 0, 1.0, 0.0)
            cosine[part] = np.divide((old * new).sum(axis=1), norms, out=same, where=norms > 0)
            if self.second_moment is not None:
                logit += float(np.sum((error @ self.second_moment) * error))
        found: dict[str, float | None] = {"mse": float(square.mean()), "cosine": float(cosine.mean())}
        if self.weights is not None:
            share = self.weights / self.weights.sum()
            found |= {"weighted_mse": float(share @ square), "weighted_cosine": float(share @ cosine)}
        if self.second_moment is not None:
            found["logit_rmse"] = float(np.sqrt(max(logit, 0.0) / V))  # rounding of an exact row can be below 0
        return found


def comparison_rows(
    problem: CompressionProblem,
    forms: dict[str, ClosedForm],
    settings: CompressionPreset,
    solution: CompressionSolution,
    seed: int,
) -> Iterator[ComparisonRow]:
    """Compare the chosen factors with the other closed forms at their rank and with quantisation in their bytes.

    Parameters
    ----------
    problem : CompressionProblem
    forms : dict of str to ClosedForm
        By method.
    settings : CompressionPreset
        With the chosen method.
    solution : CompressionSolution
        Of the chosen method.
    seed : int
        Of product quantisation.

    Yields
    ------
    ComparisonRow
        The chosen method first.
    """
    H = problem.sensitivity.second_moment if problem.sensitivity is not None else None
    errors = ReconstructionErrors(problem.E, problem.frequencies, H)

    def row(name: str, factors: LowRankEmbedding, *, chosen: bool = False) -> ComparisonRow:
        found = errors.of(factors.expand().values())
        return ComparisonRow(name, factors.rank, factors.parameters, factors.bytes, chosen=chosen, **found)  # type: ignore[arg-type]

    factors = solution.factors
    yield row(settings.method, factors, chosen=True)
    for name, form in forms.items():
        if name != settings.method:
            shown = "fisher by rows" if name == "fisher" else name
            yield row(shown, closed_factors(problem, factors.rank, form))
    for control in quantise.controls(problem.E, factors.bytes, seed):
        yield ComparisonRow(control.name, None, control.parameters, control.bytes, **errors.of(control.values))  # type: ignore[arg-type]


_COLUMNS = {
    "rank": "{:,}",
    "parameters": "{:,}",
    "bytes": "{:,}",
    "mse": "{:.4g}",
    "cosine": "{:.4f}",
    "weighted_mse": "{:.4g}",
    "weighted_cosine": "{:.4f}",
    "logit_rmse": "{:.4f}",
}


def format_table(choices: Sequence[ComparisonRow]) -> list[str]:
    """The rows as lines of a table; columns without a value are left out, ``*`` marks the row that is written."""
    columns = [name for name in _COLUMNS if any(getattr(choice, name) is not None for choice in choices)]
    cells = [["choice", *(name.replace("_", " ") for name in columns)]]
    for choice in choices:
        values = [getattr(choice, name) for name in columns]
        shown = [
            "" if value is None else _COLUMNS[name].format(value) for name, value in zip(columns, values, strict=True)
        ]
        cells.append([f"{choice.name} *" if choice.chosen else choice.name, *shown])
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return [_aligned(row, widths) for row in cells]


def _aligned(row: Iterable[str], widths: Sequence[int]) -> str:
    first, *others = (
        cell.ljust(width) if column == 0 else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    )
    return "  ".join([first, *others]).rstrip()
