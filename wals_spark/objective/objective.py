"""The objective: a target, a weight, and what they and the marginals make of a matrix."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

import numpy as np

from wals_spark.errors import ConfigError, InputError
from wals_spark.objective.keys import key, keys_of
from wals_spark.objective.marginals import Marginals
from wals_spark.objective.targets import PMI, TARGETS, One, Target
from wals_spark.objective.weights import WEIGHTS, Confidence, Constant, Power, Weight

BIASES = ("none", "free", "fixed")
PREDICTIONS = ("product", "squared_norm")
UNOBSERVED = ("square", "softplus")
SOFTPLUS_CURVATURE = 0.125
"""Half the largest second derivative of ln(1 + exp x): the weight of its quadratic upper bounds."""

_UNOBSERVED_KEYS = frozenset({"rho", "popularity_exponent", "popularity_floor"})
"""Keys of the separable weight rho g_i h_j, which objectives that are not quadratic do not have."""

_Part = TypeVar("_Part", Target, Weight)


@dataclass(frozen=True)
class Objective:
    """An objective of the family in the docstring of `wals_spark.objective`.

    Attributes
    ----------
    name : str
        The preset that it was made from.
    target : str
        A name of `TARGETS`; `context_smoothing`, `marginal_smoothing`, `shift` and `scale` are its parameters.
    weight : str
        A name of `WEIGHTS`; `x_max`, `weight_exponent`, `constant` and `alpha` are its parameters.
    additive : bool
        The weight comes on top of the unobserved weight (True) or replaces it (False).
    rho : float
        Weight of unobserved cells; with `unobserved` softplus that of its upper bound, always 1/8.
    popularity_exponent : float
        ``g_i = max((r_i / geometric mean of r)^popularity_exponent, popularity_floor)``, h likewise from the
        column sums.
    regularization, regularization_exponent : float
        lambda and nu.
    unobserved_regularize : bool
        Whether ``rho n`` is part of ``lambda (n_i + rho n)^nu``.
    popularity_floor : float
    bias : {"none", "free", "fixed"}
        free: solved for; fixed: given by the marginals, see `offsets`.
    clipped : bool
        ``max(m, 0)``.
    clipped_are_unobserved : bool
        An observed cell whose target was clipped counts as unobserved.
    x_max, weight_exponent, constant, alpha, context_smoothing, marginal_smoothing, shift, scale : float
        Parameters of the targets and weights of this package.
    unobserved : {"square", "softplus"}
    prediction : {"product", "squared_norm"}
        s_ij = u_i.v_j + b_i + c_j, or z + |u_i + v_j|^2.
    parameters : dict of str to float
        Parameters of other targets and weights.
    """

    name: str
    target: str
    weight: str
    additive: bool
    rho: float = field(metadata=key("Weight of unobserved cells; none = the preset's.", ge=0))
    popularity_exponent: float = field(metadata=key("g, h: power of the marginals.", ge=0, le=2))
    regularization: float = field(metadata=key("lambda; none = the preset's.", ge=0))
    regularization_exponent: float = field(
        default=0.0, metadata=key("nu: lambda_i = lambda (n_i + rho n)^nu; none = the preset's.", ge=-1, le=2)
    )
    unobserved_regularize: bool = True
    popularity_floor: float = field(default=0.0, metadata=key("g, h: least value; none = the preset's.", ge=0))
    bias: str = field(
        default="none",
        metadata=key(
            "Row and column biases: none, solved for, or those of independence; none = the preset's.", choices=BIASES
        ),
    )
    clipped: bool = False
    clipped_are_unobserved: bool = False
    x_max: float = Power.x_max
    weight_exponent: float = Power.weight_exponent
    constant: float = Constant.constant
    alpha: float = Confidence.alpha
    context_smoothing: float = PMI.context_smoothing
    marginal_smoothing: float = Target.marginal_smoothing
    unobserved: str = "square"
    prediction: str = "product"
    shift: float = PMI.shift
    scale: float = One.scale
    parameters: dict[str, float] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for value, known in (
            (self.target, TARGETS),
            (self.weight, WEIGHTS),
            (self.bias, BIASES),
            (self.prediction, PREDICTIONS),
            (self.unobserved, UNOBSERVED),
        ):
            if value not in known:
                raise ConfigError(f"objective {self.name!r}: found {value!r}, expected one of {', '.join(known)}")
        if self.bias != "none" and not self.is_quadratic:
            raise ConfigError(f"objective {self.name!r} has no biases; remove train.bias")
        if self.bias == "fixed" and (not TARGETS[self.target].has_marginals or WEIGHTS[self.weight].of_column):
            targets = ", ".join(name for name, cls in TARGETS.items() if cls.has_marginals)
            raise ConfigError(
                f"objective {self.name!r}: fixed biases are taken from the marginals, which only the targets {targets} "
                "contain, with weights that are not given; remove train.bias"
            )

    @property
    def is_quadratic(self) -> bool:
        """Whether the loss is quadratic in each side, given the other.

        Where it is not, see `wals_spark.wals.solvers.non_quadratic`.
        """
        return self.unobserved == "square" and self.prediction == "product"

    @property
    def symmetric(self) -> bool:
        """Whether a symmetric count matrix gives a symmetric target."""
        return self.target_function.symmetric

    @property
    def target_function(self) -> Target:
        """The target m as a function of cells and marginals."""
        return self._part(TARGETS[self.target])

    @property
    def weight_function(self) -> Weight:
        """The weight w as a function of the values of cells."""
        return self._part(WEIGHTS[self.weight])

    @property
    def keys(self) -> frozenset[str]:
        """Names of the keys of the configuration that this objective uses.

        The softplus is of the plain PMI, without the keys of the target.
        """
        keys = {*keys_of(Objective), *keys_of(WEIGHTS[self.weight])}
        if self.unobserved == "square":
            keys |= {*keys_of(TARGETS[self.target])}
        return frozenset(keys if self.is_quadratic else keys - _UNOBSERVED_KEYS)

    def popularity(self, sums: np.ndarray, cells: np.ndarray, log_mean: float | None = None) -> np.ndarray:
        """``g_i = max((r_i / geometric mean)^exponent, floor)``, 0 for an empty row.

        Parameters
        ----------
        sums, cells : arrays of shape (m,)
            Row sums and observed cells per row.
        log_mean : float, optional
            Logarithm of the geometric mean, where the rows are not those that it was taken over.

        Returns
        -------
        float64 array of shape (m,)

        Raises
        ------
        InputError
            A row with cells has a sum that is not positive, which has no power.
        """
        g = np.zeros(len(sums), np.float64)
        filled = cells > 0
        if self.popularity_exponent == 0:
            g[filled] = 1.0
        elif filled.any():
            if not (sums[filled] > 0).all():
                raise InputError(
                    f"{int((sums[filled] <= 0).sum())} rows with cells have a sum of 0 or less, so their popularity is "
                    "undefined; set popularity_exponent to 0, or remove values (weights) that are not positive"
                )
            logs = np.log(sums[filled])
            g[filled] = np.exp(self.popularity_exponent * (logs - (logs.mean() if log_mean is None else log_mean)))
            g[filled] = np.maximum(g[filled], self.popularity_floor)
        return g

    def offsets(self, sums: np.ndarray, cells: np.ndarray, totals: tuple[float, int]) -> np.ndarray:
        """b_i, the part of a prediction that the marginals give.

        Counts: ``ln(r_i + a) - ln(D + a) / 2``, so that ``b_i + c_j = ln(r_i c_j / D)`` is the logarithm of the count
        under independence; ``-b_i - c_j`` is the PMI that a single count would have. Ratings: ``r_i / n_i - D / 2N``,
        so that ``b_i + c_j`` is row mean + column mean - mean.

        Parameters
        ----------
        sums, cells : arrays of shape (m,)
            r_i and n_i.
        totals : (float, int)
            D and N: sum and number of all observed cells.

        Returns
        -------
        float64 array of shape (m,), 0 for an empty row
        """
        b = np.zeros(len(sums), np.float64)
        filled = cells > 0
        b[filled] = self.target_function.offsets(sums[filled], cells[filled], totals)
        return b

    def regularizers(self, cells: np.ndarray, others: int) -> np.ndarray:
        """``lambda_i = lambda (n_i + rho n)^nu`` for rows with `cells` observed cells of `others` columns."""
        if self.regularization_exponent == 0:
            return np.full(len(cells), self.regularization, np.float64)
        # The value for an empty row does not matter, its factors are zero, but it must not be zero itself.
        counted = np.maximum(cells, 1) + (self.rho * others if self.unobserved_regularize else 0.0)
        return self.regularization * counted**self.regularization_exponent

    def cells(
        self,
        x: np.ndarray,
        row: np.ndarray,
        col: np.ndarray,
        marginals: Marginals,
        g: np.ndarray,
        h: np.ndarray,
        weight: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Target m and extra weight ``d = w - rho g_i h_j`` (additive: ``d = w``) of observed cells.

        Parameters
        ----------
        x : float64 array of shape (c,)
            Their values.
        row, col : int arrays of shape (c,)
        marginals : Marginals
        g, h : float64 arrays of shapes (m,) and (n,)
        weight : float64 array of shape (c,), optional
            The weights that come with the cells, where the objective takes them from a column.

        Returns
        -------
        m, d : float64 arrays of shape (c,)
        """
        m = self.target_function(x, row, col, marginals)
        if self.clipped:
            m = np.maximum(m, 0.0)
        weight = self.weight_function(x) if weight is None else weight
        d = weight if self.additive else weight - self.rho * g[row] * h[col]
        return m, np.where(m > 0, d, 0.0) if self.clipped_are_unobserved else d

    def counted(self, values: np.ndarray) -> np.ndarray:
        """Which cells count towards n_i: all, or for preferences of 0 or 1 those that express one, as in MLlib."""
        return self.target_function.counted(values)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values: what a checkpoint's fingerprint is made of."""
        values = asdict(self)
        return values if self.parameters else {k: v for k, v in values.items() if k != "parameters"}

    def _part(self, cls: type[_Part]) -> _Part:
        """A target or weight with the values that this objective gives its parameters."""
        known = {**{each.name: getattr(self, each.name) for each in fields(self)}, **self.parameters}
        return cls(**{each.name: known[each.name] for each in fields(cls) if each.name in known})
