"""The memory that a training needs, and the plan that fits a rank's memory; before it starts."""

from __future__ import annotations

from dataclasses import dataclass, replace

from wals_spark.cluster import process_group
from wals_spark.config import TrainConfig
from wals_spark.errors import ConfigError
from wals_spark.matrix import coo
from wals_spark.wals.engine import checkpoint
from wals_spark.wals.partition.memory_plan import MemoryPlan
from wals_spark.wals.solvers.cache_lines import LINE_BYTES

PROCESS_BYTES = 400 << 20
"""Of a rank that has trained on a matrix of a few cells: Python, Arrow, numba with its kernels."""
TORCH_BYTES = 400 << 20
"""Of torch on top, which several ranks need."""
LOADING_BYTES = 60
"""Per own cell while one rank reads: two ids and a count twice, rows, row numbers. 48.1 M cells took 3.05 GB in all."""
REDISTRIBUTION_BYTES = 40
"""Per own cell on top, with several ranks: sorted for sending, and received."""
MARGINAL_BYTES = 64
"""Per row and column of the matrix, whoever owns it: owner, popularity, ridge, cells, losses, sums in the making."""
LEAST_BLOCK_CELLS = 1 << 16
LEAST_FETCHED_ROWS = 1 << 10
BLOCK_SHARE = 8
"""A block in the making, and what a block fetches, may take this part of the memory each."""


@dataclass(frozen=True)
class ProblemSize:
    """What decides the memory of a training.

    Attributes
    ----------
    cells : int
        Observed cells of the matrix.
    shape : (m, n)
    k : int
    ranks : int
    layouts : int
        1 when one layout serves both sides, else 2.
    itemsize : int
        Bytes of a factor, a target and a weight.
    whole : bool
        The objective needs factors and matrix in memory, see `wals_spark.wals.solvers.non_quadratic`.
    biased : bool
        Rows have coordinates beside the factors.
    """

    cells: int
    shape: tuple[int, int]
    k: int
    ranks: int
    layouts: int
    itemsize: int = 4
    whole: bool = False
    biased: bool = False


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one rank.

    Attributes
    ----------
    process : int
        Before anything is read.
    marginals : int
        What is known of every row and column.
    loading : int
        At most while the matrix is read and redistributed.
    matrix : int
        Own rows and own columns afterwards.
    factors : int
        Both sides, and what a half-step, its messages and its checkpoint hold of them.
    """

    process: int
    marginals: int
    loading: int
    matrix: int
    factors: int

    @property
    def peak(self) -> int:
        """With the larger of loading and training."""
        return self.process + self.marginals + max(self.loading, self.matrix + self.factors)

    def __str__(self) -> str:
        parts = {"reading": self.loading, "matrix": self.matrix, "factors": self.factors}
        rest = {"rows and columns": self.marginals, "the process": self.process}
        return ", ".join(f"{name} {size / 2**30:.2f} GiB" for name, size in {**parts, **rest}.items())


def estimate_memory(size: ProblemSize, plan: MemoryPlan) -> MemoryEstimate:
    """The memory of a rank.

    ::

        resident    60 c while reading (100 c with several ranks), then 12 c (24 c with two layouts); c = cells / ranks
        streamed    60 B while a block is made, 24 B for the two that are read ahead; B = block_cells
        replicated  4 k (m + n + max(m, n)) and four times the own rows of the larger side, and messages;
                    where a row is not whole lines (biases, or 4 k not a multiple of 64), 4 k max(m, n) more
        sharded     4 k (m + n) / ranks, as many own rows, and what two blocks fetch

    with 4 and 12 for float32.
    """
    m, n = size.shape
    row = size.k * size.itemsize
    cell = 4 + 2 * size.itemsize
    own = -(-size.cells // size.ranks)
    own_rows = -(-max(m, n) // size.ranks) * row
    several = size.ranks > 1
    if plan.streamed:
        at_once = min(own, plan.block_cells)
        loading = at_once * LOADING_BYTES + coo.BATCH_ENTRIES * (LOADING_BYTES + REDISTRIBUTION_BYTES * several)
        matrix = 2 * at_once * cell
    else:
        loading = own * (LOADING_BYTES + REDISTRIBUTION_BYTES * several) + (size.layouts - 1) * own * cell
        matrix = size.layouts * own * cell
    message = (size.ranks + 1) * min(process_group.MAX_MESSAGE_BYTES, own_rows) * several
    shard = 3 * min(checkpoint.SHARD_BYTES, own_rows)
    start = min(checkpoint.SHARD_BYTES, 6 * 8 // size.itemsize * own_rows)
    # The solvers may keep a rotated copy of the fixed side, and one padded to whole cache lines.
    copies = 1 + (size.biased or row % LINE_BYTES != 0)
    if plan.sharded:
        fetched = min(plan.fetched_rows, min(own, plan.block_cells) if plan.streamed else own, max(m, n)) * row
        factors = -(-(m + n) // size.ranks) * row + 3 * own_rows + max((6 + copies) * fetched, shard, start)
    else:
        factors = (m + n + copies * max(m, n)) * row + 4 * own_rows + max(message, shard, start)
    process = PROCESS_BYTES + TORCH_BYTES * several
    return MemoryEstimate(process, MARGINAL_BYTES * (m + n), loading, matrix, factors)


def plan_memory(size: ProblemSize, config: TrainConfig, memory: int) -> tuple[MemoryPlan, MemoryEstimate]:
    """The fastest plan that fits, with what the configuration leaves open decided.

    Factors are replicated before they are sharded, and within these the matrix is resident before it is streamed.

    Parameters
    ----------
    size : ProblemSize
    config : TrainConfig
        Its `exchange`, `matrix` and `memory_bytes` come first.
    memory : int
        Bytes that a rank may use, where the configuration does not say.

    Returns
    -------
    plan : MemoryPlan
    estimate : MemoryEstimate

    Raises
    ------
    ConfigError
        Nothing fits; names the keys to change.
    """
    memory = config.memory_bytes or memory
    several, divisible = size.ranks > 1, not size.whole
    choices = ["replicated", "sharded"][: 1 + (several and divisible)]
    choices = choices if config.exchange == "auto" else [config.exchange]
    matrices = ["resident", "streamed"][: 1 + divisible] if config.matrix == "auto" else [config.matrix]
    tried = []
    for factors in choices:
        for matrix in matrices:
            plan = _sized(size, MemoryPlan(factors, matrix, scratch=config.scratch), memory)
            estimate = estimate_memory(size, plan)
            if estimate.peak <= memory:
                return plan, estimate
            tried.append((estimate.peak, plan, estimate))
    peak, plan, estimate = min(tried, key=lambda entry: entry[0])
    raise ConfigError(
        f"training needs about {peak / 2**30:.2f} GiB per rank, factors {plan.factors} and matrix "
        f"{plan.matrix} ({estimate}), but each of the {size.ranks} ranks has {memory / 2**30:.2f} GiB; "
        f"{_advice(config, size)}"
    )


def _sized(size: ProblemSize, plan: MemoryPlan, memory: int) -> MemoryPlan:
    """With blocks that fit the memory."""
    part, row = memory // BLOCK_SHARE, size.k * size.itemsize
    cells, rows = part // LOADING_BYTES, part // (6 * row)
    return replace(
        plan,
        block_cells=min(plan.block_cells, max(LEAST_BLOCK_CELLS, cells)),
        fetched_rows=min(plan.fetched_rows, max(LEAST_FETCHED_ROWS, rows)),
    )


def _advice(config: TrainConfig, size: ProblemSize) -> str:
    changes = ["lower train.k"]
    changes += ["set train.exchange=auto"] if config.exchange == "replicated" and size.ranks > 1 else []
    changes += ["set train.matrix=auto"] if config.matrix == "resident" and not size.whole else []
    changes += ["set cooccurrence.min_pair_count to drop rare pairs"] if config.matrix != "streamed" else []
    changes += ["lower train.workers, where ranks share a machine, or run on more machines"]
    return ", or ".join(changes)
