"""How a rank holds the matrix and the factors, and what may decide it."""

from __future__ import annotations

from dataclasses import dataclass

BLOCK_CELLS = 1 << 23
"""Cells of a streamed block: 100 MB, some tenths of a second of work."""
FETCHED_ROWS = 1 << 20
"""Rows of the fixed side that a block fetches where no rank holds them all."""


@dataclass(frozen=True)
class Holding:
    """Decisions that change memory and speed, never the result beyond rounding.

    Attributes
    ----------
    exchange : {"auto", "replicated", "sharded"}
        Of factors, see `wals_spark.wals.engine.factors`.
    matrix : {"auto", "resident", "streamed"}
        The own cells in memory, or in a file.
    memory : int or None
        Bytes that a rank may use; decides what is "auto", see `wals_spark.wals.engine.memory_estimate.choose`.
        None = its part of what its machine has.
    block_cells : int
        Streamed: cells of a block, if no row has more.
    fetched_rows : int
        Sharded: rows of the fixed side that a block needs, if no row needs more.
    scratch : str or None
        Streamed: directory of the file; None = the system's for temporary files.
    """

    exchange: str = "auto"
    matrix: str = "auto"
    memory: int | None = None
    block_cells: int = BLOCK_CELLS
    fetched_rows: int = FETCHED_ROWS
    scratch: str | None = None

    @property
    def settled(self) -> bool:
        """Whether nothing is left to decide."""
        return "auto" not in (self.exchange, self.matrix)

    @property
    def sharded(self) -> bool:
        """Whether each rank holds its own rows' factors alone."""
        return self.exchange == "sharded"

    @property
    def streamed(self) -> bool:
        """Whether the cells lie in a file."""
        return self.matrix == "streamed"
