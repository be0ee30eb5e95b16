"""What the ranks of a training are given: matrix, objective, how to solve, where to write; plain JSON values."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from wals_spark import storage
from wals_spark.errors import ConfigError
from wals_spark.objective import Objective
from wals_spark.wals.engine.memory_estimate import Problem
from wals_spark.wals.partition.memory_plan import Holding


@dataclass(frozen=True)
class RankTask:
    """What every rank is told; plain JSON values.

    Attributes
    ----------
    files : tuple of str
        The matrix, in any order.
    value : str
        Column of the values.
    shape : (m, n)
    symmetric : bool
    unit : int
        Values are divided by it.
    objective : Objective
    k, sweeps, tolerance, seed, precision
        See the configuration.
    gauge_power : float or None
        See the configuration; None = the factors as they were solved.
    directory : str
        Of checkpoints, status and result.
    facts : dict
        Identity of the training, compared on resume.
    threads : int
    device : {"cpu", "cuda"}
    checkpoint_every : int
        Half-sweeps.
    duplicates : {"sum", "refuse", "keep"}
    signed : bool
        Negative values are allowed.
    solver : {"auto", "exact", "cg", "block"}
    cg_steps, block_size : int
    weight : str or None
        Column of the weights, where the objective takes them from one.
    start : {"normal", "positive"}
        Random columns: of independent normal numbers, or of their absolute values with norm 1, which is nearer to
        the solution for ratings that are all positive, and MLlib's choice.
    initial : str or None
        A Parquet file or directory of (id, vector): where the columns start; others start at random.
    holding : Holding
    """

    files: tuple[str, ...]
    shape: tuple[int, int]
    symmetric: bool
    unit: int
    objective: Objective
    k: int
    sweeps: int
    tolerance: float
    seed: int
    directory: str
    facts: dict[str, Any] = field(default_factory=dict)
    value: str = "units"
    precision: str = "float32"
    gauge_power: float | None = 0.5
    threads: int = 1
    device: str = "cpu"
    checkpoint_every: int = 1
    duplicates: str = "sum"
    signed: bool = False
    solver: str = "auto"
    cg_steps: int = 4
    block_size: int = 64
    weight: str | None = None
    start: str = "normal"
    initial: str | None = None
    holding: Holding = field(default_factory=Holding)

    def __post_init__(self) -> None:
        if not self.objective.is_quadratic and (self.holding.sharded or self.holding.streamed):
            raise ConfigError(
                f"the objective {self.objective.name} looks at all factors and all cells in every half-sweep, found "
                f"{self.holding.exchange} factors and a {self.holding.matrix} matrix; remove train.exchange and "
                "train.matrix, and use fewer ranks per machine, or the objective swivel_like"
            )
        if self.duplicates == "keep" and self.objective.rho != 0 and not self.objective.additive:
            raise ConfigError(
                f"repeated cells cannot be kept apart with the objective {self.objective.name} and rho "
                f"{self.objective.rho}, because each would take the place of the unobserved weight; sum or refuse them "
                "(duplicates)"
            )
        if (self.objective.weight == "column") != (self.weight is not None):
            raise ConfigError(
                f"the objective {self.objective.name} takes weights from "
                + ("a column; name it" if self.weight is None else f"the counts, not from a column {self.weight}")
            )

    def to_json(self) -> str:
        """As text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> RankTask:
        """The inverse of `to_json`."""
        data = json.loads(text)
        return cls(
            **{
                **data,
                "files": tuple(data["files"]),
                "shape": tuple(data["shape"]),
                "objective": Objective(**data["objective"]),
                "holding": Holding(**data["holding"]),
            }
        )

    def problem(self, cells: int, ranks: int) -> Problem:
        """What decides the memory of a rank."""
        return Problem(
            cells,
            self.shape,
            self.k,
            ranks,
            layouts=1 if self.symmetric and self.objective.symmetric else 2,
            itemsize=np.dtype(self.precision).itemsize,
            whole=not self.objective.is_quadratic,
            biased=self.objective.bias != "none",
        )

    @property
    def status_path(self) -> str:
        """The file that rank 0 rewrites after every half-sweep."""
        return storage.join(self.directory, "status.json")

    @property
    def checkpoints(self) -> str:
        """Directory of the checkpoints."""
        return storage.join(self.directory, "checkpoints")

    @property
    def result(self) -> str:
        """Directory of the final factors."""
        return storage.join(self.directory, "result")
