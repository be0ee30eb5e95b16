"""Checkpoints of a training: Parquet shards of (id, vector), one manifest written last.

::

    <directory>/half-00007/row-00000-000.parquet ...   id, vector: the side solved in half-sweep 7
    <directory>/half-00007/_manifest.json              written when every shard of every rank is there

A manifest names the shards of both sides; those of the side that was fixed stand in the directory of the
half-sweep before. A directory without a manifest does not exist for a resume. Nothing depends on the number of
ranks, so a training may resume with another one.
"""

from __future__ import annotations

import logging
import posixpath
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from wals_spark import storage
from wals_spark.cluster.process_group import Group
from wals_spark.errors import InputError
from wals_spark.matrix.list_column import lists_to_matrix, matrix_to_lists
from wals_spark.wals.partition.side import SIDES
from wals_spark.wals.solvers import cache_lines

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
MANIFEST = "_manifest.json"
KEPT = 3
"""The newest may turn out damaged; the one before it has shards in the directory before that."""


SHARD_BYTES = 1 << 27
"""Of vectors in a file: what a rank encodes at a time, and far below the 2^31 numbers that an Arrow list may hold."""

Rows = tuple[np.ndarray, np.ndarray]
"""Ids, rising, and the vectors of these."""


@dataclass(frozen=True)
class State:
    """Where a training stands.

    Attributes
    ----------
    half : int
        Half-sweeps done.
    losses : list of float
        After each of them.
    factors : mapping of side to array of shape (rows, width)
        The rows asked for.
    """

    half: int
    losses: list[float]
    factors: dict[str, np.ndarray]


def directory_of(directory: str, half: int) -> str:
    """Where the checkpoint after `half` half-sweeps stands."""
    return storage.join(directory, f"half-{half:05d}")


def encode_shard(ids: np.ndarray, vectors: np.ndarray) -> bytes:
    """Rows of factors as a Parquet file of (id int64, vector list<float or double>)."""
    table = pa.table({"id": ids.astype(np.int64), "vector": matrix_to_lists(vectors)})
    sink = pa.BufferOutputStream()
    # Factors are noise to a compressor and to a dictionary.
    pq.write_table(table, sink, compression="none", use_dictionary=False)
    return sink.getvalue().to_pybytes()


def decode_shard(content: bytes) -> Rows:
    """Ids and vectors of a shard."""
    table = pq.read_table(pa.BufferReader(content))
    return table["id"].to_numpy(), lists_to_matrix(table["vector"])


def slices(rows: int, row_bytes: int) -> list[slice]:
    """Ranges of rows of at most `SHARD_BYTES`; at least one."""
    at_once = max(1, SHARD_BYTES // max(1, row_bytes))
    return [slice(start, min(start + at_once, rows)) for start in range(0, max(1, rows), at_once)]


def save(
    group: Group,
    directory: str,
    half: int,
    losses: Sequence[float],
    solved: Mapping[str, Rows],
    sizes: Mapping[str, int],
    facts: Mapping[str, Any],
) -> None:
    """Write the rows, then the manifest; then remove old checkpoints.

    Parameters
    ----------
    group : Group
    directory : str
        Of all checkpoints of this training.
    half : int
    losses : sequence of float
        See `State`.
    solved : mapping of side to rows
        The sides that have changed since the checkpoint before; of each what this rank writes.
    sizes : mapping of side to int
        Rows of all ranks.
    facts : mapping
        What must be equal for a resume, and is compared: see `load`.

    Returns
    -------
    None
    """
    here = directory_of(directory, half)
    entries: list[dict[str, Any]] = []
    for side, (ids, vectors) in solved.items():
        for number, part in enumerate(slices(len(vectors), vectors.itemsize * vectors.shape[1])):
            name = f"{side}-{group.rank:05d}-{number:03d}.parquet"
            content = encode_shard(ids[part], vectors[part])
            storage.write_bytes(storage.join(here, name), content)
            path = posixpath.join(posixpath.basename(here), name)
            entries.append({"side": side, "path": path, "bytes": len(content), "crc32": zlib.crc32(content)})
    shards = [entry for part in group.all_gather_object(entries) for entry in part]
    if group.rank != 0:
        return
    for side in SIDES:
        if side not in solved:
            shards += [entry for entry in _manifest(directory, half - 1)["shards"] if entry["side"] == side]
    manifest = {
        "format_version": FORMAT_VERSION,
        "half": half,
        "losses": list(losses),
        "sizes": dict(sizes),
        "facts": dict(facts),
        "shards": shards,
    }
    storage.write_json(storage.join(here, MANIFEST), manifest)
    _remove_old(directory, manifest)


def _manifest(directory: str, half: int) -> dict[str, Any]:
    return storage.read_json(storage.join(directory_of(directory, half), MANIFEST))


def _remove_old(directory: str, manifest: Mapping[str, Any]) -> None:
    """Remove the checkpoints that neither the last `KEPT` nor the shards of the newest need."""
    needed = {entry["path"].split("/")[0] for entry in manifest["shards"]}
    halves = [half for half in halves_in(directory) if half <= manifest["half"]]
    needed |= {posixpath.basename(directory_of(directory, half)) for half in halves[-KEPT:]}
    for half in halves:
        path = directory_of(directory, half)
        if posixpath.basename(path) not in needed:
            storage.remove(path)


def halves_in(directory: str) -> list[int]:
    """The numbers of the directories of checkpoints, rising, complete or not."""
    names = (posixpath.basename(info.path) for info in storage.list_files(directory) if not info.is_file)
    return sorted(int(name.removeprefix("half-")) for name in names if name.startswith("half-"))


def load(directory: str, facts: Mapping[str, Any], kept: Mapping[str, np.ndarray] | None = None) -> State | None:
    """The newest whole checkpoint, or None.

    A checkpoint whose shards are lost or damaged is passed over for the one before, with a warning: what was
    computed since is computed again.

    Parameters
    ----------
    directory : str
    facts : mapping
    kept : mapping of side to rising ids, optional
        The rows to return; None = all.

    Raises
    ------
    InputError
        The checkpoint belongs to another matrix, objective or width.
    """
    for half in reversed(halves_in(directory)):
        path = storage.join(directory_of(directory, half), MANIFEST)
        if not storage.exists(path):
            continue
        manifest = storage.read_json(path)
        different = {
            name: (manifest["facts"].get(name), value)
            for name, value in facts.items()
            if manifest["facts"].get(name) != value
        }
        if different:
            found = "; ".join(f"{name} {old} there, {new} here" for name, (old, new) in different.items())
            raise InputError(
                f"the checkpoints in {directory} belong to another training: {found}; use another run id or "
                "remove that directory"
            )
        try:
            return State(half, list(manifest["losses"]), _read_factors(directory, manifest, kept or {}))
        except _DamagedError as error:
            logger.warning("checkpoint after half-sweep %d is damaged and passed over: %s", half, error)
    return None


class _DamagedError(Exception):
    """A shard is not what its manifest says."""


def _read_factors(directory: str, manifest: Mapping[str, Any], kept: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    factors: dict[str, np.ndarray] = {}
    for side in SIDES:
        size = manifest["sizes"][side]
        wanted = kept.get(side, np.arange(size))
        seen = 0
        for entry in (entry for entry in manifest["shards"] if entry["side"] == side):
            path = storage.join(directory, entry["path"])
            if not storage.exists(path):
                raise _DamagedError(f"{path} is not there")
            content = storage.read_bytes(path)
            if len(content) != entry["bytes"] or zlib.crc32(content) != entry["crc32"]:
                raise _DamagedError(f"{path} has {len(content)} bytes, {entry['bytes']} with another content expected")
            ids, vectors = decode_shard(content)
            if not len(ids):
                continue
            if side not in factors:
                factors[side] = cache_lines.aligned_zeros(len(wanted), vectors.shape[1], vectors.dtype)
            # Both are rising; which of the shard's rows are wanted, and where they go.
            place = np.searchsorted(wanted, ids)
            found = np.flatnonzero(wanted[np.minimum(place, len(wanted) - 1)] == ids) if len(wanted) else place[:0]
            factors[side][place[found]] = vectors[found]
            seen += len(ids)
        if seen != size:
            raise _DamagedError(f"side {side} has {seen} of {size} rows")
    return factors
