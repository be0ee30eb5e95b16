"""The edit that a result records, computed again from its base: what a forger cannot get right by rewriting hashes.

Vectors, counts, exposures and strengths come from the result itself, everything else from the base: its tensors, its
configuration and tokenizer, the protected tokens, the alignment, the shares, the rows, the head bias. Rows and entries
that the mode leaves alone must be the base's to the bit, computed ones agree up to rounding (`TOLERANCE` of their
move). Numbers that the result alone has are bounded: strengths by what was asked for, vectors by the outliers of
`wals_spark.checkpoints.verify`, counts by `LARGEST_RATIO`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wals_spark.checkpoints.artifact import CARD, FACTORS, MANIFEST
from wals_spark.checkpoints.base_files import check_base_files
from wals_spark.checkpoints.checkpoint import WEIGHTS, locate_checkpoint
from wals_spark.checkpoints.domain_pack import PACK_FILE
from wals_spark.checkpoints.edit import BaseCheckpoint, EmbeddingEdit, apply_edit, reindexed_tensors
from wals_spark.checkpoints.json_file import read_json_object, require_value
from wals_spark.checkpoints.raw_tensor import ITEM_BYTES, RawTensor
from wals_spark.checkpoints.row_quantisation import rounding_bounds
from wals_spark.checkpoints.verification_report import VerificationReport, first_of
from wals_spark.checkpoints.verify import OF_HUB
from wals_spark.config import Config, validate_config
from wals_spark.errors import ConfigError, GateError, InputError
from wals_spark.factors.store import Vectors
from wals_spark.inject.prepare import EncodedText, RecordedChoices, prepare_edit, strengths_need_text
from wals_spark.inject.proposal import TokenFrequencies
from wals_spark.inject.strength_search import HALF_EXPOSURE_GRID, HEAD_BIAS_GRID, SHIFT_GRID, Strengths
from wals_spark.inject.vocabulary.segmentation import compare_segmentation, load_auto_pieces, random_texts
from wals_spark.inject.vocabulary.tokenizer_json import extension_problems
from wals_spark.tokenizer import load_tokenizer

MODES = ("init", "blend", "replace", "extend", "trim", "transfer")
TOLERANCE = 1e-3
"""Largest difference of a computed row, as a share of its move, beside the rounding of its dtype."""
LARGEST_RATIO = 1e6
"""No token is a million times as frequent in one text as in another, so no head bias moves further."""
_ROUNDING = {"F64": 2.0**-23, "F32": 2.0**-21, "F16": 2.0**-9, "BF16": 2.0**-6}
"""Of a stored number, twice the spacing at 1; float64 rows are computed in float32."""
_RANDOM_TEXTS = 300
_COUNTS = ("counts", "corpus_counts", "exposure")
_OWN_FILES = frozenset({MANIFEST, CARD, FACTORS, WEIGHTS}) | OF_HUB


@dataclass(frozen=True)
class _Result:
    """A result on disk, opened."""

    directory: Path
    manifest: Mapping[str, Any]
    tensors: Mapping[str, RawTensor]
    proof: Mapping[str, RawTensor]

    def array(self, name: str, dtype: str, dimensions: int = 1) -> np.ndarray:
        """An array of factors.safetensors, finite; `InputError` where it is missing or of another kind."""
        tensor, path = self.proof.get(name), self.directory / FACTORS
        if tensor is None:
            raise InputError(f"{path} lacks {name}: an earlier version wrote it, or it was edited; make it again")
        if tensor.dtype != dtype or len(tensor.shape) != dimensions:
            raise InputError(
                f"{path}: {name} is {tensor.dtype} {tensor.shape}, expected {dtype} of {dimensions} dimensions"
            )
        values = tensor.data.view({"I64": "<i8", "F32": "<f4", "F64": "<f8"}[dtype]).reshape(tensor.shape)
        if not np.isfinite(values).all() or (name in _COUNTS and (values < 0).any()):
            raise InputError(f"{path}: {name} has entries that are negative or no finite numbers")
        return values


def check_recomputed(
    report: VerificationReport,
    directory: Path,
    manifest: Mapping[str, Any],
    tensors: Mapping[str, RawTensor],
    proof: Mapping[str, RawTensor],
    base: str,
    texts: Sequence[str] = (),
) -> None:
    """Compute the edit again and compare everything with it.

    Parameters
    ----------
    report : VerificationReport
        Results are appended to it.
    directory : Path
        Of the result.
    manifest : dict of str to object
        The content of injection.json, of one of `MODES`.
    tensors : dict of str to RawTensor
        Of the result.
    proof : dict of str to RawTensor
        Of factors.safetensors.
    base : str
        The checkpoint that it was made from.
    texts : sequence of str
        ``trim`` and ``extend``: segmented before and after; none = texts of random tokens.
    """
    result = _Result(directory, manifest, tensors, proof)
    try:
        config = _config(result, base)
        opened, edit, strengths = _edit_again(result, config)
    except (ConfigError, InputError, GateError, np.linalg.LinAlgError, ValueError, OverflowError) as error:
        report.add("recomputed", False, f"cannot be computed again: {str(error).splitlines()[0]:.300}")
        return
    own = _OWN_FILES if config.inject.pack_dtype == "none" else _OWN_FILES | {PACK_FILE}
    check_base_files(report, directory, opened.companions(), own)
    _check_pack(report, manifest, config.inject.pack_dtype)
    if config.inject.mode == "extend":
        _check_extended_tokenizer(report, result, base)
    _check_protected(report, result, opened)
    if not _check_origin(report, result, opened, edit):
        return
    if edit.origin is not None and config.inject.mode != "transfer":
        _check_segmentation(report, directory, base, edit.origin, texts)
    _check_shares(report, result, edit)
    _check_values(report, result, opened, edit, config.inject.pack_dtype)
    if strengths is not None:
        _check_strengths(report, config, strengths, edit, has_head=opened.head_bias is not None)
    if config.inject.mode in ("blend", "replace"):
        _check_ratios(report, result)
    _check_gate(report, result, config, edit)


def _config(result: _Result, base: str) -> Config:
    """The configuration of the result, with the base given here and, where the mode has one, its own tokenizer."""
    parameters, where = dict(result.manifest["parameters"]), str(result.directory / MANIFEST)
    seed = require_value(result.manifest, "parameters.seed", int, where)
    if require_value(result.manifest, "parameters.mode", str, where) != result.manifest["mode"]:
        raise InputError(f"{where}: mode is {result.manifest['mode']!r:.60}, parameters.mode another; it was edited")
    del parameters["seed"]
    tokenizer = str(result.directory) if result.manifest["mode"] in ("extend", "init", "transfer") else base
    inject = {**parameters, "checkpoint": base, "output": None, "force": True}
    return validate_config({"seed": seed, "inject": inject, "vocabulary": {"tokenizer": tokenizer}}, where)


def _edit_again(result: _Result, config: Config) -> tuple[BaseCheckpoint, EmbeddingEdit, Strengths | None]:
    mode = config.inject.mode
    tokenizer = load_tokenizer(str(config.vocabulary.tokenizer))
    counts = result.array("counts", "I64")
    matrix = np.zeros((len(counts), 0), np.float32) if mode == "trim" else result.array("vectors", "F32", 2)
    if not len(counts) == len(matrix) == len(tokenizer.tokens):
        raise InputError(
            f"{result.directory / FACTORS} has {len(counts)} counts and {len(matrix)} vectors for a tokenizer of "
            f"{len(tokenizer.tokens)} tokens"
        )
    vectors = Vectors(list(tokenizer.tokens), counts, matrix, np.zeros(len(counts), np.float32))
    if mode not in ("blend", "replace"):
        base, edit, _ = prepare_edit(config, vectors)
        return base, edit, None
    exposure, corpus = result.array("exposure", "F64"), result.array("corpus_counts", "F64")
    where = str(result.directory / MANIFEST)

    def strength(name: str) -> float:
        return float(require_value(result.manifest, f"fit.strengths.{name}", (int, float), where))

    strengths = Strengths(strength("half_exposure"), strength("head_bias"), strength("shift"))
    delta = result.array("delta", "F32", 2) if strengths.shift > 0 else None
    if not len(exposure) == len(corpus) == len(counts) or (delta is not None and delta.shape != matrix.shape):
        raise InputError(f"{result.directory / FACTORS} has arrays of different length")
    if (corpus > counts).any():
        raise InputError(f"{result.directory / FACTORS}: corpus_counts exceed counts")
    recorded = RecordedChoices(TokenFrequencies(exposure, corpus), strengths)
    base, edit, _ = prepare_edit(config, vectors, EncodedText(delta=delta), recorded=recorded)
    return base, edit, strengths


def _check_extended_tokenizer(report: VerificationReport, result: _Result, base: str) -> None:
    """The base's tokenizer entry by entry, with new tokens behind."""
    old = read_json_object(locate_checkpoint(base) / "tokenizer.json")
    problems = extension_problems(old, read_json_object(result.directory / "tokenizer.json"))
    report.add(
        "tokenizer of the base",
        not problems,
        "every entry of the base's tokenizer is there, new tokens come behind" if not problems else first_of(problems),
    )


def _check_segmentation(
    report: VerificationReport, directory: Path, base: str, origin: np.ndarray, texts: Sequence[str]
) -> None:
    """Both tokenizers load, special tokens are the same, and texts change only by dropped or through new tokens."""
    source = locate_checkpoint(base)
    sample = list(texts) or random_texts(load_tokenizer(str(source)), _RANDOM_TEXTS, 0)
    try:
        old, new = load_auto_pieces(source), load_auto_pieces(directory)
    except InputError as error:
        report.add("segmentation", False, str(error))
        return
    moved = {name: int(origin[index]) if index < len(origin) else -2 for name, index in new.special.items()}
    wrong = sorted(name for name in moved.keys() | old.special.keys() if moved.get(name) != old.special.get(name))
    if wrong:
        report.add("segmentation", False, f"special tokens are not those of the base: {first_of(wrong)}")
        return
    found = compare_segmentation(old.pieces, new.pieces, origin, sample)
    extends = bool((origin < 0).any())
    said = f"of {found.texts} texts {found.unchanged} segment as with the base"
    if extends:
        said += f", {found.within} differ within new tokens, {len(found.elsewhere)} elsewhere"
    else:
        said += f", {found.dropped} hold dropped tokens"
    bad = found.without_new if extends else len(found.elsewhere)
    why = f"{said}; {bad} differ without a {'new' if extends else 'dropped'} token, the first: "
    report.add("segmentation", bad == 0, said if bad == 0 else why + repr(sample[found.elsewhere[0]])[:80])


def _check_protected(report: VerificationReport, result: _Result, base: BaseCheckpoint) -> None:
    recorded = result.manifest["embedding"]["protected"]
    same = recorded == base.protected.tolist()
    report.add(
        "protected by the base",
        same,
        f"{len(recorded)} protected rows are those of the base's tokenizer and configuration"
        if same
        else f"{len(recorded)} protected rows are recorded, the base's tokenizer and configuration name "
        f"{len(base.protected)}",
    )


def _check_origin(report: VerificationReport, result: _Result, base: BaseCheckpoint, edit: EmbeddingEdit) -> bool:
    """Whether every row comes from the base's row that the mode takes; without that nothing else can be compared."""
    rows = base.tensors[base.embedding].shape[0]
    expected = np.arange(rows) if edit.origin is None else edit.origin
    found = result.proof["origin"].data.view("<i8")
    same = np.array_equal(found, expected)
    report.add(
        "row origins",
        same,
        "every row comes from the row of the base that the mode takes" if same else "rows were permuted or replaced",
    )
    return same


def _check_shares(report: VerificationReport, result: _Result, edit: EmbeddingEdit) -> None:
    found = result.proof["share"].data.view("<f4").astype(np.float64)
    wrong: np.ndarray | None = None
    if found.shape == edit.share.shape:
        wrong = np.flatnonzero(~(np.abs(found - edit.share) <= TOLERANCE * edit.share + 1e-6))
    right = wrong is not None and len(wrong) == 0
    report.add(
        "shares",
        right,
        "the share of every row follows from its counts"
        if right
        else f"shares of rows {first_of([str(row) for row in wrong])} do not follow from their counts"
        if wrong is not None
        else f"{len(found)} shares, expected {len(edit.share)}",
    )


def _check_pack(report: VerificationReport, manifest: Mapping[str, Any], dtype: str) -> None:
    """There is one domain pack of the dtype asked for, at full strength, or none was asked for."""
    records = manifest.get("packs", [])
    expected = [] if dtype == "none" else [(PACK_FILE, dtype, 1.0)]
    listed = isinstance(records, list) and all(isinstance(record, Mapping) for record in records)
    found = [tuple(record.get(key) for key in ("file", "dtype", "strength")) for record in records] if listed else None
    if expected or found:
        report.add(
            "pack asked for",
            found == expected,
            f"one domain pack in {dtype}" if found == expected else f"packs are {found!s:.100}, asked for was {dtype}",
        )


def _check_values(
    report: VerificationReport, result: _Result, base: BaseCheckpoint, edit: EmbeddingEdit, pack: str
) -> None:
    """Rows of the embedding and entries of the head bias: to the bit where they stay, up to rounding where computed."""
    expected = apply_edit(base, edit)
    before = reindexed_tensors(base, edit)
    name, bias = base.embedding, base.head_bias
    wrong = _differing(result.tensors.get(name), expected[name], before[name], edit.ids, pack)
    _add_values(
        report, "computed rows", wrong, f"{len(edit.ids)} rows are what the recorded vectors and strengths give"
    )
    if bias is None:
        return
    moved = np.zeros(0, np.int64)
    if edit.head_bias is not None:
        moved = np.flatnonzero(edit.head_bias != before[bias].values())
    wrong = _differing(result.tensors.get(bias), expected[bias], before[bias], moved)
    _add_values(report, "computed head bias", wrong, f"{len(moved)} entries are what frequencies and strength give")


def _add_values(report: VerificationReport, name: str, wrong: np.ndarray | None, right: str) -> None:
    passed = wrong is not None and len(wrong) == 0
    problem = "the tensor is missing, or has another shape or dtype"
    if wrong is not None:
        problem = f"{len(wrong)} are not what the mode makes of them: {first_of([str(row) for row in wrong])}"
    report.add(name, passed, f"{right}, the others are the base's to the bit" if passed else problem)


def _differing(
    found: RawTensor | None, expected: RawTensor, before: RawTensor, computed: np.ndarray, pack: str = "none"
) -> np.ndarray | None:
    """Rows that are not `expected`, to the bit or where `computed` up to rounding; None for another shape or dtype.

    Where a domain pack rounded the moves, its rounding is allowed too.
    """
    if found is None or (found.dtype, found.shape) != (expected.dtype, expected.shape) or found.dtype not in _ROUNDING:
        return None
    differ = np.flatnonzero((found.rows != expected.rows).any(axis=1))
    got, wanted, old = (
        tensor.values()[differ]
        .reshape(len(differ), tensor.rows.shape[1] // ITEM_BYTES[tensor.dtype])
        .astype(np.float64)
        for tensor in (found, expected, before)
    )
    allowed = TOLERANCE * np.linalg.norm(wanted - old, axis=1) + _ROUNDING[found.dtype] * np.linalg.norm(wanted, axis=1)
    if pack != "none":
        allowed += rounding_bounds(wanted - old, pack)
    near = np.isin(differ, computed) & (np.linalg.norm(got - wanted, axis=1) <= allowed)
    return differ[~near]


def _check_strengths(
    report: VerificationReport, config: Config, strengths: Strengths, edit: EmbeddingEdit, *, has_head: bool
) -> None:
    """Strengths are those asked for, fitted ones those of the fit, chosen ones of the grid they are chosen from."""
    inject, problems = config.inject, []
    on_text = strengths_need_text(config, has_head) and has_head
    asked: tuple[tuple[str, float, float | str, tuple[float, ...]], ...] = (
        ("head_bias", strengths.head_bias, inject.head_bias if has_head else 0.0, HEAD_BIAS_GRID),
        ("shift", strengths.shift, inject.shift, SHIFT_GRID),
    )
    for name, found, wanted, grid in asked:
        if found not in (grid if wanted == "auto" else (wanted,)):
            problems.append(f"{name} is {found:g}, asked for was {wanted}")
    if inject.mode == "blend":
        variances = edit.facts["variances"]
        fitted = variances["pretrained"] / variances["mapping"] if variances["mapping"] > 0 else 0.0
        half = strengths.half_exposure
        chosen = on_text and inject.strengths != "fitted"
        if not (half in HALF_EXPOSURE_GRID if chosen else abs(half - fitted) <= TOLERANCE * fitted + 1e-9):
            problems.append(f"half_exposure is {half:g}, {'not of its grid' if chosen else f'fitted is {fitted:g}'}")
    report.add(
        "strengths",
        not problems,
        "strengths are those asked for, fitted, or of the grid that they were chosen from"
        if not problems
        else "; ".join(problems),
    )


def _check_ratios(report: VerificationReport, result: _Result) -> None:
    """Frequencies that are recorded for two texts lie no further apart than those of any two texts."""
    exposure, corpus = result.array("exposure", "F64") + 0.5, result.array("corpus_counts", "F64") + 0.5
    ratio = (corpus / corpus.sum()) / (exposure / exposure.sum())
    wrong = np.flatnonzero((ratio > LARGEST_RATIO) | (ratio < 1 / LARGEST_RATIO))
    report.add(
        "frequencies",
        len(wrong) == 0,
        f"no token is {LARGEST_RATIO:g} times as frequent in one text as in the other"
        if len(wrong) == 0
        else f"tokens {first_of([str(row) for row in wrong])} have frequencies of no text",
    )


def _check_gate(report: VerificationReport, result: _Result, config: Config, edit: EmbeddingEdit) -> None:
    """The gate's figures are those of the vectors, and it passed unless the result says that it was forced."""
    found = result.manifest.get("gate")
    if edit.gate is None:
        report.add("gate", found is None, "there is none" if found is None else "a gate is recorded, the mode has none")
        return
    forced = result.manifest["parameters"].get("force") is True or not config.inject.gate
    near = isinstance(found, Mapping) and all(
        isinstance(found.get(name), int | float) and abs(found[name] - edit.gate[name]) <= 0.01
        for name in ("gain", "low", "high")
    )
    right = near and isinstance(found, Mapping) and found.get("passed") == edit.gate["passed"]
    allowed = right and (edit.gate["passed"] or forced)
    report.add(
        "gate",
        allowed,
        f"the gate's figures are those of the vectors: {edit.gate['reason']}"
        if allowed
        else "the gate's figures are not those of the vectors"
        if not right
        else f"written though {edit.gate['reason']}, without force",
    )
