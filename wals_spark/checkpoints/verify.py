"""Proof of what an edited checkpoint is: every hash recomputed, the base compared, the model loaded in a new process.

Without the base: the files are those that were written, the tensors have the recorded hashes, the rows that
differ from the base (whose row hashes lie in factors.safetensors) are exactly the recorded ones, none of
them protected, displacements add up, and the stock classes load it. With the base: the base is the recorded
one, and every tensor but the declared ones is bit-identical to it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from wals_spark.checkpoints.artifact import (
    FACTORS,
    FORMAT,
    FORMAT_VERSION,
    MANIFEST,
    changed_rows,
    ids_sha256,
    manifest_sha256,
)
from wals_spark.checkpoints.checkpoint import WEIGHTS, locate_checkpoint, open_checkpoint
from wals_spark.checkpoints.json_file import read_json_object, require_ids, require_texts, require_value
from wals_spark.checkpoints.outliers import outlier_rows
from wals_spark.checkpoints.pack_check import APPLY, check_applied, check_packs
from wals_spark.checkpoints.raw_tensor import RawTensor, file_sha256, gather_rows, tensor_hashes
from wals_spark.checkpoints.reload_check import check_reload
from wals_spark.checkpoints.row_comparison import differing_rows, row_hashes
from wals_spark.checkpoints.safetensors_file import read_raw_tensors
from wals_spark.checkpoints.verification_report import VerificationReport, first_of
from wals_spark.errors import InputError

logger = logging.getLogger(__name__)

OF_HUB = frozenset({".gitattributes", ".gitignore", ".git", ".cache"})
"""What a hub and its client put beside the files of a model; no class of transformers reads it."""
_KEYS: dict[str, type | tuple[type, ...]] = {
    "mode": str,
    "sha256": str,
    "parameters": dict,
    "fit": dict,
    "embedding.tensor": str,
    "embedding.rows_changed": int,
    "embedding.changed_ids_sha256": str,
    "embedding.displacement": dict,
    "embedding.new_rows": int,
    "embedding.dropped_rows": int,
    "head_bias.tensor": (str, type(None)),
    "head_bias.changed": bool,
}
"""Keys of injection.json that the checks read, and their types."""
_NO_DECLARED_SHARE = ("init", "fit", "auto")
"""Modes of which rows move by what a fit gave them: there is no share that displacements could be compared with."""
_COLUMNS = {"origin": "I64", "displacement": "F32", "base_row_hashes": "U64", "share": "F32"}
"""Tensors of factors.safetensors that the checks read, and their dtypes."""


def verify_checkpoint(directory: str | Path, base: str | None = None, *, reload: bool = True) -> VerificationReport:
    """Verify an edited checkpoint with a dense embedding.

    Parameters
    ----------
    directory : str or Path
        Of the checkpoint.
    base : str, optional
        The checkpoint it was made from, a directory or hub name; without it the recorded hashes stand in.
    reload : bool
        Load it through the stock classes in a new process.

    Returns
    -------
    VerificationReport
        `VerificationReport.passed` is the verdict; nothing is raised for a checkpoint that fails.

    Raises
    ------
    InputError
        There is no edited checkpoint to verify, or its embedding is stored in parts.
    """
    directory = Path(directory)
    manifest = read_manifest(directory)
    if "stored" in manifest:
        raise InputError(
            f"{directory} holds its embedding in factors: wals_spark.compress.verify.verify_any_format reads it"
        )
    report = VerificationReport(str(directory), base)
    check_manifest(report, directory, manifest)
    try:
        tensors, _ = read_raw_tensors(directory / WEIGHTS)
        proof, _ = read_raw_tensors(directory / FACTORS)
    except (InputError, FileNotFoundError) as error:
        report.add("readable", False, str(error))
        return report
    check_content(report, tensors, proof, manifest, base)
    packed = "packs" in manifest or manifest["mode"] == APPLY
    if packed and proof_problem(tensors, proof, manifest) is None:
        packs = check_packs(report, directory, tensors, proof, manifest)
        if packs is not None and base is not None:
            check_applied(report, directory, tensors, proof, manifest, packs, base, OF_HUB)
    if reload:
        check_reload(report, directory, tensors, manifest, base_with_weights(base, manifest))
    return report


def base_with_weights(base: str | None, manifest: Mapping[str, Any]) -> Path | None:
    """The directory of the base, None where it is not given or only its config.json was read."""
    return None if base is None or manifest["mode"] == "init" else locate_checkpoint(base, "--base")


def check_manifest(report: VerificationReport, directory: Path, manifest: Mapping[str, Any]) -> None:
    """Check that injection.json and all files are as they were written."""
    report.add(
        "manifest",
        manifest_sha256(manifest) == manifest.get("sha256"),
        "injection.json has the hash it was written with"
        if manifest_sha256(manifest) == manifest.get("sha256")
        else "injection.json was changed after it was written",
    )
    _check_files(report, directory, manifest)


def check_content(
    report: VerificationReport,
    tensors: Mapping[str, RawTensor],
    proof: Mapping[str, RawTensor],
    manifest: Mapping[str, Any],
    base: str | None,
) -> None:
    """Check that the tensors are the recorded ones, and differ from the base as declared.

    Parameters
    ----------
    report : VerificationReport
        Results are appended to it.
    tensors : dict of str to RawTensor
        Of the edited checkpoint, the embedding whole.
    proof : dict of str to RawTensor
        Of factors.safetensors.
    manifest : dict of str to object
        The content of injection.json.
    base : str or None
        The checkpoint it was made from, a directory or hub name.
    """
    _check_tensors(report, tensors, manifest)
    problem = proof_problem(tensors, proof, manifest)
    if problem is not None:
        report.add("rows", False, problem)
        return
    _check_rows(report, tensors, proof, manifest)
    if base is not None:
        _check_base(report, tensors, proof, base, manifest)


def read_manifest(directory: Path) -> dict[str, Any]:
    """injection.json of a directory; `InputError` where there is none or it is of another kind."""
    path = directory / MANIFEST
    if not directory.is_dir():
        raise InputError(
            f"there is no directory {directory}: give the path of a checkpoint that wals-spark inject or compress "
            "wrote (of one on the hub: of a download)"
        )
    if not path.exists():
        raise InputError(f"{directory} has no {MANIFEST}: it was not written by wals-spark inject or compress")
    manifest = read_json_object(path)
    if manifest.get("format") != FORMAT:
        raise InputError(f"{path}: format is {manifest.get('format')!r:.60}, expected {FORMAT!r}: not of wals_spark")
    version = require_value(manifest, "format_version", int, str(path))
    if version > FORMAT_VERSION:
        raise InputError(
            f"{path} has format {version}, this version reads up to {FORMAT_VERSION}: use a newer wals_spark"
        )
    _check_keys(manifest, str(path))
    return manifest


def _check_keys(manifest: Mapping[str, Any], path: str) -> None:
    """Raise `InputError` where a key that a check reads is missing or of another type."""
    for key, kinds in _KEYS.items():
        require_value(manifest, key, kinds, path)
    for key in ("files", "tensors", "base.tensors"):
        require_texts(manifest, key, path)
    require_ids(manifest, "embedding.protected", path)
    if "strengths" in manifest["fit"]:
        strengths = require_value(manifest, "fit.strengths", dict, path)
        if "shift" in strengths:
            require_value(manifest, "fit.strengths.shift", (int, float), path)
    if manifest["mode"] == "init":
        require_value(manifest, "parameters.seed", int, path)
    if "stored" in manifest:
        require_texts(manifest, "stored.parts", path)
        require_value(manifest, "parameters.format", str, path)
        file = require_value(manifest, "stored.file", str, path)
        if file not in manifest["files"]:
            raise InputError(f"{path}: stored.file is {file!r:.60}, expected one of the names in files; it was edited")


def _check_files(report: VerificationReport, directory: Path, manifest: Mapping[str, Any]) -> None:
    recorded = manifest["files"]
    present = {path.name for path in directory.iterdir()} - {MANIFEST} - (OF_HUB - recorded.keys())
    wrong = [
        name
        for name, expected in recorded.items()
        if name not in present or not (directory / name).is_file() or file_sha256(directory / name) != expected
    ]
    extra = sorted(present - recorded.keys())
    report.add(
        "files",
        not wrong and not extra,
        f"{len(recorded)} files have their recorded hashes"
        if not wrong and not extra
        else f"changed or missing: {first_of(wrong) or 'none'}; not recorded: {first_of(extra) or 'none'}",
    )


def _check_tensors(report: VerificationReport, tensors: Mapping[str, RawTensor], manifest: Mapping[str, Any]) -> None:
    found, recorded = tensor_hashes(tensors), manifest["tensors"]
    wrong = sorted(name for name in recorded.keys() | found.keys() if recorded.get(name) != found.get(name))
    report.add(
        "tensors",
        not wrong,
        f"{len(found)} tensors have their recorded hashes"
        if not wrong
        else f"differ from the record: {first_of(wrong)}",
    )
    allowed = _declared(manifest)
    before = manifest["base"]["tensors"]
    moved = sorted(name for name in before.keys() | found.keys() if before.get(name) != found.get(name))
    stray = [name for name in moved if name not in allowed]
    report.add(
        "declared",
        not stray,
        f"only {', '.join(sorted(allowed))} may differ from the base, and nothing else does"
        if not stray
        else f"differ from the base without being declared: {first_of(stray)}",
    )


def _declared(manifest: Mapping[str, Any]) -> set[str]:
    """Tensors that may differ from the base: the embedding, a changed head bias, a bias whose rows moved."""
    described, bias = manifest["embedding"], manifest["head_bias"]
    declared = {described["tensor"]}
    resized = described["new_rows"] > 0 or described["dropped_rows"] > 0
    if bias["tensor"] is not None and (bias["changed"] or resized):
        declared.add(bias["tensor"])
    return declared


def proof_problem(
    tensors: Mapping[str, RawTensor], proof: Mapping[str, RawTensor], manifest: Mapping[str, Any]
) -> str | None:
    """Why rows cannot be checked: a tensor that is missing or of another kind; None where they can be."""
    name = manifest["embedding"]["tensor"]
    if name not in tensors or len(tensors[name].shape) != 2 or 0 in tensors[name].shape:
        found = f"has shape {tensors[name].shape}" if name in tensors else "is missing"
        return f"{name} {found}, expected a matrix"
    for column, dtype in _COLUMNS.items():
        if column not in proof:
            return f"{FACTORS} lacks {column}"
        if proof[column].dtype != dtype or len(proof[column].shape) != 1:
            return f"{FACTORS}: {column} is {proof[column].dtype} {proof[column].shape}, expected a vector of {dtype}"
    rows, before = tensors[name].shape[0], proof["base_row_hashes"].shape[0]
    for column in ("origin", "displacement"):
        if proof[column].shape[0] != rows:
            return f"{FACTORS}: {column} has {proof[column].shape[0]} entries for {rows} rows"
    if proof["share"].shape[0] > rows:
        return f"{FACTORS}: share has {proof['share'].shape[0]} entries for {rows} rows"
    origin = proof["origin"].data.view("<i8")
    if before == 0 or origin.min() < -1 or origin.max() >= before:
        return f"{FACTORS}: origin names rows from {origin.min()} to {origin.max()} of {before}"
    return None


def _check_rows(
    report: VerificationReport,
    tensors: Mapping[str, RawTensor],
    proof: Mapping[str, RawTensor],
    manifest: Mapping[str, Any],
) -> None:
    described = manifest["embedding"]
    embedding = tensors[described["tensor"]]
    before = proof["base_row_hashes"].data.view("<u8")
    origin = proof["origin"].data.view("<i8")
    after = row_hashes(embedding)
    changed = np.flatnonzero(changed_rows(before, after, origin))
    right = len(changed) == described["rows_changed"] and ids_sha256(changed) == described["changed_ids_sha256"]
    displacement = proof["displacement"].data.view("<f4")
    report.facts["rows_changed"] = len(changed)
    report.facts["displacement"] = described["displacement"]
    report.add(
        "rows",
        right,
        f"{len(changed)} of {len(after)} rows differ from the base, the recorded ones"
        if right
        else f"{len(changed)} rows differ from the base, the record says {described['rows_changed']}",
    )
    protected = np.array(described["protected"], np.int64)
    still_there = np.setdiff1d(origin, np.append(origin[changed], -1))
    touched = np.setdiff1d(protected, still_there)
    report.add(
        "protected",
        len(touched) == 0,
        f"none of {len(protected)} protected rows moved"
        if len(touched) == 0
        else f"protected rows moved or are gone: {first_of([str(index) for index in touched])}",
    )
    still = np.setdiff1d(np.flatnonzero(displacement > 0), changed)
    report.add(
        "displacements",
        len(still) == 0,
        "every recorded displacement belongs to a changed row"
        if len(still) == 0
        else f"recorded as moved, but not: rows {first_of([str(index) for index in still])}",
    )
    try:
        finite = np.isfinite(embedding.values()).all()
    except InputError as error:
        report.add("finite", False, str(error))
        return
    report.add(
        "finite", bool(finite), "every entry is a finite number" if finite else "some entries are NaN or infinite"
    )


def _check_base(
    report: VerificationReport,
    tensors: Mapping[str, RawTensor],
    proof: Mapping[str, RawTensor],
    base: str,
    manifest: Mapping[str, Any],
) -> None:
    original = open_base_tensors(base, manifest)
    recorded = manifest["base"]["tensors"]
    hashes = tensor_hashes(original)
    differs = sorted(name for name in recorded.keys() | hashes.keys() if recorded.get(name) != hashes.get(name))
    report.add(
        "base",
        not differs,
        f"{base} is the recorded base, tensor by tensor"
        if not differs
        else f"{base} is not the base that was recorded: {first_of(differs)} differ",
    )
    name, bias = manifest["embedding"]["tensor"], manifest["head_bias"]["tensor"]
    declared = _declared(manifest)
    others = sorted(
        other
        for other in original.keys() | tensors.keys()
        if other not in declared
        and not (other in original and other in tensors and original[other].same_bytes(tensors[other]))
    )
    report.add(
        "identical",
        not others,
        f"{len(original.keys() - declared)} other tensors are bit-identical to the base"
        if not others
        else f"not bit-identical to the base: {first_of(others)}",
    )
    origin = proof["origin"].data.view("<i8")
    rows = proof["base_row_hashes"].shape[0], len(origin)
    if not all(_rows_fit(original.get(tensor), tensors.get(tensor), rows) for tensor in declared):
        report.add("base rows", False, f"{', '.join(sorted(declared))} have other rows than recorded")
        return
    changed = np.flatnonzero(differing_rows(original[name], tensors[name], origin))
    right = ids_sha256(changed) == manifest["embedding"]["changed_ids_sha256"]
    report.add(
        "base rows",
        right,
        f"{len(changed)} rows differ bit by bit, exactly the recorded ones"
        if right
        else f"{len(changed)} rows differ bit by bit, not the {manifest['embedding']['rows_changed']} recorded",
    )
    _check_outliers(report, original[name], tensors[name], origin, proof, manifest)
    if bias is not None and not manifest["head_bias"]["changed"]:
        if not _rows_fit(original.get(bias), tensors.get(bias), rows):
            report.add("base head bias", False, f"{bias} is missing or has other entries than recorded")
            return
        kept = gather_rows(original[bias], origin).same_bytes(tensors[bias])
        report.add("base head bias", kept, "bit-identical to the base" if kept else "differs from the base")


def _rows_fit(old: RawTensor | None, new: RawTensor | None, rows: tuple[int, int]) -> bool:
    """Whether a tensor of the base and of the result have the recorded numbers of rows, and rows of one kind."""
    if old is None or new is None:
        return False
    alike = old.dtype == new.dtype and old.shape[1:] == new.shape[1:]
    return alike and (old.shape[:1], new.shape[:1]) == (rows[:1], rows[1:])


def _check_outliers(
    report: VerificationReport,
    before: RawTensor,
    after: RawTensor,
    origin: np.ndarray,
    proof: Mapping[str, RawTensor],
    manifest: Mapping[str, Any],
) -> None:
    """Rows that moved unlike the others (`wals_spark.checkpoints.outliers`): rows changed by hand."""
    if manifest["mode"] in _NO_DECLARED_SHARE or not (origin >= 0).any():
        return
    shares = None
    shifted = manifest["fit"].get("strengths", {}).get("shift", 0) > 0  # then displacement is not the share's alone
    if not shifted:
        recorded = proof["share"].data.view("<f4")
        shares = np.zeros(len(origin), np.float32)
        shares[: len(recorded)] = recorded
    found = outlier_rows(before.values(), after.values(), shares, origin=origin, few=0)
    rows = found.rows.tolist()
    report.facts["suspicious_rows"] = rows
    described = [f"row {row} ({reason})" for row, reason in zip(rows, found.reasons, strict=True)]
    report.add(
        "outliers",
        not rows,
        f"moved unlike the others: {first_of(described)}" if rows else "no row moved unlike the others",
    )


def open_base_tensors(base: str, manifest: Mapping[str, Any]) -> Mapping[str, RawTensor]:
    """The tensors that the edit started from: a checkpoint's, or for ``init`` the same initial model."""
    if manifest["mode"] == "init":
        from wals_spark.checkpoints.from_scratch import initialise_model

        return initialise_model(locate_checkpoint(base, "--base", weights=False), manifest["parameters"]["seed"])[0]
    return open_checkpoint(base, "--base").tensors
