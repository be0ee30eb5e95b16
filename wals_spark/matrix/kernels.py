"""Compiled loops of the CSR construction; `wals_spark.matrix.csr` holds the interface.

Importing this module imports numba, so it is imported inside functions.
"""

from __future__ import annotations

import numpy as np

from wals_spark.compiled import compiled

OVERFLOW = -1
LARGEST, SMALLEST = 2**63 - 1, -(2**63)


@compiled(nogil=True)
def count_per_row(rows, counts):  # type: ignore[no-untyped-def]  # numba infers the types
    """``counts[r] += 1`` for every cell."""
    for t in range(len(rows)):
        counts[rows[t]] += 1


@compiled(nogil=True)
def scatter(rows, cols, values, cursor, out_cols, out_values):  # type: ignore[no-untyped-def]
    """Append every cell to its row: a stable counting sort by row.

    Parameters
    ----------
    rows : int array of shape (c,)
    cols : int32 array of shape (c,)
    values : int64 or float64 array of shape (c,)
    cursor : int64 array of shape (n_rows,)
        Where the next cell of each row goes; updated.
    out_cols : int32 array of shape (c,)
        Output.
    out_values : array of shape (c,) and the dtype of `values`
        Output.
    """
    for t in range(len(rows)):
        at = cursor[rows[t]]
        out_cols[at] = cols[t]
        out_values[at] = values[t]
        cursor[rows[t]] = at + 1


@compiled(nogil=True)
def order_rows(indptr, cols, values):  # type: ignore[no-untyped-def]
    """Sort every row by (column, value) where it is not sorted yet; returns the number of repeated cells."""
    repeated = 0
    for i in range(len(indptr) - 1):
        start, stop = indptr[i], indptr[i + 1]
        rising = True
        for t in range(start + 1, stop):
            if cols[t] <= cols[t - 1]:
                rising = False
                break
        if rising:
            continue
        # By value first, then stably by column, so that sums of repeated cells do not depend on arrival.
        by_value = np.argsort(values[start:stop], kind="mergesort")
        order = by_value[np.argsort(cols[start:stop][by_value], kind="mergesort")]
        cols[start:stop] = cols[start:stop][order]
        values[start:stop] = values[start:stop][order]
        for t in range(start + 1, stop):
            if cols[t] == cols[t - 1]:
                repeated += 1
    return repeated


@compiled(nogil=True)
def _wraps(a, b):  # type: ignore[no-untyped-def]
    """Whether the int64 sum a + b overflows; asked before adding, since compiled code may assume it never does."""
    return a > LARGEST - b if b >= 0 else a < SMALLEST - b


@compiled(nogil=True)
def merge_repeated(indptr, cols, values, new_indptr, checked):  # type: ignore[no-untyped-def]
    """Sum repeated cells in place.

    Parameters
    ----------
    indptr : int64 array of shape (n_rows + 1,)
    cols : int32 array of shape (c,)
        Ascending within each row; updated.
    values : int64 or float64 array of shape (c,)
        Updated.
    new_indptr : int64 array of shape (n_rows + 1,)
        Output; its first entry is 0.
    checked : bool
        Whether the overflow of a sum is to be found: true for integers.

    Returns
    -------
    int
        Cells left, or `OVERFLOW` where an integer sum wraps.
    """
    at = 0
    for i in range(len(indptr) - 1):
        begin = at
        for t in range(indptr[i], indptr[i + 1]):
            if at > begin and cols[at - 1] == cols[t]:
                if checked and _wraps(values[at - 1], values[t]):
                    return OVERFLOW
                values[at - 1] += values[t]
            else:
                cols[at] = cols[t]
                values[at] = values[t]
                at += 1
        new_indptr[i + 1] = at
    return at


@compiled(nogil=True)
def add_at(index, values, sums, checked):  # type: ignore[no-untyped-def]
    """``sums[index] += values``, one after another.

    Parameters
    ----------
    index : int array of shape (n,)
    values : int64 or float64 array of shape (n,)
    sums : array of the dtype of `values`
        Updated.
    checked : bool
        Whether the overflow of a sum is to be found: true for integers.

    Returns
    -------
    bool
        False where an integer sum wraps.
    """
    for t in range(len(index)):
        if checked and _wraps(sums[index[t]], values[t]):
            return False
        sums[index[t]] += values[t]
    return True


@compiled(nogil=True)
def distinct_bounds(indptr, indices, seen, most):  # type: ignore[no-untyped-def]
    """Cut rows into consecutive blocks with at most `most` distinct columns each.

    Parameters
    ----------
    indptr : int64 array of shape (rows + 1,)
    indices : int32 array of shape (nnz,)
    seen : int32 array of shape (columns,)
        Work space, -1 everywhere.
    most : int
        Largest number of distinct columns of a block; a block of one row may have more.

    Returns
    -------
    int64 array of shape (blocks + 1,)
        First row of each block, then the number of rows.
    """
    rows = len(indptr) - 1
    bounds = [0]
    distinct = 0
    for i in range(rows):
        piece = len(bounds) - 1
        new = 0
        for t in range(indptr[i], indptr[i + 1]):
            if seen[indices[t]] != piece:
                seen[indices[t]] = piece
                new += 1
        if distinct + new > most and bounds[-1] < i:
            bounds.append(i)
            distinct = 0
            for t in range(indptr[i], indptr[i + 1]):
                if seen[indices[t]] != piece + 1:
                    seen[indices[t]] = piece + 1
                    distinct += 1
        else:
            distinct += new
    bounds.append(rows)
    return np.array(bounds)
