"""The artefact: a plain checkpoint with its proof beside it.

::

    config.json, tokenizer files    as they came
    model.safetensors               dense, native class, tied head; only declared tensors differ
    factors.safetensors             vectors, counts, shares b, displacements, map, row hashes of the base
    injection.json                  inputs, hashes, changed rows, gate: what `verify` recomputes
    README.md                       the model card

Row hashes of the base let `verify` prove which rows moved without having the base at hand.
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
from wals_spark.checkpoints.raw_tensor import (
    RawTensor,
    displacements,
    file_sha256,
    from_numpy,
    gather_rows,
    row_hashes,
    row_lengths,
    tensor_hashes,
    write_raw_tensors,
)
from wals_spark.runs import now, package_versions

FORMAT = "wals_spark injection"
FORMAT_VERSION = 1
MANIFEST = "injection.json"
FACTORS = "factors.safetensors"
CARD = "README.md"


@dataclass(frozen=True)
class FactorisedWeights:
    """A file that holds the embedding in parts instead of whole.

    Attributes
    ----------
    file : str
        Instead of model.safetensors.
    parts : dict of name -> RawTensor
        Instead of the embedding; who reads the file expands them.
    """

    file: str
    parts: Mapping[str, RawTensor]


def write_artifact(
    directory: Path,
    base: BaseCheckpoint,
    edit: EmbeddingEdit,
    factors: TokenFactors | None,
    described: Mapping[str, Any],
    *,
    stored: FactorisedWeights | None = None,
    render: Callable[[Mapping[str, Any], Mapping[str, Any]], str] = model_card.render_model_card,
) -> dict[str, Any]:
    """Write the artefact into an empty directory; returns the content of injection.json.

    Parameters
    ----------
    directory : Path
    base : Base
    edit : EmbeddingEdit
    factors : TokenFactors, optional
        None where rows were only moved.
    described : mapping
        ``mode``, ``parameters`` and ``factors`` (where the vectors come from) for injection.json.
    stored : Stored, optional
        How the embedding lies in the file, where not whole; injection.json describes it whole and in parts.
    render : callable
        Makes the model card of injection.json and config.json.
    """
    tensors = apply_edit(base, edit)
    for path in base.files:
        shutil.copyfile(path, directory / path.name)
    for name, content in base.texts.items():
        (directory / name).write_text(content, encoding="utf-8")
    laid_down = dict(tensors)
    if stored is not None:
        laid_down = {name: tensor for name, tensor in tensors.items() if name != base.embedding} | dict(stored.parts)
    write_raw_tensors(directory / (stored.file if stored else WEIGHTS), laid_down, base.metadata)

    old, new = base.tensors[base.embedding], tensors[base.embedding]
    origin = np.arange(old.shape[0]) if edit.origin is None else edit.origin.astype(np.int64)
    before, after = row_hashes(old), row_hashes(new)
    changed = np.flatnonzero(changed_rows(before, after, origin))
    displacement = displacements(old.values(), new.values(), origin).astype(np.float32)
    arrays: dict[str, np.ndarray] = {
        "origin": origin,
        "displacement": displacement,
        "base_row_hashes": before,
        "protected": base.protected.astype(np.int64),
        "share": edit.share,
        **({"vectors": factors.matrix, "counts": factors.counts} if factors is not None else {}),
        **edit.map,
    }
    write_raw_tensors(directory / FACTORS, from_numpy(arrays.items()), {"source": FORMAT})

    base_hashes = tensor_hashes(base.tensors)
    unchanged = {name for name in tensors if tensors[name].data is base.tensors[name].data}
    hashes = {name: base_hashes[name] if name in unchanged else tensor.sha256 for name, tensor in tensors.items()}
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "created_at": now(),
        "packages": package_versions(),
        **described,
        "base": {**base.source, "tensors": base_hashes, "dropped_copies": list(base.dropped)},
        "embedding": {
            "tensor": base.embedding,
            "shape": list(new.shape),
            "base_rows": len(before),
            "dtype": old.dtype,
            "new_rows": int((origin < 0).sum()),
            "dropped_rows": len(np.setdiff1d(np.arange(len(before)), origin)),
            "rows_changed": len(changed),
            "changed_ids_sha256": ids_sha256(changed),
            "displacement": distribution_summary(displacement[changed]),
            "row_norm": distribution_summary(row_lengths(old.values())),
            "protected": base.protected.tolist(),
        },
        "head_bias": {
            "tensor": base.head_bias,
            "changed": base.head_bias is not None
            and not tensors[base.head_bias].same_bytes(gather_rows(base.tensors[base.head_bias], origin)),
        },
        "fit": edit.facts,
        "gate": dict(edit.gate) if edit.gate is not None else None,
        "tensors": hashes,
    }
    if stored is not None:
        manifest["stored"] = {"file": stored.file, "parts": tensor_hashes(stored.parts)}
    (directory / CARD).write_text(render(manifest, base.config), encoding="utf-8")
    manifest["files"] = {path.name: file_sha256(path) for path in sorted(directory.iterdir()) if path.name != MANIFEST}
    manifest["sha256"] = manifest_sha256(manifest)
    text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
    (directory / MANIFEST).write_text(text, encoding="utf-8")
    return manifest


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
    """Minimum, quartiles, 99th percentile, maximum and mean; zeros where there are no values."""
    if len(values) == 0:
        return dict.fromkeys(("min", "q25", "median", "q75", "q99", "max", "mean"), 0.0)
    points = np.quantile(values.astype(np.float64), [0, 0.25, 0.5, 0.75, 0.99, 1])
    return {
        **dict(zip(("min", "q25", "median", "q75", "q99", "max"), map(float, points), strict=True)),
        "mean": float(values.mean(dtype=np.float64)),
    }
