"""What is minimised: targets, weights and regularisation of every preset.

::

    loss(U, V) = sum_observed w_ij (m_ij - s_ij)^2 + rho sum_unobserved g_i h_j s_ij^2
               + sum_i lambda_i |u_i|^2 + sum_j lambda_j |v_j|^2

    s_ij     = u_i.v_j + b_i + c_j          (b, c only with biases; they are not regularised)
    lambda_i = lambda (n_i + rho n)^nu      (n_i observed cells of row i, n columns)

An observed cell carries its target ``m`` and ``d = w - rho g_i h_j``, the weight it has beyond an
unobserved one, because the unobserved part of a row is then the Gramian of the whole other side:
``A_i = rho g_i sum_j h_j v_j v_j^T + sum_observed d_ij v_j v_j^T + lambda_i I``.
Rows and columns without an observed cell are outside the model: g_i = 0 or h_j = 0, zero factors.

Two objectives leave this family, and `wals_spark.wals.solvers.majorization` brings them back to it, a half-step at a
time::

    swivel        sum_observed w_ij (m_ij - s_ij)^2 + sum_unobserved ln(1 + exp(s_ij - p_ij)) + ridge
    squared_norm  sum_observed w_ij (m_ij - z - |u_i + v_j|^2)^2 + ridge,   z a number

p_ij being the target that a single count would have.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from wals_spark.errors import ConfigError, InputError

if TYPE_CHECKING:
    from wals_spark.config import TrainConfig

TARGETS = ("pmi", "log", "one", "value", "log_conditional", "smoothed_conditional")
WEIGHTS = ("power", "root", "constant", "confidence", "column")
BIASES = ("none", "free", "fixed")
PREDICTIONS = ("product", "squared_norm")
UNOBSERVED = ("square", "softplus")
SOFTPLUS_CURVATURE = 0.125
"""Half the largest second derivative of ln(1 + exp x): the weight of its quadratic upper bounds."""


@dataclass(frozen=True)
class Marginals:
    """Sums of the matrix, in weighted counts.

    Attributes
    ----------
    rows, cols : float64 arrays of shape (m,) and (n,)
        Row and column sums.
    row_cells, col_cells : int64 arrays of shape (m,) and (n,)
        Observed cells per row and column that count, see `Objective.counted`.
    """

    rows: np.ndarray
    cols: np.ndarray
    row_cells: np.ndarray
    col_cells: np.ndarray

    @property
    def total(self) -> float:
        """Sum of all cells."""
        return float(self.rows.sum())

    @property
    def transposed(self) -> Marginals:
        """Those of the transposed matrix."""
        return Marginals(self.cols, self.rows, self.col_cells, self.row_cells)


@dataclass(frozen=True)
class Objective:
    """An objective of the family in the module's docstring.

    Attributes
    ----------
    name : str
        The preset that it was made from.
    target : str
        ``pmi``: ln(x_ij sum_j c_j^a / (r_i c_j^a)) - ln shift, a being `context_smoothing`; `marginal_smoothing`
        is added to the sums;
        ``log``: ln x_ij; ``one``: `scale` where x_ij > 0, else 0; ``value``: x_ij;
        ``log_conditional``: ln(x_ij / r_i); ``smoothed_conditional``: ln(1 + x_ij / shift), which is
        ln((x_ij + shift) / (r_i + shift n)) less its value at x_ij = 0, so that unobserved cells have target 0.
    clipped : bool
        ``max(m, 0)``.
    clipped_are_unobserved : bool
        An observed cell whose target was clipped counts as unobserved.
    weight : str
        ``power``: min(x / x_max, 1)^weight_exponent; ``root``: sqrt(x) / 2; ``constant``: `constant`;
        ``confidence``: alpha |x|; ``column``: the weight given with the cell.
    additive : bool
        The weight comes on top of the unobserved weight (True) or replaces it (False).
    rho : float
        Weight of unobserved cells; with `unobserved` softplus that of its upper bound, always 1/8.
    popularity_exponent : float
        ``g_i = max((r_i / geometric mean of r)^popularity_exponent, popularity_floor)``, h likewise from the
        column sums.
    popularity_floor : float
    regularization, regularization_exponent : float
        lambda and nu.
    unobserved_regularize : bool
        Whether ``rho n`` is part of ``lambda (n_i + rho n)^nu``.
    bias : {"none", "free", "fixed"}
        free: solved for; fixed: given by the marginals, see `offsets`.
    unobserved : {"square", "softplus"}
    prediction : {"product", "squared_norm"}
        s_ij = u_i.v_j + b_i + c_j, or z + |u_i + v_j|^2.
    x_max, weight_exponent, constant, alpha, context_smoothing, marginal_smoothing, shift, scale : float
        See above.
    """

    name: str
    target: str
    weight: str
    additive: bool
    rho: float
    popularity_exponent: float
    regularization: float
    regularization_exponent: float = 0.0
    unobserved_regularize: bool = True
    popularity_floor: float = 0.0
    bias: str = "none"
    clipped: bool = False
    clipped_are_unobserved: bool = False
    x_max: float = 10.0
    weight_exponent: float = 0.5
    constant: float = 1.0
    alpha: float = 1.0
    context_smoothing: float = 1.0
    marginal_smoothing: float = 0.0
    unobserved: str = "square"
    prediction: str = "product"
    shift: float = 1.0
    scale: float = 1.0

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
        if self.bias == "fixed" and (self.target not in ("log", "value") or self.weight == "column"):
            raise ConfigError(
                f"objective {self.name!r}: fixed biases are those of counts (glove) or ratings (explicit), whose "
                "target holds the marginals; remove train.bias"
            )
        if self.rho == 0 and self.regularization == 0:
            raise ConfigError(
                f"objective {self.name!r}: regularization and rho are both 0, so a row with fewer cells than k has no "
                "unique solution; set train.regularization or train.rho above 0"
            )

    @property
    def is_quadratic(self) -> bool:
        """Whether the loss is quadratic in each side, given the other.

        Where it is not, see `wals_spark.wals.solvers.majorization`.
        """
        return self.unobserved == "square" and self.prediction == "product"

    @property
    def symmetric(self) -> bool:
        """Whether a symmetric count matrix gives a symmetric target."""
        return not (self.target == "log_conditional" or (self.target == "pmi" and self.context_smoothing != 1.0))

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
        if self.target == "value":
            b[filled] = sums[filled] / cells[filled] - totals[0] / (2.0 * totals[1])
        else:
            a = self.marginal_smoothing
            b[filled] = np.log(sums[filled] + a) - 0.5 * np.log(totals[0] + a)
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
        """Target m and extra weight d of observed cells.

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
        m = self._target(x, row, col, marginals)
        if self.clipped:
            m = np.maximum(m, 0.0)
        weight = self._weight(x) if weight is None else weight
        d = weight if self.additive else weight - self.rho * g[row] * h[col]
        return m, np.where(m > 0, d, 0.0) if self.clipped_are_unobserved else d

    def _target(self, x: np.ndarray, row: np.ndarray, col: np.ndarray, marginals: Marginals) -> np.ndarray:
        if self.target == "pmi":
            a = self.marginal_smoothing
            context = (marginals.cols + a) ** self.context_smoothing
            total = (marginals.cols**self.context_smoothing).sum() + a
            log_row, log_context = _log(marginals.rows + a), _log(context / total)
            return np.log(x) - log_row[row] - log_context[col] - np.log(self.shift)
        if self.target == "log_conditional":
            return np.log(x) - _log(marginals.rows)[row]
        if self.target == "smoothed_conditional":
            return np.log1p(x / self.shift)
        if self.target == "log":
            return np.log(x)
        if self.target == "one":
            return np.where(x > 0, self.scale, 0.0)
        return x.astype(np.float64)

    def _weight(self, x: np.ndarray) -> np.ndarray:
        if self.weight == "confidence":
            return self.alpha * np.abs(x)
        if self.weight == "constant":
            return np.full(len(x), self.constant)
        if self.weight == "root":
            return 0.5 * np.sqrt(x)
        return np.minimum(x / self.x_max, 1.0) ** self.weight_exponent

    def counted(self, values: np.ndarray) -> np.ndarray:
        """Which cells count towards n_i: all, or for preferences of 0 or 1 those that express one, as in MLlib."""
        return values > 0 if self.target == "one" else np.ones(len(values), bool)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values: what a checkpoint's fingerprint is made of."""
        return asdict(self)


def _log(values: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(values)


PRESETS: dict[str, Objective] = {
    # Chosen by benchmarks/vectors.py on half of the pairs and questions, see docs/objectives.md.
    "ppmi": Objective(
        "ppmi",
        "pmi",
        "power",
        True,
        rho=0.0025,
        popularity_exponent=0.75,
        regularization=300.0,
        regularization_exponent=-0.5,
        unobserved_regularize=False,
        clipped=True,
    ),
    # Levy and Goldberg 2014: truncated SVD of the shifted positive PMI, here with a trace of ridge; shift 5.
    "sppmi": Objective(
        "sppmi",
        "pmi",
        "constant",
        False,
        rho=1.0,
        popularity_exponent=0.0,
        regularization=1e-3,
        clipped=True,
        shift=5.0,
    ),
    # Jiang, Yu, Hsieh and Chang 2018, with the defaults of their code: rho 1/16, ridge 2^-11 per cell, cds 0.75,
    # pairs with a PMI of 0 or less unobserved.
    "pu": Objective(
        "pu",
        "pmi",
        "power",
        False,
        rho=0.0625,
        popularity_exponent=0.0,
        regularization=2.0**-11,
        regularization_exponent=1.0,
        unobserved_regularize=False,
        bias="free",
        clipped=True,
        clipped_are_unobserved=True,
        weight_exponent=0.75,
        context_smoothing=0.75,
    ),
    # Pennington, Socher and Manning 2014; their code has no ridge, which leaves short rows without a solution.
    "glove": Objective(
        "glove",
        "log",
        "power",
        False,
        rho=0.0,
        popularity_exponent=0.0,
        regularization=0.1,
        bias="free",
        weight_exponent=0.75,
    ),
    # The optimum of skip-gram with a softmax, on observed cells; weights near x are its second-order expansion.
    "log_conditional": Objective(
        "log_conditional",
        "log_conditional",
        "power",
        False,
        rho=0.0,
        popularity_exponent=0.0,
        regularization=0.1,
        x_max=100.0,
        weight_exponent=1.0,
    ),
    # The same with Laplace smoothing, which gives unobserved cells a target too.
    "log_conditional_smoothed": Objective(
        "log_conditional_smoothed",
        "smoothed_conditional",
        "power",
        True,
        rho=0.005,
        popularity_exponent=0.75,
        regularization=10.0,
    ),
    # Shazeer et al. 2016 with a separable surrogate in place of its one-sided loss on unobserved cells.
    "swivel_like": Objective(
        "swivel_like", "pmi", "root", True, rho=0.05, popularity_exponent=0.5, regularization=10.0
    ),
    # Shazeer et al. 2016, with the defaults of their code: weight sqrt(x) / 2, one added to every marginal; no ridge
    # there, a trace of it here. rho is the curvature of the bound, not a choice.
    "swivel": Objective(
        "swivel",
        "pmi",
        "root",
        False,
        rho=SOFTPLUS_CURVATURE,
        popularity_exponent=0.0,
        regularization=1e-3,
        marginal_smoothing=1.0,
        unobserved="softplus",
    ),
    # Arora et al. 2016, with the weight of their code; one table there, two here, and a trace of ridge.
    "squared_norm": Objective(
        "squared_norm",
        "log",
        "power",
        False,
        rho=0.0,
        popularity_exponent=0.0,
        regularization=0.01,
        x_max=100.0,
        weight_exponent=0.75,
        prediction="squared_norm",
    ),
    # Hu, Koren and Volinsky 2008, with the confidence 1 + alpha x of MLlib.
    "implicit": Objective("implicit", "one", "confidence", True, rho=1.0, popularity_exponent=0.0, regularization=0.01),
    # Rendle et al. 2022: sum_observed (s - 1)^2 + rho sum_all s^2 + lambda (n_i + rho n)^nu |u|^2, up to a constant.
    "ials": Objective(
        "ials",
        "one",
        "constant",
        True,
        rho=0.1,
        popularity_exponent=0.0,
        regularization=0.003,
        regularization_exponent=1.0,
        scale=1.0 / 1.1,
    ),
    # Zhou et al. 2008 (ALS-WR, MLlib's explicit preferences): observed cells alone, ridge by their number.
    "explicit": Objective(
        "explicit",
        "value",
        "constant",
        False,
        rho=0.0,
        popularity_exponent=0.0,
        regularization=0.1,
        regularization_exponent=1.0,
        unobserved_regularize=False,
    ),
    # Targets and weights as they are given; the weight replaces that of an unobserved cell.
    "custom": Objective("custom", "value", "column", False, rho=0.0, popularity_exponent=0.0, regularization=0.1),
}
"""Name -> the objective with its published defaults."""

_KEYS = (
    "regularization",
    "regularization_exponent",
    "rho",
    "popularity_exponent",
    "popularity_floor",
    "x_max",
    "weight_exponent",
    "context_smoothing",
    "shift",
    "alpha",
    "bias",
)


def from_config(config: TrainConfig) -> Objective:
    """The preset of the configuration with the keys that it sets.

    Raises
    ------
    ConfigError
        A key is set that the preset does not use, or no unique solution exists.
    """
    given = {key: value for key in _KEYS if (value := getattr(config, key)) is not None}
    return make_objective(config.objective, **given)


def make_objective(preset: str, **given: Any) -> Objective:
    """A preset with some of its fields changed.

    Raises
    ------
    ConfigError
        An unknown preset, a field that it does not use, or no unique solution.
    """
    if preset not in PRESETS:
        raise ConfigError(f"objective: found {preset!r}, expected one of {', '.join(PRESETS)}")
    base = PRESETS[preset]
    unused = {
        "x_max": base.weight != "power",
        "weight_exponent": base.weight != "power",
        "alpha": base.weight != "confidence",
        "context_smoothing": base.target != "pmi",
        "shift": base.target not in ("pmi", "smoothed_conditional") or base.unobserved == "softplus",
        "rho": not base.is_quadratic,
        "popularity_exponent": not base.is_quadratic,
        "popularity_floor": not base.is_quadratic,
    }
    if base.unobserved == "softplus":
        unused["context_smoothing"] = True
    for field, is_unused in unused.items():
        if is_unused and field in given:
            raise ConfigError(f"train.{field} is set, but the objective {preset!r} does not use it; remove it")
    if preset == "ials" and "rho" in given:
        given["scale"] = 1.0 / (1.0 + given["rho"])
    return Objective(**{**asdict(base), **given})
