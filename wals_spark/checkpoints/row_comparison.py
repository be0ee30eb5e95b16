"""Rows of two embeddings compared, in bounded memory: by bits, by hashes and by distance."""

from __future__ import annotations

import hashlib

import numpy as np

from wals_spark.checkpoints.raw_tensor import RawTensor, gather_rows

_ROWS_AT_ONCE = 4096


def differing_rows(before: RawTensor, after: RawTensor, origin: np.ndarray) -> np.ndarray:
    """Whether row i of `after` differs by a bit from row ``origin[i]`` of `before`; a new row (-1) does. Bool (n,)."""
    found = origin < 0
    for begin in range(0, len(origin), _ROWS_AT_ONCE):
        part = slice(begin, begin + _ROWS_AT_ONCE)
        old = before.rows[np.maximum(origin[part], 0)]
        found[part] |= (old != after.rows[part]).any(axis=1)
    return found


def displacements(before: RawTensor | np.ndarray, after: RawTensor | np.ndarray, origin: np.ndarray) -> np.ndarray:
    """|e'_i - e_origin(i)| of every row, float64 (n,), in bounded memory; |e'_i| for a new row (-1)."""
    found = np.empty(len(origin))
    for begin in range(0, len(origin), _ROWS_AT_ONCE):
        part = np.arange(begin, min(begin + _ROWS_AT_ONCE, len(origin)))
        old = _rows_at(before, np.maximum(origin[part], 0))
        old[origin[part] < 0] = 0
        found[part] = np.linalg.norm(_rows_at(after, part) - old, axis=1)
    return found


def row_norms(rows: RawTensor | np.ndarray) -> np.ndarray:
    """Euclidean length of every row, float64 (n,), in bounded memory."""
    n = rows.shape[0]
    parts = (np.arange(begin, min(begin + _ROWS_AT_ONCE, n)) for begin in range(0, n, _ROWS_AT_ONCE))
    return np.concatenate([np.linalg.norm(_rows_at(rows, part), axis=1) for part in parts] or [np.zeros(0)])


def _rows_at(rows: RawTensor | np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Some rows as float64, a copy."""
    found = gather_rows(rows, ids).values() if isinstance(rows, RawTensor) else rows[ids]
    return found.astype(np.float64)


def row_hashes(tensor: RawTensor) -> np.ndarray:
    """A 64-bit hash per row: a uint64 array of shape (rows,)."""
    rows = np.ascontiguousarray(tensor.rows)
    hashes = (hashlib.blake2b(row, digest_size=8).digest() for row in rows)
    return np.frombuffer(b"".join(hashes), "<u8")
