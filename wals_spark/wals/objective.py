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
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from wals_spark.errors import ConfigError

if TYPE_CHECKING:
    from wals_spark.config import TrainConfig

TARGETS = ("pmi", "log", "one", "value")
WEIGHTS = ("power", "confidence")
BIASES = ("none", "free")


@dataclass(frozen=True)
class Marginals:
    """Sums of the matrix, in weighted counts.

    Attributes
    ----------
    rows, cols : float64 arrays of shape (m,) and (n,)
        Row and column sums.
    row_cells, col_cells : int64 arrays of shape (m,) and (n,)
        Observed cells per row and column.
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
    target : {"pmi", "log", "one", "value"}
        ``max(ln(x_ij sum c^a / (r_i c_j^a)) - ln shift, 0)``, ``ln x_ij``, 1, or ``x_ij``.
    weight : {"power", "confidence"}
        ``min(x / x_max, 1)^weight_exponent`` or ``alpha |x|``.
    additive : bool
        The weight comes on top of the unobserved weight (True) or replaces it (False).
    rho : float
        Weight of unobserved cells.
    popularity_exponent : float
        ``g_i = (r_i / geometric mean of r)^popularity_exponent``, h likewise from the column sums.
    regularization, regularization_exponent : float
        lambda and nu.
    bias : {"none", "free"}
    x_max, weight_exponent, alpha : float
    context_smoothing : float
        a of the target "pmi".
    shift : float
        Number of negative samples that the target "pmi" is shifted by.
    """

    name: str
    target: str
    weight: str
    additive: bool
    rho: float
    popularity_exponent: float
    regularization: float
    regularization_exponent: float = 0.0
    bias: str = "none"
    x_max: float = 10.0
    weight_exponent: float = 0.5
    alpha: float = 1.0
    context_smoothing: float = 1.0
    shift: float = 1.0

    def __post_init__(self) -> None:
        if self.rho == 0 and self.regularization == 0:
            raise ConfigError(
                f"objective {self.name!r}: regularization and rho are both 0, so a row with fewer cells than k has no "
                "unique solution; set train.regularization or train.rho above 0"
            )

    @property
    def symmetric(self) -> bool:
        """Whether a symmetric count matrix gives a symmetric target."""
        return self.target != "pmi" or self.context_smoothing == 1.0

    def popularity(self, sums: np.ndarray, cells: np.ndarray) -> np.ndarray:
        """``g_i = (r_i / geometric mean)^exponent``, 0 for an empty row.

        Parameters
        ----------
        sums, cells : arrays of shape (m,)
            Row sums and observed cells per row.

        Returns
        -------
        float64 array of shape (m,)
        """
        g = np.zeros(len(sums), np.float64)
        filled = cells > 0
        if self.popularity_exponent == 0:
            g[filled] = 1.0
        elif filled.any():
            logs = np.log(sums[filled])
            g[filled] = np.exp(self.popularity_exponent * (logs - logs.mean()))
        return g

    def regularizers(self, cells: np.ndarray, others: int) -> np.ndarray:
        """``lambda_i = lambda (n_i + rho n)^nu`` for rows with `cells` observed cells of `others` columns."""
        if self.regularization_exponent == 0:
            return np.full(len(cells), self.regularization, np.float64)
        return self.regularization * (cells + self.rho * others) ** self.regularization_exponent

    def cells(
        self, x: np.ndarray, row: np.ndarray, col: np.ndarray, marginals: Marginals, g: np.ndarray, h: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Target m and extra weight d of observed cells.

        Parameters
        ----------
        x : float64 array of shape (c,)
            Their values.
        row, col : int arrays of shape (c,)
        marginals : Marginals
        g, h : float64 arrays of shapes (m,) and (n,)

        Returns
        -------
        m, d : float64 arrays of shape (c,)
        """
        if self.target == "pmi":
            context = marginals.cols**self.context_smoothing
            log_row, log_context = _log(marginals.rows), _log(context / context.sum())
            m = np.maximum(np.log(x) - log_row[row] - log_context[col] - np.log(self.shift), 0.0)
        elif self.target == "log":
            m = np.log(x)
        elif self.target == "one":
            m = (x > 0).astype(np.float64)
        else:
            m = x.astype(np.float64)
        if self.weight == "confidence":
            weight = self.alpha * np.abs(x)
        else:
            weight = np.minimum(x / self.x_max, 1.0) ** self.weight_exponent
        return m, weight if self.additive else weight - self.rho * g[row] * h[col]

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values: what a checkpoint's fingerprint is made of."""
        return asdict(self)


def _log(values: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(values)


PRESETS: dict[str, Objective] = {
    # Found by the benchmark of word vectors, see docs/objectives.md.
    "ppmi": Objective(
        "ppmi", "pmi", "power", True, rho=0.005, popularity_exponent=0.75, regularization=10.0, weight_exponent=0.5
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
        x_max=10.0,
        weight_exponent=0.75,
    ),
    # Hu, Koren and Volinsky 2008, with the confidence 1 + alpha x of MLlib and of `implicit`.
    "implicit": Objective(
        "implicit", "one", "confidence", True, rho=1.0, popularity_exponent=0.0, regularization=0.01, alpha=1.0
    ),
}
"""Name -> the objective with its published defaults."""

_KEYS = {
    "regularization": "regularization",
    "regularization_exponent": "regularization_exponent",
    "rho": "rho",
    "popularity_exponent": "popularity_exponent",
    "x_max": "x_max",
    "weight_exponent": "weight_exponent",
    "context_smoothing": "context_smoothing",
    "alpha": "alpha",
}


def from_config(config: TrainConfig) -> Objective:
    """The preset of the configuration with the keys that it sets.

    Raises
    ------
    ConfigError
        A key is set that the preset does not use, or no unique solution exists.
    """
    preset = PRESETS[config.objective]
    given = {field: getattr(config, key) for key, field in _KEYS.items()}
    given = {field: value for field, value in given.items() if value is not None}
    unused = {
        "x_max": preset.weight != "power",
        "weight_exponent": preset.weight != "power",
        "alpha": preset.weight != "confidence",
        "context_smoothing": preset.target != "pmi",
    }
    for field, is_unused in unused.items():
        if is_unused and field in given:
            raise ConfigError(f"train.{field} is set, but the objective {preset.name!r} does not use it; remove it")
    return Objective(**{**asdict(preset), **given})
