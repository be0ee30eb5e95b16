"""Compiled products with the large entries of the softmax: what a Hessian-vector product is made of on a processor."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from wals_spark.compiled import compiled


class CellChunk(NamedTuple):
    """The cells (t, v) of a chunk of c positions, in the order of the positions and in that of the rows.

    Attributes
    ----------
    indptr : int64 array of shape (c + 1,)
        Cells of position t are ``indptr[t]`` up to below ``indptr[t + 1]``.
    column : int32 array of shape (m,)
        The movable row v of each.
    p : float32 array of shape (m,)
        p_tv.
    rows : int32 array of shape (r,)
        The rows that have cells, ascending.
    row_ptr : int64 array of shape (r + 1,)
        Cells of row ``rows[i]`` are ``cell[row_ptr[i]:row_ptr[i + 1]]``.
    position : int32 array of shape (m,)
        Position t of the cells in the order of the rows.
    cell : int32 array of shape (m,)
        Their numbers in the order of the positions.
    """

    indptr: np.ndarray
    column: np.ndarray
    p: np.ndarray
    rows: np.ndarray
    row_ptr: np.ndarray
    position: np.ndarray
    cell: np.ndarray


@compiled(nogil=True, fastmath={"contract", "reassoc"})
def curvature_weights(x: np.ndarray, W: np.ndarray, chunk: CellChunk, out: np.ndarray, start: int, stop: int) -> None:
    """out_tv = p_tv (w_v . x_t - sum_u p_tu w_u . x_t) at the cells of positions from `start` up to below `stop`.

    Parameters
    ----------
    x : float32 array of shape (c, k)
    W : float32 array of shape (A, k)
    chunk : CellChunk
    out : float32 array of shape (m,)
        Is filled.
    start, stop : int
    """
    for t in range(start, stop):
        mean = np.float32(0)
        for e in range(chunk.indptr[t], chunk.indptr[t + 1]):
            w, total = W[chunk.column[e]], np.float32(0)
            for j in range(x.shape[1]):
                total += x[t, j] * w[j]
            out[e] = total
            mean += chunk.p[e] * total
        for e in range(chunk.indptr[t], chunk.indptr[t + 1]):
            out[e] = chunk.p[e] * (out[e] - mean)


@compiled(nogil=True, fastmath={"contract", "reassoc"})
def add_rows(x: np.ndarray, weights: np.ndarray, chunk: CellChunk, out: np.ndarray, start: int, stop: int) -> None:
    """out_v += sum_t weights_tv x_t over the cells of ``rows[start:stop]``, in the order of the positions.

    Parameters
    ----------
    x : float32 array of shape (c, k)
    weights : float32 array of shape (m,)
        In the order of the positions.
    chunk : CellChunk
    out : float32 array of shape (A, k)
        Is added to.
    start, stop : int
    """
    for i in range(start, stop):
        row = out[chunk.rows[i]]
        for e in range(chunk.row_ptr[i], chunk.row_ptr[i + 1]):
            weight, t = weights[chunk.cell[e]], chunk.position[e]
            for j in range(x.shape[1]):
                row[j] += weight * x[t, j]


def cell_chunk(row: np.ndarray, column: np.ndarray, p: np.ndarray, positions: int) -> CellChunk:
    """The cells of a chunk from their coordinates.

    Parameters
    ----------
    row : int64 array of shape (m,)
        Position within the chunk, ascending.
    column : int64 array of shape (m,)
    p : float32 array of shape (m,)
    positions : int
        c.

    Returns
    -------
    CellChunk
    """
    indptr = np.zeros(positions + 1, np.int64)
    np.cumsum(np.bincount(row, minlength=positions), out=indptr[1:])
    order = np.argsort(column, kind="stable").astype(np.int32)
    rows, starts = np.unique(column[order], return_index=True)
    return CellChunk(
        indptr,
        column.astype(np.int32),
        p,
        rows.astype(np.int32),
        np.append(starts, len(column)).astype(np.int64),
        row[order].astype(np.int32),
        order,
    )
