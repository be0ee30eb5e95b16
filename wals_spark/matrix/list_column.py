"""Arrow list columns whose lists have one length, as matrices of shape (n, k), and back."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wals_spark.errors import InputError


def lists_to_matrix(column: pa.Array | pa.ChunkedArray, name: str = "vector") -> np.ndarray:
    """The values of a list column, a row per list; a view where the column is in one chunk.

    Parameters
    ----------
    column : pyarrow.Array or pyarrow.ChunkedArray
        Of type list, large list or fixed-size list of numbers.
    name : str
        Of the column, for the message of an error.

    Returns
    -------
    array of shape (n, k)
        Of the dtype of the values. A column of variable lists without rows has k = 0.

    Raises
    ------
    InputError
        Lists of several lengths, or a null.
    """
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    chunks = [chunk for chunk in chunks if len(chunk)] or chunks[:1] or [pa.array([], column.type)]
    parts = [_chunk_to_matrix(chunk, name) for chunk in chunks]
    widths = {part.shape[1] for part in parts}
    if len(widths) > 1:
        raise _ragged(name, min(widths), max(widths))
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _chunk_to_matrix(chunk: pa.Array, name: str) -> np.ndarray:
    flat = chunk.flatten()
    if chunk.null_count or flat.null_count:
        raise InputError(f"column {name}: {chunk.null_count or flat.null_count} lists or values are null")
    if pa.types.is_fixed_size_list(chunk.type):
        width = chunk.type.list_size
    else:
        least, most = pc.min_max(pc.list_value_length(chunk)).values()
        width = most.as_py() or 0
        if least != most:
            raise _ragged(name, least.as_py(), width)
    matrix: np.ndarray = flat.to_numpy(zero_copy_only=False).reshape(len(chunk), width)
    return matrix


def _ragged(name: str, least: int, most: int) -> InputError:
    return InputError(f"column {name}: lists have {least} to {most} values, expected one length for all")


def matrix_to_lists(matrix: np.ndarray) -> pa.ListArray:
    """A list per row of a matrix of shape (n, k); the values are not copied where they are contiguous."""
    return lists_of_length(pa.array(np.ascontiguousarray(matrix).reshape(-1)), matrix.shape[1], len(matrix))


def lists_of_length(values: pa.Array, length: int, count: int) -> pa.ListArray:
    """Cut an Arrow array of any type, of `count` times `length` values, into `count` lists of `length` values."""
    offsets = np.arange(count + 1, dtype=np.int64) * length
    if offsets[-1] > np.iinfo(np.int32).max:
        raise InputError(f"{count:,} lists of {length:,} values exceed the 2^31 - 1 values of an Arrow list array")
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), values)
