"""The columns that a row has touched: a list, and a bitmap of two levels that puts them in order.

The loop that reads the bitmap and clears it stands in `row_accumulation` and in `row_finishing`: with the ordered
columns written to a list first, for one loop instead of two, counting took 5 to 8 % longer.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from wals_spark.cooccurrence.kernels.intrinsics import U, loop


class ColumnSet(NamedTuple):
    """Room for a set of columns.

    Attributes
    ----------
    touched : uint32 array of shape (V + 2,)
        The columns; their number is kept beside.
    words : uint64 array of shape (V / 64 + 1,), zeros
        Column c is bit c % 64 of word c / 64.
    summary : uint64 array of shape (V / 4096 + 1,), zeros
        Bit w % 64 of word w / 64: whether ``words[w]`` has a bit.
    """

    touched: np.ndarray
    words: np.ndarray
    summary: np.ndarray


def empty_column_set(size: int) -> ColumnSet:
    """Room for the columns 0 .. size - 1."""
    return ColumnSet(
        np.empty(size + 2, np.uint32), np.zeros((size >> 6) + 1, np.uint64), np.zeros((size >> 12) + 1, np.uint64)
    )


@loop
def mark_columns(columns, n):
    """Set the bits of the first n touched columns."""
    touched, words, summary = columns
    for q in range(n):
        c = U(touched[U(q)])
        words[c >> U(6)] |= U(1) << (c & U(63))
        summary[c >> U(12)] |= U(1) << ((c >> U(6)) & U(63))
