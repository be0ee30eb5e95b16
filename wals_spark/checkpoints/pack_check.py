"""Proof that the rows and biases of a checkpoint are those of the domain packs beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from wals_spark.checkpoints.artifact import CARD, FACTORS, MANIFEST, changed_rows
from wals_spark.checkpoints.base_files import check_base_files
from wals_spark.checkpoints.checkpoint import WEIGHTS, checkpoint_tokenizer, open_checkpoint, protected_ids
from wals_spark.checkpoints.domain_pack import ROWS_AT_ONCE, read_pack
from wals_spark.checkpoints.edit import base_of_checkpoint
from wals_spark.checkpoints.json_file import require_ids, require_value
from wals_spark.checkpoints.pack_sum import (
    PackBase,
    ScaledPack,
    check_pack_base,
    moved_head_bias,
    moved_rows,
    scaled_packs,
    shares_of_packs,
    union_of_ids,
)
from wals_spark.checkpoints.raw_tensor import RawTensor, from_values, gather_rows
from wals_spark.checkpoints.row_comparison import differing_rows, row_hashes
from wals_spark.checkpoints.verification_report import VerificationReport, first_of
from wals_spark.errors import ConfigError, InputError

APPLY = "apply"
"""The mode of a checkpoint that was made of packs and their base."""
_KEYS: dict[str, type | tuple[type, ...]] = {"file": str, "sha256": str, "strength": (int, float)}


def pack_record(file: str, scaled: ScaledPack) -> dict[str, Any]:
    """The entry on a pack in injection.json: its file, hash, strength, and where it comes from."""
    pack, injection = scaled.pack, scaled.pack.header["injection"]
    run = injection.get("run")
    return {
        "file": file,
        "sha256": pack.sha256,
        "strength": scaled.strength,
        "dtype": pack.dtype,
        "rows": len(pack.ids),
        "biases": len(pack.bias_ids),
        "error": pack.header["error"],
        "mode": injection["mode"],
        "run_id": str(run.get("run_id")) if isinstance(run, dict) else None,
    }


def check_packs(
    report: VerificationReport,
    directory: Path,
    tensors: Mapping[str, RawTensor],
    proof: Mapping[str, RawTensor],
    manifest: Mapping[str, Any],
) -> list[ScaledPack] | None:
    """Check that the packs are the recorded ones, of the recorded base, and hold every row that changed.

    Parameters
    ----------
    report : VerificationReport
        Results are appended to it.
    directory : Path
    tensors : dict of str to RawTensor
        Of the checkpoint.
    proof : dict of str to RawTensor
        Of factors.safetensors.
    manifest : dict of str to object
        The content of injection.json.

    Returns
    -------
    list of ScaledPack or None
        The packs; None where they are not the recorded ones.
    """
    try:
        packs = _recorded_packs(directory, manifest)
    except (InputError, ConfigError) as error:
        report.add("packs", False, str(error))
        return None
    report.add("packs", True, f"{len(packs)} packs have their recorded hashes and were made for the recorded base")
    before, origin = proof["base_row_hashes"].data.view("<u8"), proof["origin"].data.view("<i8")
    changed = np.flatnonzero(changed_rows(before, row_hashes(tensors[manifest["embedding"]["tensor"]]), origin))
    outside = np.setdiff1d(changed, union_of_ids(packs)[0])
    report.add(
        "rows in packs",
        not len(outside),
        f"every one of {len(changed)} changed rows is in a pack"
        if not len(outside)
        else f"changed, but in no pack: rows {first_of([str(row) for row in outside])}",
    )
    return packs


def check_applied(
    report: VerificationReport,
    directory: Path,
    tensors: Mapping[str, RawTensor],
    proof: Mapping[str, RawTensor],
    manifest: Mapping[str, Any],
    packs: list[ScaledPack],
    base: str,
    foreign: frozenset[str] = frozenset(),
) -> None:
    """Add the packs to the base once more and compare; of mode ``apply`` also the other files and what they say.

    Parameters
    ----------
    report : VerificationReport
        Results are appended to it.
    directory : Path
    tensors : dict of str to RawTensor
        Of the checkpoint.
    proof : dict of str to RawTensor
        Of factors.safetensors.
    manifest : dict of str to object
        The content of injection.json.
    packs : list of ScaledPack
        From `check_packs`.
    base : str
        The checkpoint it was made from, a directory or hub name.
    foreign : frozenset of str
        Names of files that others put there.
    """
    try:
        opened = open_checkpoint(base, "--base")
        problem = _difference(packs, tensors, manifest, opened.tensors)
    except InputError as error:
        report.add("rows of packs", False, str(error))
        return
    report.add("rows of packs", problem is None, problem or "rows and biases are what the packs give, to the bit")
    if manifest["mode"] != APPLY or problem is not None:
        return
    protected = protected_ids(checkpoint_tokenizer(opened.directory), opened.config, opened.vocab_size)
    made_of = base_of_checkpoint(opened, base, protected)
    own = {MANIFEST, CARD, FACTORS, WEIGHTS, *(record["file"] for record in manifest["packs"])}
    check_base_files(report, directory, made_of.companions(), frozenset(own) | foreign)
    expected = {
        "protected": (manifest["embedding"]["protected"], protected.tolist()),
        "origin": (proof["origin"].data.view("<i8").tolist(), list(range(opened.vocab_size))),
        "share": (proof["share"].data.view("<f4").tolist(), shares_of_packs(packs, opened.vocab_size).tolist()),
    }
    wrong = [name for name, (found, given) in expected.items() if found != given]
    report.add(
        "record of packs",
        not wrong,
        "protected rows, origins and shares are those of the base and the packs"
        if not wrong
        else f"not those of the base and the packs: {', '.join(wrong)}",
    )


def _recorded_packs(directory: Path, manifest: Mapping[str, Any]) -> list[ScaledPack]:
    """The packs that injection.json lists; `InputError` where one is not as recorded."""
    what = str(directory / "injection.json")
    embedding = manifest["embedding"]
    wanted = PackBase(
        "the recorded base",
        manifest["base"]["tensors"],
        embedding["tensor"],
        manifest["head_bias"]["tensor"],
        tuple(require_ids(manifest, "embedding.shape", what)),
        checkpoint_tokenizer(directory).hash,
        np.array(embedding["protected"], np.int64),
    )
    present = {path.name for path in directory.iterdir()}
    packs, strengths = [], []
    for record in require_value(manifest, "packs", list, what):
        if not isinstance(record, dict):
            raise InputError(f"{what}: packs holds {record!r:.60}, expected an object for each pack; it was edited")
        file, sha256, strength = (require_value(record, key, kinds, what) for key, kinds in _KEYS.items())
        if file not in manifest["files"] or file not in present:
            raise InputError(f"{what}: packs names {file!r:.60}, expected one of the files beside it; it was edited")
        pack = read_pack(directory / file)
        if pack.sha256 != sha256:
            raise InputError(f"{file} is the pack {pack.sha256}, expected {sha256:.80}: it was replaced")
        check_pack_base(pack, file, wanted)
        packs.append(pack)
        strengths.append(strength)
    return scaled_packs(packs, strengths)


def _difference(
    packs: list[ScaledPack],
    tensors: Mapping[str, RawTensor],
    manifest: Mapping[str, Any],
    base: Mapping[str, RawTensor],
) -> str | None:
    """Where the checkpoint is not the base with the packs added; None where it is."""
    name, bias = manifest["embedding"]["tensor"], manifest["head_bias"]["tensor"]
    for tensor in (name, *([] if bias is None else [bias])):
        old, new = base.get(tensor), tensors.get(tensor)
        if old is None or new is None or (old.dtype, old.shape) != (new.dtype, new.shape):
            return f"{tensor} has another shape or dtype than in the base"
    old, new = base[name], tensors[name]
    if any(each.pack.shape != old.shape for each in packs) or (bias is not None and base[bias].shape != old.shape[:1]):
        return f"{name} has another shape than the packs say, or {bias} other entries than rows"
    wrong = [row for row in _rows_apart(packs, old, new) if len(row)]
    if wrong:
        return f"not what the packs give: rows {first_of([str(row) for row in np.concatenate(wrong)])}"
    if bias is not None:
        given = moved_head_bias(packs, base[bias])
        expected = base[bias] if given is None else from_values(given, base[bias].dtype)
        if not expected.same_bytes(tensors[bias]):
            return f"{bias} is not what the packs give"
    return None


def _rows_apart(packs: list[ScaledPack], old: RawTensor, new: RawTensor) -> list[np.ndarray]:
    """Ids of rows that differ from what the packs give, in parts."""
    kept = np.ones(old.shape[0], bool)
    found = []
    for ids, rows in moved_rows(packs, old):
        kept[ids] = False
        expected = from_values(rows, old.dtype).rows
        found.append(ids[(expected != gather_rows(new, ids).rows).any(axis=1)])
    rest = np.flatnonzero(kept)
    for begin in range(0, len(rest), ROWS_AT_ONCE):
        part = rest[begin : begin + ROWS_AT_ONCE]
        found.append(part[differing_rows(old, gather_rows(new, part), part)])
    return found
