"""The task of the ranks of a training: matrix, objective, settings, where to write; all plain JSON values."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np

from wals_spark import storage
from wals_spark.config import TrainConfig
from wals_spark.errors import ConfigError, InputError
from wals_spark.objective import Objective
from wals_spark.wals.engine.memory_estimate import ProblemSize
from wals_spark.wals.partition.memory_plan import MemoryPlan


@dataclass(frozen=True)
class RankTask:
    """What every rank of a training gets, the same for all of them.

    Attributes
    ----------
    files : tuple of str
        The matrix, in any order.
    shape : (int, int)
        m and n.
    symmetric : bool
        The matrix equals its transpose.
    unit : int
        Values are divided by it.
    objective : Objective
        With the keys of the configuration that belong to it already in it.
    config : TrainConfig
        The keys ``train.*``: width, sweeps, solver, precision, checkpoints, memory.
    seed : int
    directory : str
        Of checkpoints, status and result.
    facts : dict
        Identity of the training, compared on resume.
    value : str
        Column of the values.
    weight : str or None
        Column of the weights, where the objective takes them from one.
    signed : bool
        Negative values are allowed.
    duplicates : {"sum", "refuse", "keep"}
    threads : int
        Of a rank, decided from ``train.threads`` and the cpus of its task.
    device : {"cpu", "cuda"}
        Decided from ``train.device`` and the cluster.
    canonical : bool
        The result stands in the canonical gauge of ``train.gauge_power``; False = as it was solved.
    start : {"normal", "unit", "positive"}
        Random rows of the side that is solved second: of independent normal numbers, of these with norm 1, which is
        MLlib's choice, or of their absolute values with norm 1, for factors that must not be negative.
    first : {"row", "col"}
        The side that is solved first; MLlib begins with its items, the columns.
    initial : str or None
        A Parquet file or directory of (id, vector): where the columns start; others start at random.
    start_only : bool
        No sweep at all: the result is the random factors, of both sides.
    nonnegative : bool
        No factor is negative.
    memory_plan : MemoryPlan or None
        None = the ranks decide it from the memory of their machines.

    Raises
    ------
    ConfigError
        The objective cannot be solved with this memory plan, duplicates, weights or signs.
    """

    files: tuple[str, ...]
    shape: tuple[int, int]
    symmetric: bool
    unit: int
    objective: Objective
    config: TrainConfig
    seed: int
    directory: str
    facts: dict[str, Any] = field(default_factory=dict)
    value: str = "units"
    weight: str | None = None
    signed: bool = False
    duplicates: str = "sum"
    threads: int = 1
    device: str = "cpu"
    canonical: bool = True
    start: str = "normal"
    first: str = "row"
    initial: str | None = None
    start_only: bool = False
    nonnegative: bool = False
    memory_plan: MemoryPlan | None = None

    def __post_init__(self) -> None:
        plan = self.memory_plan or MemoryPlan()
        sharded = plan.sharded or self.config.exchange == "sharded"
        streamed = plan.streamed or self.config.matrix == "streamed"
        if not self.objective.is_quadratic and (sharded or streamed):
            found = " and ".join(["sharded factors"] * sharded + ["a streamed matrix"] * streamed)
            raise ConfigError(
                f"the objective {self.objective.name} is computed from all factors and all cells in every half-sweep, "
                f"found {found}; remove train.exchange and train.matrix, and use fewer ranks per machine, or the "
                "objective swivel_like"
            )
        if self.duplicates == "keep" and self.objective.rho != 0 and not self.objective.additive:
            raise ConfigError(
                f"repeated cells cannot be kept apart with the objective {self.objective.name} and rho "
                f"{self.objective.rho}, because each would take the place of the unobserved weight; sum or refuse them "
                "(duplicates)"
            )
        if self.nonnegative and (not self.objective.is_quadratic or self.objective.bias != "none"):
            raise ConfigError(
                f"the objective {self.objective.name} with bias {self.objective.bias} cannot be solved without "
                "negative factors (nonnegative); use a quadratic objective without biases"
            )
        if (self.objective.weight == "column") != (self.weight is not None):
            raise ConfigError(
                f"the objective {self.objective.name} takes weights from "
                + ("a column; name it" if self.weight is None else f"the counts, not from a column {self.weight}")
            )

    def to_json(self) -> str:
        """As text."""
        data = {each.name: getattr(self, each.name) for each in fields(self)}
        plan = asdict(self.memory_plan) if self.memory_plan else None
        return json.dumps(
            {
                **data,
                "objective": asdict(self.objective),
                "config": self.config.model_dump(mode="json"),
                "memory_plan": plan,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> RankTask:
        """The inverse of `to_json`."""
        data = json.loads(text)
        plan = data["memory_plan"]
        return cls(
            **{
                **data,
                "files": tuple(data["files"]),
                "shape": tuple(data["shape"]),
                "objective": Objective(**data["objective"]),
                "config": TrainConfig(**data["config"]),
                "memory_plan": MemoryPlan(**plan) if plan else None,
            }
        )

    def problem_size(self, cells: int, ranks: int) -> ProblemSize:
        """What decides the memory of a rank."""
        return ProblemSize(
            cells,
            self.shape,
            self.config.k,
            ranks,
            layouts=1 if self.symmetric and self.objective.symmetric else 2,
            itemsize=np.dtype(self.config.precision).itemsize,
            whole=not self.objective.is_quadratic,
            biased=self.objective.bias != "none",
        )

    @property
    def order(self) -> tuple[str, str]:
        """The side that is solved first, and the one that the training starts from."""
        return ("row", "col") if self.first == "row" else ("col", "row")

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


def check_shape(k: int, shape: tuple[int, int]) -> None:
    """`InputError` when there are more factors than rows or columns."""
    if k > min(shape):
        raise InputError(
            f"train.k is {k}, but the matrix has {shape[0]:,} rows and {shape[1]:,} columns; "
            f"k may be at most {min(shape):,}"
        )
