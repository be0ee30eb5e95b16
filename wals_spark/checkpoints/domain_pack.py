r"""A domain pack: one file with the embedding rows and head-bias entries that an injection moved.

A safetensors file with n of the V rows of the embedding (V, d) and m entries of the head bias (V,):

::

    ids       I32 (n,)      rows that move, ascending
    rows      (n, d)        fp32: F32, their new values; fp16: F16, int8: I8, their differences D_v = E'_v - E0_v
    scales    F32 (n,)      int8 alone: D_v = scale_v rows_v
    bias_ids  I32 (m,)      entries that move, ascending
    bias      F32 (m,)      their new values (fp32), or differences b'_v - b0_v (fp16, int8)
    share     F32 (n,)      the share of each row that is new, where the injection declares one

The metadata entry ``domain_pack`` is a JSON object: format and version, dtype and its error, hashes of the base's
tensors and of the vocabulary, where the rows come from, a hash of every tensor, and a hash over all of that.

Notes
-----
fp32 holds values, since E0 + (E' - E0) with a difference rounded to float32 is not E' wherever |E'| is smaller than
|E0|: only values give back every bit. fp16 and int8 hold differences, which are smaller than the rows, so that the same
bits lose less, and scale and add without the base at hand.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wals_spark.checkpoints.artifact import manifest_sha256
from wals_spark.checkpoints.checkpoint import Checkpoint
from wals_spark.checkpoints.json_file import parse_json_object, require_ids, require_texts, require_value
from wals_spark.checkpoints.raw_tensor import RawTensor, from_numpy, gather_rows, tensor_hashes
from wals_spark.checkpoints.row_quantisation import LARGEST_CODE, PACK_DTYPES, dequantise_rows
from wals_spark.checkpoints.safetensors_file import read_raw_tensors, write_raw_tensors
from wals_spark.errors import InputError

PACK_FORMAT = "wals_spark domain pack"
PACK_VERSION = 1
PACK_FILE = "domain_pack.safetensors"
ROWS_AT_ONCE = 4096
_METADATA = "domain_pack"
_CODES = {"fp32": "F32", "fp16": "F16", "int8": "I8"}
_KEYS: dict[str, type | tuple[type, ...]] = {
    "format_version": int,
    "dtype": str,
    "content": str,
    "base.source": str,
    "base.embedding": str,
    "base.head_bias": (str, type(None)),
    "vocabulary.tokens": int,
    "vocabulary.hash": str,
    "error.relative_rms": (int, float),
    "injection": dict,
    "injection.mode": str,
    "sha256": str,
}
"""Keys of the JSON that are read, and their types."""


@dataclass(frozen=True)
class DomainPack:
    """Rows and head-bias entries that an injection moved, with where they come from.

    Attributes
    ----------
    ids : int64 array of shape (n,)
        Rows that move, ascending.
    rows : float32, float16 or int8 array of shape (n, d)
        As stored; of a file a view that is read when used.
    scales : float32 array of shape (n,) or None
        Of ``int8``.
    bias_ids : int64 array of shape (m,)
        Entries of the head bias that move, ascending.
    bias : float32 array of shape (m,)
    share : float32 array of shape (n,) or None
        The share of each row that is new, None where the injection declares none.
    header : dict of str to object
        The JSON of the file.
    """

    ids: np.ndarray
    rows: np.ndarray
    scales: np.ndarray | None
    bias_ids: np.ndarray
    bias: np.ndarray
    share: np.ndarray | None
    header: Mapping[str, Any]

    @property
    def dtype(self) -> str:
        """``fp32``, ``fp16`` or ``int8``."""
        return str(self.header["dtype"])

    @property
    def holds_values(self) -> bool:
        """Whether rows and biases are new values; else they are differences."""
        return holds_values(self.dtype)

    @property
    def sha256(self) -> str:
        """Of the whole content: what the pack is known by."""
        return str(self.header["sha256"])

    @property
    def shape(self) -> tuple[int, int]:
        """(V, d) of the embedding."""
        rows, width = self.header["base"]["shape"]
        return rows, width

    def row_differences(self, index: np.ndarray, old: np.ndarray) -> np.ndarray:
        """D of the stored rows `index` (b,), given the base's rows `old` (b, d) in float64: float64 (b, d)."""
        stored = dequantise_rows(self.rows[index], None if self.scales is None else self.scales[index])
        return stored - old if self.holds_values else stored

    def bias_differences(self, old: np.ndarray) -> np.ndarray:
        """Differences of the entries `bias_ids`, given the base's entries there in float64: float64 (m,)."""
        stored = self.bias.astype(np.float64)
        return stored - old if self.holds_values else stored


def holds_values(dtype: str) -> bool:
    """Whether a pack of this dtype holds new values rather than differences: ``fp32`` alone does."""
    return dtype == "fp32"


def sealed_pack(tensors: Mapping[str, np.ndarray], described: Mapping[str, Any]) -> DomainPack:
    """A pack of the tensors of the module's table and what its JSON says; hashes are added here."""
    raw = _raw_tensors(tensors)
    header = {"format": PACK_FORMAT, "format_version": PACK_VERSION, **described, "tensors": tensor_hashes(raw)}
    header = json.loads(json.dumps(header))
    header["sha256"] = manifest_sha256(header)
    return _pack_of(raw, header)


def write_pack(path: str | Path, pack: DomainPack) -> None:
    """Write the file of a pack; the same pack gives the same bytes."""
    tensors = {"ids": pack.ids, "rows": pack.rows, "bias_ids": pack.bias_ids, "bias": pack.bias}
    optional = {"scales": pack.scales, "share": pack.share}
    raw = _raw_tensors(tensors | {name: value for name, value in optional.items() if value is not None})
    write_raw_tensors(path, raw, {_METADATA: json.dumps(pack.header, sort_keys=True)})


def read_pack(path: str | Path) -> DomainPack:
    """Read a pack and check all of it: format, hashes, shapes, ids, numbers.

    Raises
    ------
    InputError
        There is no such file, it is another kind of file, of a newer format, damaged, or holds entries that are not
        finite; the message names the file and, where a hash differs, the one found and the one expected.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} is not a file, expected a domain pack that wals-spark pack or inject wrote")
    tensors, metadata = read_raw_tensors(path)
    if _METADATA not in metadata:
        raise InputError(f"{path} is a safetensors file without the metadata entry {_METADATA}: it is no domain pack")
    header = parse_json_object(metadata[_METADATA].encode(), f"{path}: its metadata entry {_METADATA}")
    _check_header(header, str(path))
    _check_tensors(tensors, header, str(path))
    pack = _pack_of(tensors, header)
    _check_ids(pack, str(path))
    _check_numbers(pack, str(path))
    return pack


def dequantised(pack: DomainPack, base: Checkpoint | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What a pack adds to its base at strength 1: E[ids] += rows; b += bias.

    Parameters
    ----------
    pack : DomainPack
    base : Checkpoint, optional
        Needed for ``fp32``, which holds values.

    Returns
    -------
    ids : int64 array of shape (n,)
    rows : float32 array of shape (n, d)
        D_v.
    bias : float32 array of shape (V,)
        b' - b0, zero where nothing moves.

    Raises
    ------
    InputError
        The pack holds values, and no base is given.
    """
    if pack.holds_values and base is None:
        raise InputError("a domain pack of dtype fp32 holds new values: give its base to get differences")
    rows: np.ndarray = np.empty((len(pack.ids), pack.shape[1]), np.float32)
    for begin in range(0, len(rows), ROWS_AT_ONCE):
        index = np.arange(begin, min(begin + ROWS_AT_ONCE, len(rows)))
        old = np.zeros((len(index), rows.shape[1]))
        if base is not None:
            old = gather_rows(base.tensors[base.embedding], pack.ids[index]).values().astype(np.float64)
        rows[index] = pack.row_differences(index, old)
    bias = np.zeros(pack.shape[0], np.float32)
    old_bias = np.zeros(len(pack.bias_ids))
    if base is not None and base.head_bias is not None:
        old_bias = base.tensors[base.head_bias].values()[pack.bias_ids].astype(np.float64)
    bias[pack.bias_ids] = pack.bias_differences(old_bias)
    return pack.ids, rows, bias


def describe_pack(pack: DomainPack) -> str:
    """Rows, biases, dtype and error of a pack in a few words."""
    error = pack.header["error"]
    lost = f", relative error {error['relative_rms']:.2g}" if error.get("relative_rms") else ", exact"
    return f"{len(pack.ids):,} rows and {len(pack.bias_ids):,} biases in {pack.dtype}{lost}"


def _raw_tensors(tensors: Mapping[str, np.ndarray]) -> dict[str, RawTensor]:
    """The tensors as stored: ids in 32 bits."""
    kinds = {"ids": np.dtype("<i4"), "bias_ids": np.dtype("<i4")}
    return from_numpy((name, np.asarray(value, kinds.get(name, value.dtype))) for name, value in tensors.items())


def _pack_of(tensors: Mapping[str, RawTensor], header: Mapping[str, Any]) -> DomainPack:
    kind = PACK_DTYPES[header["dtype"]]
    return DomainPack(
        ids=tensors["ids"].data.view("<i4").astype(np.int64),
        rows=tensors["rows"].data.view(kind).reshape(tensors["rows"].shape),
        scales=tensors["scales"].data.view("<f4") if "scales" in tensors else None,
        bias_ids=tensors["bias_ids"].data.view("<i4").astype(np.int64),
        bias=tensors["bias"].data.view("<f4"),
        share=tensors["share"].data.view("<f4") if "share" in tensors else None,
        header=header,
    )


def _check_header(header: Mapping[str, Any], what: str) -> None:
    """Raise `InputError` where the JSON is of another format or was changed."""
    if header.get("format") != PACK_FORMAT:
        raise InputError(f"{what}: format is {header.get('format')!r:.60}, expected {PACK_FORMAT!r}: it is no pack")
    version = require_value(header, "format_version", int, what)
    if version > PACK_VERSION:
        raise InputError(
            f"{what} has format {version}, this version reads up to {PACK_VERSION}: use a newer wals_spark"
        )
    for key, kinds in _KEYS.items():
        require_value(header, key, kinds, what)
    for key in ("base.tensors", "tensors"):
        require_texts(header, key, what)
    shape = require_ids(header, "base.shape", what)
    if len(shape) != 2 or not 0 < max(shape) < 1 << 31:
        raise InputError(f"{what}: base.shape is {shape!r:.60}, expected rows and columns; it was edited")
    if header["dtype"] not in PACK_DTYPES:
        raise InputError(f"{what}: dtype is {header['dtype']!r:.60}, expected one of {', '.join(PACK_DTYPES)}")
    content = "values" if holds_values(header["dtype"]) else "differences"
    if header["content"] != content:
        raise InputError(f"{what}: content is {header['content']!r:.60}, expected {content} with {header['dtype']}")
    found = manifest_sha256(header)
    if found != header["sha256"]:
        raise InputError(
            f"{what}: its description has the SHA-256 {found}, expected {header['sha256']:.80}: it is damaged or was "
            "edited; copy or make it again"
        )


def _check_tensors(tensors: Mapping[str, RawTensor], header: Mapping[str, Any], what: str) -> None:
    """Raise `InputError` where a tensor is missing, too many, of another kind or with another hash."""
    dtype, recorded = header["dtype"], header["tensors"]
    kinds = {"ids": "I32", "rows": _CODES[dtype], "bias_ids": "I32", "bias": "F32"}
    kinds |= {"scales": "F32"} if dtype == "int8" else {}
    kinds |= {"share": "F32"} if "share" in recorded else {}
    if tensors.keys() != kinds.keys():
        raise InputError(f"{what} holds the tensors {', '.join(tensors) or 'none'}, expected {', '.join(kinds)}")
    for name, tensor in tensors.items():
        dimensions = 2 if name == "rows" else 1
        if tensor.dtype != kinds[name] or len(tensor.shape) != dimensions:
            raise InputError(
                f"{what}: {name} is {tensor.dtype} {list(tensor.shape)}, expected {kinds[name]} with {dimensions} "
                "dimensions: it is damaged; copy or make it again"
            )
    rows, width = tensors["ids"].shape[0], header["base"]["shape"][1]
    lengths = {"rows": (rows, width), "scales": (rows,), "share": (rows,), "bias": tensors["bias_ids"].shape}
    for name, shape in lengths.items():
        if name in tensors and tensors[name].shape != shape:
            raise InputError(f"{what}: {name} has shape {list(tensors[name].shape)}, expected {list(shape)}")
    found = tensor_hashes(tensors)
    for name in kinds:
        if found[name] != recorded.get(name):
            raise InputError(
                f"{what}: {name} has the SHA-256 {found[name]}, expected {recorded.get(name)!s:.80}: it is damaged or "
                "was edited; copy or make it again"
            )


def _check_ids(pack: DomainPack, what: str) -> None:
    """Raise `InputError` where ids do not ascend, or lie outside the vocabulary."""
    for name, ids in (("ids", pack.ids), ("bias_ids", pack.bias_ids)):
        if len(ids) and (ids[0] < 0 or ids[-1] >= pack.shape[0] or (np.diff(ids) <= 0).any()):
            raise InputError(
                f"{what}: {name} must ascend from 0 to {pack.shape[0] - 1} at most, found {ids.min()} to {ids.max()}: "
                "it was not written by wals_spark; make it again"
            )


def _check_numbers(pack: DomainPack, what: str) -> None:
    """Raise `InputError` where a number is not finite, a scale not positive, or a code -128."""
    vectors = {"bias": pack.bias, "scales": pack.scales, "share": pack.share}
    bad = [name for name, value in vectors.items() if value is not None and not np.isfinite(value).all()]
    if pack.share is not None and not ((pack.share >= 0) & (pack.share <= 1)).all():
        bad.append("share")
    if pack.scales is not None and not (pack.scales > 0).all():
        bad.append("scales")
    for begin in range(0, len(pack.rows), ROWS_AT_ONCE):
        part = pack.rows[begin : begin + ROWS_AT_ONCE]
        if not np.isfinite(part).all() or (pack.dtype == "int8" and (part < -LARGEST_CODE).any()):
            bad.append("rows")
            break
    if bad:
        raise InputError(
            f"{what}: {', '.join(sorted(set(bad)))} hold numbers that no pack has (NaN, infinite, a scale that is not "
            f"positive, a share beyond 1, a code below -{LARGEST_CODE}): it was not written by wals_spark; make it "
            "again"
        )
