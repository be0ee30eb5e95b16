"""Weights w of observed cells: a class each, registered by its name, whose fields are its parameters.

A subclass of `Weight` is available as ``Objective.weight``; its `Key` fields become keys of the configuration and
its formula and source a row of docs/objectives.md.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from wals_spark.errors import InputError
from wals_spark.objective.keys import key

WEIGHTS: dict[str, type[Weight]] = {}
"""Name -> class."""


@dataclass(frozen=True)
class Weight(ABC):
    """The weight of an observed cell, a function of its value.

    Attributes
    ----------
    name, formula, source : str
        Of the class: its name in the registry, the formula and where it was published.
    of_column : bool
        Of the class: whether weights are given with the cells.
    """

    name: ClassVar[str]
    formula: ClassVar[str]
    source: ClassVar[str] = ""
    of_column: ClassVar[bool] = False

    def __init_subclass__(cls, *, name: str) -> None:
        cls.name = name
        WEIGHTS[name] = cls

    @abstractmethod
    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Weights of cells with the values `x`; float64 array of the shape (c,) of `x`."""

    @property
    def text(self) -> str:
        """The formula with the parameters' values, for a table of presets."""
        return self.formula


@dataclass(frozen=True)
class Power(Weight, name="power"):
    """``min(x / x_max, 1)^weight_exponent``."""

    formula = "min(x / x_max, 1)^weight_exponent"
    source = "Pennington, Socher and Manning 2014"

    x_max: float = field(default=10.0, metadata=key("Count at which the weight saturates; none = the preset's.", gt=0))
    weight_exponent: float = field(default=0.5, metadata=key("Power of the weight; none = the preset's.", ge=0))

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return np.minimum(x / self.x_max, 1.0) ** self.weight_exponent

    @property
    def text(self) -> str:
        return f"min(x/{self.x_max:g}, 1)" + (f"^{self.weight_exponent:g}" if self.weight_exponent != 1 else "")


@dataclass(frozen=True)
class Root(Weight, name="root"):
    """``sqrt(x) / 2``."""

    formula = "sqrt(x)/2"
    source = "Shazeer et al. 2016, the defaults of their code"

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return 0.5 * np.sqrt(x)


@dataclass(frozen=True)
class Constant(Weight, name="constant"):
    """``constant``."""

    formula = "1"

    constant: float = 1.0

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return np.full(len(x), self.constant)

    @property
    def text(self) -> str:
        return f"{self.constant:g}"


@dataclass(frozen=True)
class Confidence(Weight, name="confidence"):
    """``alpha |x|``; with the unobserved weight 1 that it comes on top of, the confidence 1 + alpha |x|."""

    formula = "alpha |x|"
    source = "Hu, Koren and Volinsky 2008; |x|: MLlib"

    alpha: float = field(default=1.0, metadata=key("implicit: confidence 1 + alpha x.", gt=0))

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self.alpha * np.abs(x)

    @property
    def text(self) -> str:
        return f"{self.alpha:g} |x|" if self.alpha != 1 else "|x|"


@dataclass(frozen=True)
class Column(Weight, name="column"):
    """The weight given with the cell; cells without one are refused, since no weight can be made of their values."""

    formula = "given with the cell"
    of_column = True

    def __call__(self, x: np.ndarray) -> np.ndarray:
        raise InputError(
            f"the objective custom takes the weight of every cell as it is given, and {len(x):,} cells have none; name "
            "the column of the weights (weight), or use an objective that makes weights of the values"
        )

    @property
    def text(self) -> str:
        return "as given"
