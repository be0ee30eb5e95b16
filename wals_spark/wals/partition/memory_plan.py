"""The memory plan of a training: where a rank keeps the factors and the matrix."""

from __future__ import annotations

from dataclasses import dataclass

BLOCK_CELLS = 1 << 23
"""Cells of a streamed block: 100 MB, some tenths of a second of work."""
FETCHED_ROWS = 1 << 20
"""Ghost rows that a block fetches where factors are sharded."""


@dataclass(frozen=True)
class MemoryPlan:
    """Decisions that change memory and speed, never the result beyond rounding.

    Attributes
    ----------
    factors : {"replicated", "sharded"}
        Every rank has all rows of both sides, or its own rows alone; see `wals_spark.wals.engine.factors`.
    matrix : {"resident", "streamed"}
        The own cells are in memory, or in a file.
    block_cells : int
        Streamed: cells of a block, if no row has more.
    fetched_rows : int
        Sharded: ghost rows of a block, if no row needs more.
    scratch : str or None
        Streamed: directory of the file; None = the system's for temporary files.
    """

    factors: str = "replicated"
    matrix: str = "resident"
    block_cells: int = BLOCK_CELLS
    fetched_rows: int = FETCHED_ROWS
    scratch: str | None = None

    @property
    def sharded(self) -> bool:
        """Whether each rank has the factors of its own rows alone."""
        return self.factors == "sharded"

    @property
    def streamed(self) -> bool:
        """Whether the cells lie in a file."""
        return self.matrix == "streamed"
