"""Read the factors table into arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wals_spark import schemas
from wals_spark.errors import InputError
from wals_spark.matrix.list_column import lists_to_matrix
from wals_spark.tables import TableStore

COMBINE = ("u", "v", "sum", "concat")


@dataclass(frozen=True)
class Vectors:
    """A vector per token.

    Attributes
    ----------
    tokens : list of str of length V
        In the order of the token ids.
    counts : int64 array of shape (V,)
    matrix : float32 array of shape (V, k), or (V, 2k) for ``concat``
    bias : float32 array of shape (V,)
    """

    tokens: list[str]
    counts: np.ndarray
    matrix: np.ndarray
    bias: np.ndarray


def combine(u: np.ndarray, v: np.ndarray, how: str) -> np.ndarray:
    """U, V, U + V or [U, V]; U and V must be in the canonical gauge for the sum to have a meaning."""
    if how == "u":
        return u
    if how == "v":
        return v
    if how == "sum":
        return u + v
    if how == "concat":
        return np.concatenate([u, v], axis=1)  # (V, 2k)
    raise InputError(f"combine: found {how!r}, expected one of {', '.join(COMBINE)}")


def read_side(tables: TableStore, run_id: str, side: str) -> Vectors:
    """One side of a run's factors, in the order of the token ids.

    The whole side is held in memory: V x k x 4 bytes, 154 MB for 50,000 x 768.

    Raises
    ------
    InputError
        The run has no factors, or ids are missing, doubled or not finite.
    """
    columns = ["token_id", "token", "count", "vector", "bias"]
    files = [f for f in tables.files(schemas.FACTORS, {"run_id": run_id}) if f.values.get("side") == side]
    if not files:
        raise InputError(f"run {run_id!r} has no factors of side {side!r} in {tables.warehouse}")
    ids, tokens, counts, vectors, biases = [], [], [], [], []
    for part in [part for data_file in files if len(part := data_file.read(columns))]:
        ids.append(part["token_id"].to_numpy())
        tokens += part["token"].to_pylist()
        counts.append(part["count"].to_numpy())
        vectors.append(lists_to_matrix(part["vector"]))  # (rows, k)
        biases.append(part["bias"].to_numpy())
    if not ids:
        raise InputError(
            f"factors of run {run_id!r}, side {side!r}: the table holds no rows; run train again (--force)"
        )
    token_id = np.concatenate(ids)
    order = np.argsort(token_id, kind="stable")
    if not np.array_equal(token_id[order], np.arange(len(order))):
        raise InputError(f"factors of run {run_id!r}, side {side!r}: ids are not 0 .. {len(order) - 1} once each")
    matrix = np.concatenate(vectors)[order].astype(np.float32, copy=False)
    if not np.isfinite(matrix).all():
        raise InputError(f"factors of run {run_id!r}, side {side!r}: some are not finite")
    return Vectors([tokens[i] for i in order], np.concatenate(counts)[order], matrix, np.concatenate(biases)[order])


def read_vectors(tables: TableStore, run_id: str, how: str = "u") -> Vectors:
    """The vectors of a run, combined; see `combine` and `read_side`."""
    if how not in COMBINE:
        raise InputError(f"combine: found {how!r}, expected one of {', '.join(COMBINE)}")
    u = read_side(tables, run_id, "col" if how == "v" else "row")
    if how in ("u", "v"):
        return u
    v = read_side(tables, run_id, "col")
    if len(v.tokens) != len(u.tokens):
        raise InputError(f"combine {how!r} needs both sides of one size, found {len(u.tokens)} and {len(v.tokens)}")
    return Vectors(u.tokens, u.counts, combine(u.matrix, v.matrix, how), u.bias)


def read_tokens(tables: TableStore, run_id: str) -> tuple[list[str], np.ndarray]:
    """Token strings and counts by id, without the vectors: about 60 bytes per token on the driver."""
    parts = []
    for data_file in tables.files(schemas.FACTORS, {"run_id": run_id}):
        if data_file.values.get("side") == "row":
            parts.append(data_file.read(["token_id", "token", "count"]))
    if not parts:
        raise InputError(f"run {run_id!r} has no factors in {tables.warehouse}; run `wals-spark train` first")
    ids = np.concatenate([part["token_id"].to_numpy() for part in parts])
    order = np.argsort(ids, kind="stable")
    tokens = [token for part in parts for token in part["token"].to_pylist()]
    counts = np.concatenate([part["count"].to_numpy() for part in parts])
    return [tokens[i] for i in order], counts[order]
