"""An edited checkpoint on disk: a plain checkpoint with its proof beside it.

::

    config.json, tokenizer files    as in the base, or rewritten for another vocabulary
    model.safetensors               dense, native class, tied head; only declared tensors differ
    factors.safetensors             vectors, counts, exposures, shares b, displacements, map, row hashes of the base
    injection.json                  the manifest: inputs, hashes, changed rows, gate; what `verify` recomputes
    README.md                       the model card

Row hashes of the base let `verify` prove which rows moved without the base at hand.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wals_spark.checkpoints import model_card
from wals_spark.checkpoints.checkpoint import WEIGHTS
from wals_spark.checkpoints.edit import BaseCheckpoint, EmbeddingEdit, TokenFactors, apply_edit
from wals_spark.checkpoints.raw_tensor import RawTensor, file_sha256, from_numpy, gather_rows, tensor_hashes
from wals_spark.checkpoints.row_comparison import displacements, row_hashes, row_norms
from wals_spark.checkpoints.safetensors_file import write_raw_tensors
from wals_spark.runs import now, package_versions

FORMAT = "wals_spark injection"
FORMAT_VERSION = 1
MANIFEST = "injection.json"
FACTORS = "factors.safetensors"
CARD = "README.md"


@dataclass(frozen=True)
class EmbeddingParts:
    """An embedding stored in parts instead of whole.

    Attributes
    ----------
    file : str
        The name of the weights file, in place of model.safetensors.
    parts : dict of str to RawTensor
        The tensors in place of the embedding; a reader of the file expands them.
    """

    file: str
    parts: Mapping[str, RawTensor]


@dataclass(frozen=True)
class RowChanges:
    """Which of the V' rows of an edited embedding differ from the V rows of the base, and by how much.

    Attributes
    ----------
    origin : int64 array of shape (V',)
        The base's row that each row comes from, -1 for a new one.
    base_hashes : uint64 array of shape (V,)
        Hashes of the base's rows.
    changed : int64 array of shape (n,)
        Ids of new and of differing rows.
    displacement : float32 array of shape (V',)
        |e'_i - e_origin(i)|.
    """

    origin: np.ndarray
    base_hashes: np.ndarray
    changed: np.ndarray
    displacement: np.ndarray


def write_artifact(
    directory: Path,
    base: BaseCheckpoint,
    edit: EmbeddingEdit,
    factors: TokenFactors | None,
    described: Mapping[str, Any],
    *,
    stored: EmbeddingParts | None = None,
    render: Callable[[Mapping[str, Any], Mapping[str, Any]], str] = model_card.render_model_card,
) -> dict[str, Any]:
    """Write an edited checkpoint and its proof into an empty directory.

    Parameters
    ----------
    directory : Path
    base : BaseCheckpoint
    edit : EmbeddingEdit
    factors : TokenFactors or None
        None where no vectors went into the rows.
    described : dict of str to object
        ``mode``, ``parameters`` and ``factors`` (where the vectors come from) for the manifest.
    stored : EmbeddingParts, optional
        How the embedding lies in the file, where not whole; the manifest describes it whole and in parts.
    render : callable
        Makes the text of the model card from the manifest and config.json.

    Returns
    -------
    dict of str to object
        The manifest, the content of injection.json.
    """
    tensors = apply_edit(base, edit)
    _copy_companions(directory, base)
    _write_weights(directory, base, tensors, stored)
    old, new = base.tensors[base.embedding], tensors[base.embedding]
    changes = row_changes(old, new, np.arange(old.shape[0]) if edit.origin is None else edit.origin.astype(np.int64))
    write_raw_tensors(directory / FACTORS, from_numpy(_proof(base, edit, factors, changes).items()), {"source": FORMAT})
    base_hashes = tensor_hashes(base.tensors)
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "created_at": now(),
        "packages": package_versions(),
        **described,
        "base": {**base.source, "tensors": base_hashes, "dropped_copies": list(base.dropped)},
        "embedding": _embedding_record(base, new, changes),
        "head_bias": _head_bias_record(base, tensors, changes.origin),
        "fit": edit.facts,
        "gate": dict(edit.gate) if edit.gate is not None else None,
        "tensors": _hashes_of_result(base, tensors, base_hashes),
    }
    if stored is not None:
        manifest["stored"] = {"file": stored.file, "parts": tensor_hashes(stored.parts)}
    (directory / CARD).write_text(render(manifest, base.config), encoding="utf-8")
    manifest["files"] = {path.name: file_sha256(path) for path in sorted(directory.iterdir()) if path.name != MANIFEST}
    manifest["sha256"] = manifest_sha256(manifest)
    text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
    (directory / MANIFEST).write_text(text, encoding="utf-8")
    return manifest


def _copy_companions(directory: Path, base: BaseCheckpoint) -> None:
    """Configuration and tokenizer files, copied or written anew."""
    for path in base.files:
        shutil.copyfile(path, directory / path.name)
    for name, content in base.texts.items():
        (directory / name).write_text(content, encoding="utf-8")


def _write_weights(
    directory: Path, base: BaseCheckpoint, tensors: Mapping[str, RawTensor], stored: EmbeddingParts | None
) -> None:
    """The weights file, the embedding whole or in parts."""
    if stored is not None:
        others = {name: tensor for name, tensor in tensors.items() if name != base.embedding}
        write_raw_tensors(directory / stored.file, others | dict(stored.parts), base.metadata)
    else:
        write_raw_tensors(directory / WEIGHTS, tensors, base.metadata)


def _proof(
    base: BaseCheckpoint, edit: EmbeddingEdit, factors: TokenFactors | None, changes: RowChanges
) -> dict[str, np.ndarray]:
    """The arrays of factors.safetensors: what `verify` needs, what the rows were computed from, and the map."""
    return {
        "origin": changes.origin,
        "displacement": changes.displacement,
        "base_row_hashes": changes.base_hashes,
        "protected": base.protected.astype(np.int64),
        "share": edit.share,
        **({"vectors": factors.matrix, "counts": factors.counts} if factors is not None else {}),
        **edit.inputs,
        **edit.map,
    }


def _embedding_record(base: BaseCheckpoint, new: RawTensor, changes: RowChanges) -> dict[str, Any]:
    """The manifest's entry on the embedding."""
    old = base.tensors[base.embedding]
    return {
        "tensor": base.embedding,
        "shape": list(new.shape),
        "base_rows": len(changes.base_hashes),
        "dtype": old.dtype,
        "new_rows": int((changes.origin < 0).sum()),
        "dropped_rows": len(np.setdiff1d(np.arange(len(changes.base_hashes)), changes.origin)),
        "rows_changed": len(changes.changed),
        "changed_ids_sha256": ids_sha256(changes.changed),
        "displacement": distribution_summary(changes.displacement[changes.changed]),
        "row_norm": distribution_summary(row_norms(old)),
        "protected": base.protected.tolist(),
    }


def _head_bias_record(base: BaseCheckpoint, tensors: Mapping[str, RawTensor], origin: np.ndarray) -> dict[str, Any]:
    """The manifest's entry on the head bias: changed beyond a move of its entries with their rows."""
    name = base.head_bias
    changed = name is not None and not tensors[name].same_bytes(gather_rows(base.tensors[name], origin))
    return {"tensor": name, "changed": changed}


def _hashes_of_result(
    base: BaseCheckpoint, tensors: Mapping[str, RawTensor], base_hashes: Mapping[str, str]
) -> dict[str, str]:
    """SHA-256 of every tensor; tensors that still are the base's are not hashed again."""
    unchanged = {name for name in tensors if tensors[name].data is base.tensors[name].data}
    return {name: base_hashes[name] if name in unchanged else tensor.sha256 for name, tensor in tensors.items()}


def row_changes(old: RawTensor, new: RawTensor, origin: np.ndarray) -> RowChanges:
    """Compare an edited embedding `new` (V', d) with `old` (V, d), its row i with the row ``origin[i]``."""
    before, after = row_hashes(old), row_hashes(new)
    changed = np.flatnonzero(changed_rows(before, after, origin))
    displacement = displacements(old, new, origin).astype(np.float32)
    return RowChanges(origin, before, changed, displacement)


def changed_rows(before: np.ndarray, after: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """Whether each row of the result is new or differs from the base's row that it comes from, bool (V,)."""
    return (origin < 0) | (before[np.maximum(origin, 0)] != after)


def manifest_sha256(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON of injection.json without its own ``sha256``."""
    content = {name: value for name, value in manifest.items() if name != "sha256"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def ids_sha256(ids: np.ndarray) -> str:
    """SHA-256 of a list of row ids."""
    return hashlib.sha256(np.ascontiguousarray(ids, "<i8").tobytes()).hexdigest()


def distribution_summary(values: np.ndarray) -> dict[str, float]:
    """Minimum, quartiles, 99th percentile, maximum and mean of some values; zeros where there are none."""
    if len(values) == 0:
        return dict.fromkeys(("min", "q25", "median", "q75", "q99", "max", "mean"), 0.0)
    points = np.quantile(values.astype(np.float64), [0, 0.25, 0.5, 0.75, 0.99, 1])
    return {
        **dict(zip(("min", "q25", "median", "q75", "q99", "max"), map(float, points), strict=True)),
        "mean": float(values.mean(dtype=np.float64)),
    }
