"""Targets m of observed cells: a class each, registered by its name, whose fields are its parameters.

::

    r_i, c_j  row and column sums,    D  the sum of all cells,    N  the number of observed cells

A subclass of `Target` is available as ``Objective.target``; its `Key` fields become keys of the configuration and
its formula and source a row of docs/objectives.md.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from wals_spark.objective.keys import key
from wals_spark.objective.marginals import Marginals

TARGETS: dict[str, type[Target]] = {}
"""Name -> class."""

_SHIFT = key("PMI presets: negative samples k of ln k; log_conditional_smoothed: added count.", gt=0)


@dataclass(frozen=True)
class Target(ABC):
    """The target of an observed cell.

    Attributes
    ----------
    name, formula, source : str
        Of the class: its name in the registry, the formula and where it was published.
    has_marginals : bool
        Of the class: whether the target contains the marginals, so that fixed biases can take them out.
    marginal_smoothing : float
        a, added to every marginal.
    """

    name: ClassVar[str]
    formula: ClassVar[str]
    source: ClassVar[str] = ""
    has_marginals: ClassVar[bool] = False

    marginal_smoothing: float = 0.0

    def __init_subclass__(cls, *, name: str) -> None:
        cls.name = name
        TARGETS[name] = cls

    @abstractmethod
    def __call__(self, x: np.ndarray, row: np.ndarray, col: np.ndarray, marginals: Marginals) -> np.ndarray:
        """Targets of observed cells.

        Parameters
        ----------
        x : float64 array of shape (c,)
            Their values.
        row, col : int arrays of shape (c,)
        marginals : Marginals

        Returns
        -------
        float64 array of shape (c,)
        """

    @property
    def text(self) -> str:
        """The formula with the parameters' values, for a table of presets."""
        return self.formula

    @property
    def symmetric(self) -> bool:
        """Whether a symmetric count matrix gives a symmetric target."""
        return True

    def counted(self, values: np.ndarray) -> np.ndarray:
        """Which cells count towards n_i; bool array of shape (c,)."""
        return np.ones(len(values), bool)

    def offsets(self, sums: np.ndarray, cells: np.ndarray, totals: tuple[float, int]) -> np.ndarray:
        """``b_i = ln(r_i + a) - ln(D + a) / 2``, so that b_i + c_j is the logarithm of the count under independence.

        Parameters
        ----------
        sums, cells : arrays of shape (f,)
            r_i and n_i of rows with cells.
        totals : (float, int)
            D and N.

        Returns
        -------
        float64 array of shape (f,)
        """
        del cells
        a = self.marginal_smoothing
        return np.log(sums + a) - 0.5 * np.log(totals[0] + a)


@dataclass(frozen=True)
class PMI(Target, name="pmi"):
    """``ln(x_ij sum_l (c_l + a)^cds / ((r_i + a) (c_j + a)^cds)) - ln shift``, a being `marginal_smoothing`."""

    formula = "ln(x_ij sum_l c_l^a / (r_i c_j^a)) - ln shift, a = context_smoothing"
    source = "Church and Hanks 1990; shift and a: Levy, Goldberg and Dagan 2015"

    context_smoothing: float = field(default=1.0, metadata=key("cds: power of the context distribution.", gt=0, le=1))
    shift: float = field(default=1.0, metadata=_SHIFT)

    def __call__(self, x: np.ndarray, row: np.ndarray, col: np.ndarray, marginals: Marginals) -> np.ndarray:
        a = self.marginal_smoothing
        context = (marginals.cols + a) ** self.context_smoothing
        total = (marginals.cols**self.context_smoothing).sum() + a
        log_row, log_context = _log(marginals.rows + a), _log(context / total)
        return np.log(x) - log_row[row] - log_context[col] - np.log(self.shift)

    @property
    def text(self) -> str:
        shift = f" - ln {self.shift:g}" if self.shift != 1 else ""
        smoothing = f", cds {self.context_smoothing:g}" if self.context_smoothing != 1 else ""
        added = f", {self.marginal_smoothing:g} added to every sum" if self.marginal_smoothing else ""
        return f"PMI{shift}{smoothing}{added}"

    @property
    def symmetric(self) -> bool:
        return self.context_smoothing == 1.0


@dataclass(frozen=True)
class Log(Target, name="log"):
    """``ln x_ij``."""

    formula = "ln x"
    source = "Pennington, Socher and Manning 2014"
    has_marginals = True

    def __call__(self, x: np.ndarray, row: np.ndarray, col: np.ndarray, marginals: Marginals) -> np.ndarray:
        return np.log(x)


@dataclass(frozen=True)
class One(Target, name="one"):
    """``scale`` where x_ij > 0, else 0: preferences. Only cells that express one count towards n_i, as in MLlib."""

    formula = "1 where x > 0, else 0; with `ials` 1/(1 + rho)"
    source = "Hu, Koren and Volinsky 2008"

    scale: float = 1.0

    def __call__(self, x: np.ndarray, row: np.ndarray, col: np.ndarray, marginals: Marginals) -> np.ndarray:
        return np.where(x > 0, self.scale, 0.0)

    @property
    def text(self) -> str:
        return f"{self.scale:.4g} where x > 0"

    def counted(self, values: np.ndarray) -> np.ndarray:
        return values > 0


@dataclass(frozen=True)
class Value(Target, name="value"):
    """``x_ij``: ratings, or targets of one's own."""

    formula = "x"
    source = "Zhou, Wilkinson, Schreiber and Pan 2008"
    has_marginals = True

    def __call__(self, x: np.ndarray, row: np.ndarray, col: np.ndarray, marginals: Marginals) -> np.ndarray:
        return x.astype(np.float64)

    def offsets(self, sums: np.ndarray, cells: np.ndarray, totals: tuple[float, int]) -> np.ndarray:
        """``b_i = r_i / n_i - D / 2N``, so that b_i + c_j is row mean + column mean - mean.

        Parameters
        ----------
        sums, cells : arrays of shape (f,)
        totals : (float, int)
            See `Target.offsets`.

        Returns
        -------
        float64 array of shape (f,)
        """
        return sums / cells - totals[0] / (2.0 * totals[1])


@dataclass(frozen=True)
class LogConditional(Target, name="log_conditional"):
    """``ln(x_ij / r_i)``."""

    formula = "ln(x / r_i)"
    source = "the optimum of skip-gram with a softmax, Mikolov et al. 2013"

    def __call__(self, x: np.ndarray, row: np.ndarray, col: np.ndarray, marginals: Marginals) -> np.ndarray:
        return np.log(x) - _log(marginals.rows)[row]

    @property
    def symmetric(self) -> bool:
        return False


@dataclass(frozen=True)
class SmoothedConditional(Target, name="smoothed_conditional"):
    """``ln(1 + x_ij / shift)``.

    That is ``ln((x_ij + shift) / (r_i + shift n))`` less its value at x_ij = 0, so that unobserved cells have target 0.
    """

    formula = "ln(1 + x / shift)"
    source = "log_conditional with Laplace smoothing"

    shift: float = field(default=1.0, metadata=_SHIFT)

    def __call__(self, x: np.ndarray, row: np.ndarray, col: np.ndarray, marginals: Marginals) -> np.ndarray:
        return np.log1p(x / self.shift)

    @property
    def text(self) -> str:
        return f"ln(1 + x/{self.shift:g})" if self.shift != 1 else "ln(1 + x)"


def _log(values: np.ndarray) -> np.ndarray:
    """Logarithms, -inf of 0 without a warning: empty rows and columns have no cell that would use it."""
    with np.errstate(divide="ignore"):
        return np.log(values)
