"""How much memory a training needs, before it starts."""

from __future__ import annotations

from dataclasses import dataclass

from wals_spark.errors import ConfigError

LOADING_BYTES = 60
"""Per own cell while one rank reads: two ids and a count twice, rows, row numbers. 48.1 M cells took 3.05 GB in all."""
EXCHANGE_BYTES = 40
"""Per own cell on top, with several ranks: sorted for sending, and received."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one rank.

    Attributes
    ----------
    loading : int
        At most while the matrix is read, exchanged and placed.
    matrix : int
        Own rows and own columns afterwards.
    factors : int
        Both sides, and the features and gathered rows of a half-sweep.
    """

    loading: int
    matrix: int
    factors: int

    @property
    def peak(self) -> int:
        """The larger of loading and training."""
        return max(self.loading, self.matrix + self.factors)

    def __str__(self) -> str:
        parts = {"reading": self.loading, "matrix": self.matrix, "factors": self.factors}
        return ", ".join(f"{name} {size / 2**30:.2f} GiB" for name, size in parts.items())


def estimate_memory(
    cells: int, shape: tuple[int, int], k: int, ranks: int, *, layouts: int, itemsize: int = 4
) -> MemoryEstimate:
    """The memory of a rank with replicated factors.

    Parameters
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
    """
    own = -(-cells // ranks)
    layout = own * (4 + 2 * itemsize)
    loading = own * (LOADING_BYTES + (EXCHANGE_BYTES if ranks > 1 else 0)) + (layouts - 1) * layout
    factors = (sum(shape) + max(shape)) * k * itemsize
    return MemoryEstimate(loading, layouts * layout, factors)


def check_memory(estimate: MemoryEstimate, available: int, ranks: int) -> None:
    """`ConfigError` when the ranks of a machine need more than it has.

    Parameters
    ----------
    estimate : MemoryEstimate
    available : int
        Bytes of the machine that runs all `ranks`.
    ranks : int
    """
    needed = estimate.peak * ranks
    if needed > available:
        raise ConfigError(
            f"training needs about {needed / 2**30:.1f} GiB ({ranks} ranks of {estimate.peak / 2**30:.1f} GiB: "
            f"{estimate}), but this machine has {available / 2**30:.1f} GiB; lower train.k or train.workers, set "
            "cooccurrence.min_pair_count to drop rare pairs, or run on more machines"
        )


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
