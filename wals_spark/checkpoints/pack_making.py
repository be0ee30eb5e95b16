"""Domain packs made: from an injected checkpoint and its base, or from an edit that is about to be written.

The stage `inject` makes the pack first and writes the rows that the pack gives, so that its checkpoint and what
`wals-spark apply` makes of the pack agree to the bit, quantised or not.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from wals_spark import storage
from wals_spark.checkpoints.artifact import FACTORS, write_artifact
from wals_spark.checkpoints.checkpoint import (
    WEIGHTS,
    checkpoint_tokenizer,
    open_checkpoint,
    protected_ids,
)
from wals_spark.checkpoints.domain_pack import (
    PACK_FILE,
    ROWS_AT_ONCE,
    DomainPack,
    holds_values,
    read_pack,
    sealed_pack,
    write_pack,
)
from wals_spark.checkpoints.edit import BaseCheckpoint, EmbeddingEdit, TokenFactors, base_of_checkpoint
from wals_spark.checkpoints.output_check import lies_in
from wals_spark.checkpoints.pack_check import pack_record
from wals_spark.checkpoints.pack_sum import edit_of_packs, scaled_packs
from wals_spark.checkpoints.raw_tensor import RawTensor, from_values, gather_rows, tensor_hashes
from wals_spark.checkpoints.row_quantisation import PACK_DTYPES, dequantise_rows, quantise_rows
from wals_spark.checkpoints.safetensors_file import read_raw_tensors
from wals_spark.checkpoints.verification_report import first_of
from wals_spark.checkpoints.verify import read_manifest, verify_checkpoint
from wals_spark.errors import ConfigError, InputError
from wals_spark.tokenizer import LoadedTokenizer, load_tokenizer


@dataclass(frozen=True)
class _MovedRows:
    """Ids of rows that may have moved, ascending, and what gives the new values of some of them."""

    ids: np.ndarray
    values: Callable[[np.ndarray], np.ndarray]


_DESCRIBED = ("mode", "run", "parameters", "factors", "packs")


def make_pack(directory: str | Path, base: str, dtype: str = "int8") -> DomainPack:
    """Make a pack of what an injection changed in a checkpoint.

    Parameters
    ----------
    directory : str or Path
        An injected checkpoint with the vocabulary of its base.
    base : str
        The checkpoint it was made from, a directory or hub name.
    dtype : str
        ``int8``, ``fp16``, or ``fp32``, which loses nothing.

    Returns
    -------
    DomainPack

    Raises
    ------
    ConfigError
        Another `dtype`.
    InputError
        The checkpoint fails a check of `wals_spark.checkpoints.verify`, was made from another base, has another
        vocabulary, or an entry is beyond the range of fp16.
    """
    _check_dtype(dtype)
    directory = Path(directory)
    manifest = read_manifest(directory)
    described = manifest["embedding"]
    if manifest["mode"] == "init" or described["new_rows"] or described["dropped_rows"]:
        raise InputError(
            f"{directory} was made by mode {manifest['mode']}: a domain pack holds moved rows of a base with the same "
            "vocabulary, as blend, replace and fit leave them"
        )
    report = verify_checkpoint(directory, base, reload=False)
    if not report.passed:
        raise InputError(f"{directory} does not verify against {base}: {first_of(report.failures)}")
    opened = open_checkpoint(base, "--base")
    tokenizer = checkpoint_tokenizer(opened.directory)
    protected = protected_ids(tokenizer, opened.config, opened.vocab_size)
    tensors, _ = read_raw_tensors(directory / WEIGHTS)
    proof, _ = read_raw_tensors(directory / FACTORS)
    new = tensors[opened.embedding]
    bias = None if opened.head_bias is None else tensors[opened.head_bias].values().astype(np.float64)
    return _pack(
        base_of_checkpoint(opened, base, protected),
        tokenizer,
        _MovedRows(np.arange(opened.vocab_size), lambda ids: gather_rows(new, ids).values()),
        bias,
        (proof["share"].data.view("<f4"), manifest["fit"]),
        dtype,
        {name: manifest[name] for name in (*_DESCRIBED, "fit", "gate") if name in manifest},
    )


def pack_of_edit(base: BaseCheckpoint, edit: EmbeddingEdit, dtype: str, described: Mapping[str, Any]) -> DomainPack:
    """Make a pack of an edit that keeps the vocabulary.

    Parameters
    ----------
    base : BaseCheckpoint
    edit : EmbeddingEdit
    dtype : str
        ``fp32``, ``fp16`` or ``int8``.
    described : dict of str to object
        Mode, parameters, factors and run, as `wals_spark.checkpoints.artifact.write_artifact` takes them.

    Returns
    -------
    DomainPack

    Raises
    ------
    ConfigError
        Another `dtype`, or an edit that changes the vocabulary.
    InputError
        An entry is not finite, beyond the range of fp16, or a protected row would move.
    """
    _check_dtype(dtype)
    if edit.origin is not None:
        raise ConfigError(f"a domain pack keeps the vocabulary, mode {described['mode']} does not: set it to none")
    path = next(file for file in base.files if file.name == "tokenizer.json")
    said = {name: described[name] for name in _DESCRIBED if name in described}
    return _pack(
        base,
        load_tokenizer(str(path)),
        _MovedRows(edit.ids, lambda ids: edit.rows[np.searchsorted(edit.ids, ids)]),
        edit.head_bias,
        (edit.share, edit.facts),
        dtype,
        {**said, "fit": edit.facts, "gate": edit.gate},
    )


def write_packed_artifact(
    directory: Path,
    base: BaseCheckpoint,
    edit: EmbeddingEdit,
    factors: TokenFactors | None,
    described: Mapping[str, Any],
    dtype: str,
) -> dict[str, Any]:
    """Write an edited checkpoint with its domain pack; rows and biases are those that the pack gives.

    Parameters
    ----------
    directory : Path
        Empty.
    base : BaseCheckpoint
    edit : EmbeddingEdit
    factors : TokenFactors or None
    described : dict of str to object
        As `wals_spark.checkpoints.artifact.write_artifact` takes it.
    dtype : str
        ``fp32``, ``fp16`` or ``int8``; ``none`` writes the edit as it is, without a pack.

    Returns
    -------
    dict of str to object
        The manifest, with the pack under ``packs``.

    Raises
    ------
    ConfigError, InputError
        See `pack_of_edit`.
    """
    if dtype == "none":
        return write_artifact(directory, base, edit, factors, described)
    pack = pack_of_edit(base, edit, dtype, described)
    packs = scaled_packs([pack], [1.0])
    given = edit_of_packs(packs, base)
    edit = replace(edit, ids=given.ids, rows=given.rows, head_bias=given.head_bias)
    write_pack(directory / PACK_FILE, pack)
    return write_artifact(directory, base, edit, factors, {**described, "packs": [pack_record(PACK_FILE, packs[0])]})


def check_pack_output(path: str, directory: str, *, replace: bool) -> None:
    """Raise where the file of a pack cannot be written without loss.

    Parameters
    ----------
    path : str
    directory : str
        The checkpoint that is packed, which keeps its files.
    replace : bool
        An existing domain pack may be replaced.

    Raises
    ------
    ConfigError
        The file would lie in the checkpoint.
    InputError
        There is something else, or a pack that may not be replaced.
    """
    target = Path(path)
    if Path(directory).is_dir() and lies_in(str(target), directory):
        raise ConfigError(f"--output: {path} lies in the checkpoint {directory}, which keeps its files; choose another")
    if not os.path.lexists(target):
        return
    if target.is_symlink() or not target.is_file():
        raise InputError(f"--output: {path} is not a plain file, expected the name of a file that does not exist yet")
    if not replace:
        raise InputError(f"--output: {path} exists; choose another, or replace it with --overwrite")
    read_pack(target)


def publish_pack(path: str, directory: str, pack: DomainPack, *, replace: bool) -> int:
    """Write the file of a pack, whole or not at all; returns its size in bytes.

    Parameters
    ----------
    path : str
    directory : str
        The checkpoint that was packed.
    pack : DomainPack
    replace : bool
        See `check_pack_output`, which runs again.

    Returns
    -------
    int
    """
    target = Path(path)
    staging = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.staging"
    with storage.explained(f"cannot write {target}"):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            write_pack(staging, pack)
            check_pack_output(path, directory, replace=replace)
            os.replace(staging, target)
        finally:
            staging.unlink(missing_ok=True)
        return target.stat().st_size


def _check_dtype(dtype: str) -> None:
    if dtype not in PACK_DTYPES:
        raise ConfigError(f"the dtype of a domain pack is {dtype!r}, expected one of {', '.join(PACK_DTYPES)}")


def _pack(
    base: BaseCheckpoint,
    tokenizer: LoadedTokenizer,
    moved: _MovedRows,
    head_bias: np.ndarray | None,
    declared: tuple[np.ndarray, Mapping[str, Any]],
    dtype: str,
    injection: Mapping[str, Any],
) -> DomainPack:
    """The pack of moved rows and a new head bias; `declared` has the share of every row and the facts of the fit."""
    embedding = base.tensors[base.embedding]
    moved = _MovedRows(_differing_ids(embedding, moved), moved.values)
    touched = np.intersect1d(moved.ids, base.protected)
    if len(touched):
        raise InputError(
            f"{len(touched)} rows of special or reserved tokens moved (first: {touched[:5].tolist()}), which no domain "
            "pack holds"
        )
    tensors, error = _stored_rows(embedding, moved, dtype)
    bias, lost = _stored_bias(base, head_bias, dtype)
    tensors |= bias
    share, facts = declared
    if not facts.get("strengths", {}).get("shift", 0) > 0:  # with a shift, displacements are not the share's alone
        padded = np.zeros(embedding.shape[0], np.float32)
        padded[: len(share)] = share
        if ((padded >= 0) & (padded <= 1)).all():
            tensors["share"] = padded[tensors["ids"]]
    return sealed_pack(
        tensors,
        {
            "dtype": dtype,
            "content": "values" if holds_values(dtype) else "differences",
            "base": {
                "source": base.source["source"],
                "embedding": base.embedding,
                "head_bias": base.head_bias,
                "shape": list(embedding.shape),
                "tensors": tensor_hashes(base.tensors),
            },
            "vocabulary": {"tokens": len(tokenizer.tokens), "hash": tokenizer.hash},
            "error": {**error, "bias_max": lost},
            "injection": dict(injection),
        },
    )


def _differing_ids(embedding: RawTensor, moved: _MovedRows) -> np.ndarray:
    """Ids whose new row differs from the base's by a bit, in the dtype of the embedding."""
    found = np.zeros(len(moved.ids), bool)
    for begin in range(0, len(found), ROWS_AT_ONCE):
        part = slice(begin, begin + ROWS_AT_ONCE)
        with np.errstate(over="ignore"):
            new = from_values(moved.values(moved.ids[part]), embedding.dtype)
        found[part] = (new.rows != gather_rows(embedding, moved.ids[part]).rows).any(axis=1)
    return moved.ids[found].astype(np.int64)


def _stored_rows(
    embedding: RawTensor, moved: _MovedRows, dtype: str
) -> tuple[dict[str, np.ndarray], dict[str, float | int]]:
    """Tensors ids, rows and scales, and the error of the rows; a row that is stored as zeros did not move."""
    n, values = len(moved.ids), holds_values(dtype)
    rows = np.empty((n, embedding.shape[1]), PACK_DTYPES[dtype])
    scales, kept = np.ones(n, np.float32), np.ones(n, bool)
    lost, length = np.zeros(n), np.zeros(n)
    for begin in range(0, n, ROWS_AT_ONCE):
        part = slice(begin, begin + ROWS_AT_ONCE)
        ids = moved.ids[part]
        old = gather_rows(embedding, ids).values().astype(np.float64)
        new = moved.values(ids).astype(np.float64)
        _require_finite(ids, np.isfinite(old) & np.isfinite(new), "is not finite: the checkpoint is damaged")
        wanted = new if values else new - old
        stored, scale = quantise_rows(wanted, dtype)
        _require_finite(ids, np.isfinite(stored), f"moved by more than {dtype} can hold: take int8, or fp32")
        rows[part] = stored
        if scale is not None:
            scales[part] = scale
        kept[part] = values | stored.any(axis=1)
        lost[part] = np.linalg.norm(wanted - dequantise_rows(stored, scale), axis=1)
        length[part] = np.linalg.norm(new - old, axis=1)
    tensors = {"ids": moved.ids, "rows": rows, **({"scales": scales} if dtype == "int8" else {})}
    if not kept.all():
        tensors = {name: value[kept] for name, value in tensors.items()}
    total = float(np.linalg.norm(length))
    return tensors, {
        "row_max": float(lost.max(initial=0)),
        "row_rms": float(np.sqrt(np.mean(lost**2))) if n else 0.0,
        "relative_rms": float(np.linalg.norm(lost)) / total if total else 0.0,
        "rows_lost": int((~kept).sum()),
    }


def _stored_bias(base: BaseCheckpoint, head_bias: np.ndarray | None, dtype: str) -> tuple[dict[str, np.ndarray], float]:
    """Tensors bias_ids and bias, and the largest error of an entry."""
    if base.head_bias is None or head_bias is None:
        return {"bias_ids": np.zeros(0, np.int64), "bias": np.zeros(0, np.float32)}, 0.0
    tensor = base.tensors[base.head_bias]
    with np.errstate(over="ignore"):
        ids = np.flatnonzero((from_values(head_bias, tensor.dtype).rows != tensor.rows).any(axis=1))
    old, new = tensor.values()[ids].astype(np.float64), head_bias[ids].astype(np.float64)
    wanted = new if holds_values(dtype) else new - old
    with np.errstate(over="ignore"):
        stored = wanted.astype(np.float32)
    _require_finite(ids, (np.isfinite(stored) & np.isfinite(old))[:, None], "of the head bias is not finite")
    kept = np.full(len(ids), holds_values(dtype)) | (stored != 0)
    return {"bias_ids": ids[kept], "bias": stored[kept]}, float(np.abs(wanted - stored).max(initial=0))


def _require_finite(ids: np.ndarray, finite: np.ndarray, why: str) -> None:
    if not finite.all():
        bad = ids[~finite.all(axis=1)]
        raise InputError(f"{len(bad)} rows (first: row {bad[0]}): one {why}")
