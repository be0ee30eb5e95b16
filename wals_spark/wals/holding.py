"""How a rank holds the matrix and the factors."""

from __future__ import annotations

from dataclasses import dataclass

BLOCK_CELLS = 1 << 23
"""Cells of a streamed block: 100 MB, some tenths of a second of work."""
FETCHED_BYTES = 1 << 28
"""Factors that a block fetches where none holds them all."""


@dataclass(frozen=True)
class Holding:
    """Decisions that change memory and speed, never the result beyond rounding.

    Attributes
    ----------
    exchange : {"replicated", "sharded"}
        Of factors, see `wals_spark.wals.model`.
    matrix : {"resident", "streamed"}
        The own cells in memory, or in a file.
    block_cells : int
        Streamed: cells of a block, if no row has more.
    fetched_rows : int
        Sharded: rows of the fixed side that a block needs, if no row needs more.
    scratch : str or None
        Streamed: directory of the file; None = the system's for temporary files.
    """

    exchange: str = "replicated"
    matrix: str = "resident"
    block_cells: int = BLOCK_CELLS
    fetched_rows: int = 1 << 20
    scratch: str | None = None

    @property
    def sharded(self) -> bool:
        """Whether each rank holds its own rows' factors alone."""
        return self.exchange == "sharded"

    @property
    def streamed(self) -> bool:
        """Whether the cells lie in a file."""
        return self.matrix == "streamed"
