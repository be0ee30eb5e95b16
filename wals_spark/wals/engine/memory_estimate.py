"""How much memory a training needs, and how to hold what does not fit; before it starts."""

from __future__ import annotations

from dataclasses import dataclass, replace

from wals_spark.cluster import process_group
from wals_spark.errors import ConfigError
from wals_spark.matrix import coo
from wals_spark.wals.engine import checkpoint
from wals_spark.wals.partition.memory_plan import Holding
from wals_spark.wals.solvers.cache_lines import LINE_BYTES

PROCESS_BYTES = 400 << 20
"""Of a rank that has trained on next to nothing: Python, Arrow, numba with its kernels."""
TORCH_BYTES = 400 << 20
"""Of torch on top, which several ranks need."""
LOADING_BYTES = 60
"""Per own cell while one rank reads: two ids and a count twice, rows, row numbers. 48.1 M cells took 3.05 GB in all."""
EXCHANGE_BYTES = 40
"""Per own cell on top, with several ranks: sorted for sending, and received."""
MARGINAL_BYTES = 64
"""Per row and column of the matrix, whoever owns it: owner, popularity, ridge, cells, losses, sums in the making."""
LEAST_BLOCK_CELLS = 1 << 16
LEAST_FETCHED_ROWS = 1 << 10
BLOCK_SHARE = 8
"""A block in the making, and what a block fetches, may take this part of the memory each."""


@dataclass(frozen=True)
class Problem:
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
        At most while the matrix is read, exchanged and placed.
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


def estimate_memory(problem: Problem, holding: Holding) -> MemoryEstimate:
    """The memory of a rank.

    ::

        resident    60 c while reading (100 c with several ranks), then 12 c (24 c with two layouts); c = cells / ranks
        streamed    60 B while a block is made, 24 B for the two that are read ahead; B = block_cells
        replicated  4 k (m + n + max(m, n)) and four times the own rows of the larger side, and messages;
                    where a row is not whole lines (biases, or 4 k not a multiple of 64), 4 k max(m, n) more
        sharded     4 k (m + n) / ranks, as many own rows, and what two blocks fetch

    with 4 and 12 for float32.
    """
    m, n = problem.shape
    row = problem.k * problem.itemsize
    cell = 4 + 2 * problem.itemsize
    own = -(-problem.cells // problem.ranks)
    own_rows = -(-max(m, n) // problem.ranks) * row
    several = problem.ranks > 1
    if holding.streamed:
        at_once = min(own, holding.block_cells)
        loading = at_once * LOADING_BYTES + coo.BATCH_ENTRIES * (LOADING_BYTES + EXCHANGE_BYTES * several)
        matrix = 2 * at_once * cell
    else:
        loading = own * (LOADING_BYTES + EXCHANGE_BYTES * several) + (problem.layouts - 1) * own * cell
        matrix = problem.layouts * own * cell
    message = (problem.ranks + 1) * min(process_group.MAX_MESSAGE_BYTES, own_rows) * several
    shard = 3 * min(checkpoint.SHARD_BYTES, own_rows)
    start = min(checkpoint.SHARD_BYTES, 6 * 8 // problem.itemsize * own_rows)
    # The solvers may keep a rotated copy of the fixed side, and one padded to whole lines.
    copies = 1 + (problem.biased or row % LINE_BYTES != 0)
    if holding.sharded:
        fetched = min(holding.fetched_rows, min(own, holding.block_cells) if holding.streamed else own, max(m, n)) * row
        factors = -(-(m + n) // problem.ranks) * row + 3 * own_rows + max((6 + copies) * fetched, shard, start)
    else:
        factors = (m + n + copies * max(m, n)) * row + 4 * own_rows + max(message, shard, start)
    process = PROCESS_BYTES + TORCH_BYTES * several
    return MemoryEstimate(process, MARGINAL_BYTES * (m + n), loading, matrix, factors)


def choose(problem: Problem, holding: Holding, memory: int) -> tuple[Holding, MemoryEstimate]:
    """Decide what is left open: the fastest way that fits.

    Factors replicated before sharded, within these the matrix resident before streamed.

    Parameters
    ----------
    problem : Problem
    holding : Holding
    memory : int
        Bytes that a rank may use, where `holding` does not say.

    Raises
    ------
    ConfigError
        Nothing fits; names the keys to change.
    """
    memory = holding.memory or memory
    several, free = problem.ranks > 1, not problem.whole
    exchanges = (
        ["replicated", "sharded"][: 1 + (several and free)] if holding.exchange == "auto" else [holding.exchange]
    )
    matrices = ["resident", "streamed"][: 1 + free] if holding.matrix == "auto" else [holding.matrix]
    tried = []
    for exchange in exchanges:
        for matrix in matrices:
            candidate = _sized(problem, replace(holding, exchange=exchange, matrix=matrix), memory)
            estimate = estimate_memory(problem, candidate)
            if estimate.peak <= memory:
                return candidate, estimate
            tried.append((estimate.peak, candidate, estimate))
    peak, candidate, estimate = min(tried, key=lambda entry: entry[0])
    raise ConfigError(
        f"training needs about {peak / 2**30:.2f} GiB per rank, factors {candidate.exchange} and matrix "
        f"{candidate.matrix} ({estimate}), but each of the {problem.ranks} ranks has {memory / 2**30:.2f} GiB; "
        f"{_advice(holding, problem)}"
    )


def _sized(problem: Problem, holding: Holding, memory: int) -> Holding:
    """With blocks that fit the memory."""
    part, row = memory // BLOCK_SHARE, problem.k * problem.itemsize
    cells, rows = part // LOADING_BYTES, part // (6 * row)
    return replace(
        holding,
        memory=memory,
        block_cells=min(holding.block_cells, max(LEAST_BLOCK_CELLS, cells)),
        fetched_rows=min(holding.fetched_rows, max(LEAST_FETCHED_ROWS, rows)),
    )


def _advice(holding: Holding, problem: Problem) -> str:
    changes = ["lower train.k"]
    changes += ["set train.exchange=auto"] if holding.exchange == "replicated" and problem.ranks > 1 else []
    changes += ["set train.matrix=auto"] if holding.matrix == "resident" and not problem.whole else []
    changes += ["set cooccurrence.min_pair_count to drop rare pairs"] if not holding.streamed else []
    changes += ["lower train.workers, where ranks share a machine, or run on more machines"]
    return ", or ".join(changes)


def machine_memory() -> int:
    """Bytes of this machine's memory that are available, or of its control group's limit where that is less."""
    available = _meminfo("MemAvailable")
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            with open(path, encoding="ascii") as stream:
                text = stream.read().strip()
        except OSError:
            continue
        if text.isdigit():
            available = min(available, int(text))
    return available


def _meminfo(name: str) -> int:
    try:
        with open("/proc/meminfo", encoding="ascii") as stream:
            line = next(line for line in stream if line.startswith(name + ":"))
    except (OSError, StopIteration):
        # No such file on macOS: nothing is known, so nothing is refused.
        return 1 << 62
    return int(line.split()[1]) * 1024
