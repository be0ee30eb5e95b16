"""Prove what an injected checkpoint is: recompute every hash, compare with the base, reload it fresh.

Without the base: the files are those that were written, the tensors have the recorded hashes, the rows that
differ from the base (whose row hashes lie in factors.safetensors) are exactly the recorded ones, none of
them protected, displacements add up, and the stock classes load it. With the base: the base is the recorded
one, and every tensor but the declared ones is bit-identical to it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
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
from wals_spark.checkpoints.checkpoint import EMBEDDING_SUFFIX, FAMILIES, WEIGHTS, open_checkpoint
from wals_spark.checkpoints.outliers import outlier_rows
from wals_spark.checkpoints.raw_tensor import (
    RawTensor,
    differing_rows,
    file_sha256,
    gather_rows,
    read_raw_tensors,
    row_hashes,
    tensor_hashes,
)
from wals_spark.errors import InputError

logger = logging.getLogger(__name__)

_RELOAD_TIMEOUT_S = 600.0
_SHOWN = 5


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    passed: bool
    detail: str


@dataclass
class VerificationReport:
    """What verification found.

    Attributes
    ----------
    directory : str
    base : str or None
    checks : list of Check
    facts : dict
        Rows changed, their displacement, suspicious rows.
    """

    directory: str
    base: str | None
    checks: list[Check] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    @property
    def failures(self) -> list[str]:
        """The checks that failed, a line each."""
        return [f"{check.name}: {check.detail}" for check in self.checks if not check.passed]

    def add(self, name: str, passed: bool, detail: str) -> None:
        """Record a check."""
        self.checks.append(Check(name, bool(passed), detail))

    def lines(self) -> list[str]:
        """For a person: one line per check."""
        return [f"{'ok  ' if check.passed else 'FAIL'} {check.name}: {check.detail}" for check in self.checks]


def verify_checkpoint(directory: str | Path, base: str | None = None, *, reload: bool = True) -> VerificationReport:
    """Verify a checkpoint that injection wrote.

    Parameters
    ----------
    directory : of the checkpoint
    base : the checkpoint it was made from: directory or hub name; without it the recorded hashes stand in
    reload : load it through the stock classes in a fresh process

    Returns
    -------
    Report
        `VerificationReport.passed` is the verdict; nothing is raised for a checkpoint that fails.

    Raises
    ------
    InputError
        There is no injected checkpoint to verify.
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
    if reload:
        check_reload(report, directory, tensors, manifest)
    return report


def check_manifest(report: VerificationReport, directory: Path, manifest: Mapping[str, Any]) -> None:
    """injection.json and all files are as they were written."""
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
    """The tensors are the recorded ones, and differ from the base as declared."""
    _check_tensors(report, tensors, manifest)
    _check_rows(report, tensors, proof, manifest)
    if base is not None:
        _check_base(report, tensors, proof, base, manifest)


def read_manifest(directory: Path) -> dict[str, Any]:
    """injection.json of a directory; `InputError` where there is none or it is of another kind."""
    path = directory / MANIFEST
    if not path.is_file():
        raise InputError(f"{directory} has no {MANIFEST}: it was not written by wals-spark inject")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}): it was cut short or edited") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise InputError(f"{path} is not of wals_spark")
    if manifest.get("format_version", 0) > FORMAT_VERSION:
        raise InputError(
            f"{path} has format {manifest['format_version']}, this version reads up to {FORMAT_VERSION}: use a newer "
            "wals_spark"
        )
    return manifest


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _check_files(report: VerificationReport, directory: Path, manifest: Mapping[str, Any]) -> None:
    recorded = manifest["files"]
    present = {path.name for path in directory.iterdir() if path.name != MANIFEST}
    wrong = [
        name for name, expected in recorded.items() if name not in present or file_sha256(directory / name) != expected
    ]
    extra = sorted(present - recorded.keys())
    report.add(
        "files",
        not wrong and not extra,
        f"{len(recorded)} files have their recorded hashes"
        if not wrong and not extra
        else f"changed or missing: {_some(wrong) or 'none'}; not recorded: {_some(extra) or 'none'}",
    )


def _check_tensors(report: VerificationReport, tensors: Mapping[str, RawTensor], manifest: Mapping[str, Any]) -> None:
    found, recorded = tensor_hashes(tensors), manifest["tensors"]
    wrong = sorted(name for name in recorded.keys() | found.keys() if recorded.get(name) != found.get(name))
    report.add(
        "tensors",
        not wrong,
        f"{len(found)} tensors have their recorded hashes" if not wrong else f"differ from the record: {_some(wrong)}",
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
        else f"differ from the base without being declared: {_some(stray)}",
    )


def _declared(manifest: Mapping[str, Any]) -> set[str]:
    """Tensors that may differ from the base: the embedding, a changed head bias, a bias whose rows moved."""
    described, bias = manifest["embedding"], manifest["head_bias"]
    declared = {described["tensor"]}
    resized = described["new_rows"] > 0 or described["dropped_rows"] > 0
    if bias["tensor"] is not None and (bias["changed"] or resized):
        declared.add(bias["tensor"])
    return declared


def _check_rows(
    report: VerificationReport,
    tensors: Mapping[str, RawTensor],
    proof: Mapping[str, RawTensor],
    manifest: Mapping[str, Any],
) -> None:
    described = manifest["embedding"]
    embedding = tensors.get(described["tensor"])
    if embedding is None or "base_row_hashes" not in proof:
        report.add("rows", False, f"{described['tensor']} or the row hashes of the base are missing")
        return
    before = proof["base_row_hashes"].data.view("<u8")
    origin = proof["origin"].data.view("<i8")
    after = row_hashes(embedding)
    if len(origin) != len(after) or (len(origin) and origin.max() >= len(before)):
        report.add("rows", False, f"{len(after)} rows, the record has {len(origin)} from {len(before)}")
        return
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
        else f"protected rows moved or are gone: {_some([str(index) for index in touched])}",
    )
    still = np.setdiff1d(np.flatnonzero(displacement > 0), changed)
    report.add(
        "displacements",
        len(still) == 0,
        "every recorded displacement belongs to a changed row"
        if len(still) == 0
        else f"recorded as moved, but not: rows {_some([str(index) for index in still])}",
    )
    finite = np.isfinite(embedding.values()).all()
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
        else f"{base} is not the base that was recorded: {_some(differs)} differ",
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
        else f"not bit-identical to the base: {_some(others)}",
    )
    origin = proof["origin"].data.view("<i8")
    if any(t not in original or t not in tensors or len(origin) != tensors[t].shape[0] for t in declared):
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
        kept = gather_rows(original[bias], origin).same_bytes(tensors[bias])
        report.add("base head bias", kept, "bit-identical to the base" if kept else "differs from the base")


def _check_outliers(
    report: VerificationReport,
    before: RawTensor,
    after: RawTensor,
    origin: np.ndarray,
    proof: Mapping[str, RawTensor],
    manifest: Mapping[str, Any],
) -> None:
    """Rows that moved unlike the others (`wals_spark.checkpoints.outliers`): a hand in the factors or in the writer."""
    if manifest["mode"] == "init" or not (origin >= 0).any():
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
    told = [f"row {row} ({reason})" for row, reason in zip(rows, found.reasons, strict=True)]
    report.add(
        "outliers", not rows, f"moved unlike the others: {_some(told)}" if rows else "no row moved unlike the others"
    )


def open_base_tensors(base: str, manifest: Mapping[str, Any]) -> Mapping[str, RawTensor]:
    """The tensors that the injection started from: a checkpoint's, or for ``init`` the same fresh model."""
    if manifest["mode"] == "init":
        from wals_spark.checkpoints.checkpoint import locate_checkpoint
        from wals_spark.checkpoints.from_scratch import initialise_model

        return initialise_model(locate_checkpoint(base, "--base", weights=False), manifest["parameters"]["seed"])[0]
    return open_checkpoint(base, "--base").tensors


def check_reload(
    report: VerificationReport,
    directory: Path,
    tensors: Mapping[str, RawTensor],
    manifest: Mapping[str, Any],
    module: str = "wals_spark.checkpoints.reload",
) -> None:
    """It loads in a fresh process, whole and tied, through `module`."""
    loaded = reload_in_new_process(directory, module)
    name, bias = manifest["embedding"]["tensor"], manifest["head_bias"]["tensor"]
    matrix = hashlib.sha256(tensors[name].data.data).hexdigest()
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    family = FAMILIES[config["model_type"]]
    native = config["architectures"][0]
    for auto, found in loaded.items():
        problems = list(_reload_problems(found, native == found.get("class"), family.prefix, manifest))
        if "error" not in found:
            if found["embedding"] != matrix:
                problems.append("the embedding in memory is not the one on disk")
            encoder_alone = bias is None and config.get("tie_word_embeddings", True) is False
            if found.get("tied") is False and not encoder_alone:
                problems.append("the head is not tied to the embedding")
            if bias is not None and auto == "AutoModelForMaskedLM":
                expected = hashlib.sha256(tensors[bias].data.data).hexdigest()
                if found.get("head_bias") != expected:
                    problems.append("the head bias in memory is not the one on disk")
        tied = ", tied" if found.get("tied") else ""
        report.add(
            f"reload {auto}",
            not problems,
            "; ".join(problems) if problems else f"{found['class']}, {found['dtype']}{tied}, nothing lost",
        )


def _reload_problems(found: Mapping[str, Any], native: bool, prefix: str, manifest: Mapping[str, Any]) -> list[str]:
    """What is wrong with a reload, apart from heads that the checkpoint never had.

    A class other than the checkpoint's own may lack (and freshly initialise) its head or pooler and may
    leave the checkpoint's head unread; its encoder must be whole.
    """
    if "error" in found:
        return [found["error"]]
    base_tensors = manifest["base"]["tensors"]
    encoder = {
        name.removeprefix(prefix)
        for name in base_tensors
        if name.startswith(prefix) or name.endswith(EMBEDDING_SUFFIX) or name.startswith("encoder.")
    }
    body = {name for name in encoder if not name.startswith("pooler.")}

    def of_encoder(key: str) -> bool:
        short = key.removeprefix(prefix)
        return short in body or short.startswith(("embeddings.", "encoder.", "transformer."))

    missing = [key for key in found["missing"] if of_encoder(key)]
    unexpected = [key for key in found["unexpected"] if of_encoder(key)]
    if native:
        missing = found["missing"]
        unexpected = [key for key in found["unexpected"] if not key.removeprefix(prefix).startswith("pooler.")]
    problems = []
    if missing:
        problems.append(f"missing keys: {_some(list(missing))}")
    if unexpected:
        problems.append(f"unexpected keys: {_some(list(unexpected))}")
    if found["mismatched"]:
        problems.append(f"mismatched keys: {_some(list(found['mismatched']))}")
    return problems


def reload_in_new_process(
    directory: str | Path, module: str = "wals_spark.checkpoints.reload"
) -> dict[str, dict[str, Any]]:
    """Run `wals_spark.checkpoints.reload`, or a module with the same output, in a new interpreter."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-m", module, str(directory)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=_RELOAD_TIMEOUT_S, env=environment, check=False
    )
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        return {"fresh process": {"error": f"ended with code {done.returncode}: {last[0]}"}}
    loaded: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return loaded
