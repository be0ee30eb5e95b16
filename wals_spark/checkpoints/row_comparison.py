"""Rows of two embeddings compared, in bounded memory: by bits, by hashes and by distance."""

from __future__ import annotations

import hashlib

import numpy as np

from wals_spark.checkpoints.raw_tensor import RawTensor

_ROWS_AT_ONCE = 4096


def differing_rows(before: RawTensor, after: RawTensor, origin: np.ndarray) -> np.ndarray:
    """Whether row i of `after` differs by a bit from row ``origin[i]`` of `before`; a new row (-1) does. Bool (n,)."""
    found = origin < 0
    for begin in range(0, len(origin), _ROWS_AT_ONCE):
        part = slice(begin, begin + _ROWS_AT_ONCE)
        old = before.rows[np.maximum(origin[part], 0)]
        found[part] |= (old != after.rows[part]).any(axis=1)
    return found


def displacements(before: np.ndarray, after: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """|e'_i - e_origin(i)| of every row, float64 (n,), in bounded memory; |e'_i| for a new row (-1)."""
    found = np.empty(len(origin))
    for begin in range(0, len(origin), _ROWS_AT_ONCE):
        part = slice(begin, begin + _ROWS_AT_ONCE)
        old = before[np.maximum(origin[part], 0)].astype(np.float64)
        old[origin[part] < 0] = 0
        found[part] = np.linalg.norm(after[part] - old, axis=1)
    return found


def row_norms(rows: np.ndarray) -> np.ndarray:
    """Euclidean length of every row, float64 (n,), in bounded memory."""
    parts = (rows[begin : begin + _ROWS_AT_ONCE] for begin in range(0, len(rows), _ROWS_AT_ONCE))
    return np.concatenate([np.linalg.norm(part.astype(np.float64), axis=1) for part in parts] or [np.zeros(0)])


def row_hashes(tensor: RawTensor) -> np.ndarray:
    """A 64-bit hash per row: a uint64 array of shape (rows,)."""
    rows = np.ascontiguousarray(tensor.rows)
    hashes = (hashlib.blake2b(row, digest_size=8).digest() for row in rows)
    return np.frombuffer(b"".join(hashes), "<u8")
