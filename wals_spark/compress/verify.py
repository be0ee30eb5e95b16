"""Proof of what a compressed checkpoint is: the checks of an edited one on the expanded matrix, and the expansion."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wals_spark.checkpoints import verify as injection
from wals_spark.checkpoints.artifact import CARD, FACTORS, MANIFEST
from wals_spark.checkpoints.base_files import check_base_files
from wals_spark.checkpoints.checkpoint import FAMILIES, WEIGHTS, open_checkpoint
from wals_spark.checkpoints.json_file import read_json_object, require_value
from wals_spark.checkpoints.raw_tensor import RawTensor, tensor_hashes
from wals_spark.checkpoints.reload_check import check_reload
from wals_spark.checkpoints.safetensors_file import read_raw_tensors
from wals_spark.checkpoints.verification_report import VerificationReport
from wals_spark.compress import artifact
from wals_spark.compress.lowrank import LowRankEmbedding, from_tensors
from wals_spark.errors import InputError
from wals_spark.inject.verify import verify_injection


def verify_any_format(directory: str | Path, base: str | None = None, *, reload: bool = True) -> VerificationReport:
    """Verify an injected or compressed checkpoint; see `wals_spark.checkpoints.verify.verify_checkpoint`.

    On top of what holds for every injected checkpoint: the matrix is the expansion of the factors to the last bit, and
    code in the folder is the code that this version writes. A folder of format ``factorised`` is not loaded, since
    that would run code from it.
    """
    directory = Path(directory)
    manifest = injection.read_manifest(directory)
    if manifest["mode"] != artifact.MODE:
        return verify_injection(directory, base, reload=reload)
    if "stored" not in manifest:
        report = injection.verify_checkpoint(directory, base, reload=reload)
        _check_expansion(report, directory, manifest)
        _check_base_files(report, directory, manifest, base)
        return report
    report = VerificationReport(str(directory), base)
    injection.check_manifest(report, directory, manifest)
    try:
        tensors, _ = read_raw_tensors(directory / manifest["stored"]["file"])
        proof, _ = read_raw_tensors(directory / FACTORS)
        others, factors = artifact.split_factors(tensors, manifest["embedding"]["tensor"])
        expanded = {**others, manifest["embedding"]["tensor"]: factors.expand()}
    except (InputError, FileNotFoundError) as error:
        report.add("readable", False, str(error))
        return report
    _check_parts(report, tensors, manifest)
    injection.check_content(report, expanded, proof, manifest, base)
    _check_base_files(report, directory, manifest, base)
    if manifest["parameters"]["format"] == "factorised":
        _check_code(report, directory)
    elif reload:
        at = injection.base_with_weights(base, manifest)
        check_reload(report, directory, expanded, manifest, at, "wals_spark.compress.reload")
    return report


def _check_expansion(report: VerificationReport, directory: Path, manifest: Mapping[str, Any]) -> None:
    try:
        parts, _ = read_raw_tensors(directory / FACTORS)
        tensors, _ = read_raw_tensors(directory / artifact.WEIGHTS)
        dense = tensors[manifest["embedding"]["tensor"]]
        wide = from_tensors(*(parts[name] for name in artifact.PARTS))
        expanded = LowRankEmbedding(wide.coordinates, wide.basis, wide.mean, dense.dtype).expand()
    except (InputError, FileNotFoundError, KeyError) as error:
        report.add("expansion", False, f"cannot be read: {error}")
        return
    same = expanded.same_bytes(dense)
    report.add(
        "expansion",
        same,
        f"the matrix is the expansion of its rank-{wide.rank} factors to the last bit"
        if same
        else f"the matrix is not the expansion of the factors in {FACTORS}",
    )


def _check_base_files(
    report: VerificationReport, directory: Path, manifest: Mapping[str, Any], base: str | None
) -> None:
    """Configuration and tokenizer are the base's, or what the format makes of them."""
    if base is None:
        return
    parameters, where = manifest["parameters"], str(directory / MANIFEST)
    format_ = str(parameters.get("format"))
    rank = require_value(manifest, "parameters.rank", int, where)
    made = artifact.base_of_compression(open_checkpoint(base, "--base"), format_, rank)
    weights = manifest["stored"]["file"] if "stored" in manifest else WEIGHTS
    check_base_files(
        report, directory, made.companions(), frozenset({MANIFEST, FACTORS, CARD, weights}) | injection.OF_HUB
    )


def _check_parts(report: VerificationReport, tensors: Mapping[str, RawTensor], manifest: Mapping[str, Any]) -> None:
    recorded = manifest["stored"]["parts"]
    found = tensor_hashes({name: tensor for name, tensor in tensors.items() if name in recorded})
    right = found == recorded
    report.add(
        "factors",
        right,
        "coordinates, basis and mean have their recorded hashes" if right else "the factors are not those recorded",
    )


def _check_code(report: VerificationReport, directory: Path) -> None:
    """The code in the folder, read as text."""
    try:
        config = read_json_object(directory / "config.json")
    except InputError as error:
        report.add("code", False, str(error))
        return
    model_type = str(config.get("model_type")).removeprefix("factorised-")
    path = directory / artifact.CODE
    expected = artifact.modeling_code(FAMILIES[model_type].classes, model_type) if model_type in FAMILIES else ""
    same = path.is_file() and path.read_bytes() == expected.encode()
    report.add(
        "code",
        same,
        f"{artifact.CODE} is what this version of wals_spark writes; it was not run"
        if same
        else f"{artifact.CODE} differs from what this version of wals_spark writes: read it before you trust it",
    )
