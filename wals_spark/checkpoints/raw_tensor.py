"""Tensors as the bytes they are: reading and writing safetensors without converting anything.

Injection must prove that what it did not touch is the same to the last bit, whatever its dtype, so
tensors are carried as raw bytes and only the rows that change are ever converted. Files are mapped, not
loaded: a checkpoint is copied at the speed of the disk in a few megabytes of memory.

The format (huggingface/safetensors, README): an unsigned little-endian 64-bit header length, a JSON
header ``{name: {"dtype", "shape", "data_offsets"}}``, then the tensors, row-major, little-endian.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wals_spark import storage
from wals_spark.errors import InputError

ITEM_BYTES = {
    "F64": 8,
    "I64": 8,
    "U64": 8,
    "F32": 4,
    "I32": 4,
    "U32": 4,
    "F16": 2,
    "BF16": 2,
    "I16": 2,
    "U16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
}
_NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "U64": "<u8"}
_FLOATS = ("F64", "F32", "F16", "BF16")
_MAX_HEADER = 100_000_000
_COPY_BYTES = 8 << 20
_ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class RawTensor:
    """A tensor as stored.

    Attributes
    ----------
    dtype : str
        Name in the safetensors format: F32, F16, BF16...
    shape : tuple of int
    data : uint8 array of shape (bytes,)
        Often a view of a mapped file; never written to.
    """

    dtype: str
    shape: tuple[int, ...]
    data: np.ndarray

    @property
    def sha256(self) -> str:
        """Of dtype, shape and bytes."""
        digest = hashlib.sha256(f"{self.dtype}{list(self.shape)}".encode())
        digest.update(self.data.data)
        return digest.hexdigest()

    @property
    def rows(self) -> np.ndarray:
        """The bytes by row, a uint8 array of shape (rows, bytes per row)."""
        return self.data.reshape(self.shape[0], -1)

    def values(self) -> np.ndarray:
        """The numbers: float32 for F32, F16 and BF16 (exact), float64 for F64, a copy only where needed.

        Raises
        ------
        InputError
            A dtype that holds no plain floating-point numbers.
        """
        if self.dtype == "BF16":
            wide = self.data.view("<u2").astype(np.uint32) << 16
            return wide.view(np.float32).reshape(self.shape)
        if self.dtype in ("F32", "F16", "F64"):
            stored = self.data.view(_NUMPY[self.dtype]).reshape(self.shape)
            return stored.astype(np.float32) if self.dtype == "F16" else stored
        raise InputError(
            f"a tensor of dtype {self.dtype}: expected one of {', '.join(_FLOATS)}; "
            "give the checkpoint before quantisation"
        )

    def same_bytes(self, other: RawTensor) -> bool:
        """Whether dtype, shape and every bit agree."""
        return self.dtype == other.dtype and self.shape == other.shape and np.array_equal(self.data, other.data)


def from_values(values: np.ndarray, dtype: str) -> RawTensor:
    """Numbers stored as `dtype`, rounded to nearest even."""
    if dtype == "BF16":
        wide = np.ascontiguousarray(values, np.float32).view(np.uint32)
        rounded = (wide + (0x7FFF + ((wide >> 16) & 1))) >> 16
        rounded = np.where(np.isnan(values), 0x7FC0, rounded).astype("<u2")
        return RawTensor(dtype, values.shape, rounded.reshape(-1).view(np.uint8))
    if dtype not in _NUMPY:
        raise InputError(f"cannot store numbers as {dtype}: expected one of {', '.join(_FLOATS)}")
    stored = np.ascontiguousarray(values, _NUMPY[dtype])
    return RawTensor(dtype, values.shape, stored.reshape(-1).view(np.uint8))


def replace_rows(tensor: RawTensor, ids: np.ndarray, values: np.ndarray) -> RawTensor:
    """A copy with the rows `ids` set to `values` (n, d); every other row keeps its bits."""
    data = tensor.data.copy()
    if len(ids):
        fresh = from_values(values, tensor.dtype)
        data.reshape(tensor.shape[0], -1)[ids] = fresh.data.reshape(len(ids), -1)
    return RawTensor(tensor.dtype, tensor.shape, data)


def gather_rows(tensor: RawTensor, origin: np.ndarray) -> RawTensor:
    """Row i is the row ``origin[i]`` of `tensor`, or zeros where that is negative; works on vectors too."""
    rows = tensor.rows[np.maximum(origin, 0)]
    rows[origin < 0] = 0
    return RawTensor(tensor.dtype, (len(origin), *tensor.shape[1:]), rows.reshape(-1))


def differing_rows(before: RawTensor, after: RawTensor, origin: np.ndarray) -> np.ndarray:
    """Whether row i of `after` differs by a bit from row ``origin[i]`` of `before`; a new row (-1) does. Bool (n,)."""
    found = origin < 0
    for begin in range(0, len(origin), _ROWS_AT_ONCE):
        part = slice(begin, begin + _ROWS_AT_ONCE)
        old = before.rows[np.maximum(origin[part], 0)]
        found[part] |= (old != after.rows[part]).any(axis=1)
    return found


def displacements(before: np.ndarray, after: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """|e'_i - e_origin(i)| of every row, float64 (n,), in bounded memory; |e'_i| for a new row (-1)."""
    found = np.empty(len(origin))
    for begin in range(0, len(origin), _ROWS_AT_ONCE):
        part = slice(begin, begin + _ROWS_AT_ONCE)
        old = before[np.maximum(origin[part], 0)].astype(np.float64)
        old[origin[part] < 0] = 0
        found[part] = np.linalg.norm(after[part] - old, axis=1)
    return found


def row_lengths(rows: np.ndarray) -> np.ndarray:
    """Euclidean length of every row, float64 (n,), in bounded memory."""
    parts = (rows[begin : begin + _ROWS_AT_ONCE] for begin in range(0, len(rows), _ROWS_AT_ONCE))
    return np.concatenate([np.linalg.norm(part.astype(np.float64), axis=1) for part in parts] or [np.zeros(0)])


def row_hashes(tensor: RawTensor) -> np.ndarray:
    """A 64-bit hash per row: a uint64 array of shape (rows,)."""
    rows = np.ascontiguousarray(tensor.rows)
    hashes = (hashlib.blake2b(row, digest_size=8).digest() for row in rows)
    return np.frombuffer(b"".join(hashes), "<u8")


def tensor_hashes(tensors: Mapping[str, RawTensor], threads: int | None = None) -> dict[str, str]:
    """`RawTensor.sha256` of every tensor; hashing releases the interpreter lock, so it runs in threads."""
    with ThreadPoolExecutor(threads or min(8, os.cpu_count() or 1)) as pool:
        return dict(zip(tensors, pool.map(lambda tensor: tensor.sha256, tensors.values()), strict=True))


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_raw_tensors(path: str | Path) -> tuple[dict[str, RawTensor], dict[str, str]]:
    """Map a safetensors file.

    Returns
    -------
    tensors : dict of name -> RawTensor, in the order of the file
    metadata : dict of str

    Raises
    ------
    InputError
        Not a safetensors file, cut short, or a dtype that is not known; the message names the file.
    """
    path = Path(path)
    size = path.stat().st_size
    with open(path, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or not 2 <= length <= min(size - 8, _MAX_HEADER):
            raise InputError(
                f"{path} is not a safetensors file, or it was cut short ({size} bytes): copy or download it again"
            )
        try:
            header: dict[str, Any] = json.loads(stream.read(length))
        except ValueError as error:
            raise InputError(f"{path}: its safetensors header does not parse ({error}): download it again") from None
    metadata = header.pop("__metadata__", {})
    start = 8 + length
    body = np.memmap(path, np.uint8, "r", start, (size - start,)) if size > start else np.empty(0, np.uint8)
    tensors = {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"][0]):
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        if dtype not in ITEM_BYTES:
            raise InputError(f"{path}: tensor {name} has the dtype {dtype}, known are {', '.join(ITEM_BYTES)}")
        expected = int(np.prod(shape, dtype=np.int64)) * ITEM_BYTES[dtype]
        if end > len(body) or end - begin != expected:
            raise InputError(
                f"{path}: tensor {name} should have {expected} bytes, the file holds "
                f"{max(0, min(end, len(body)) - begin)}: it was cut short, copy or download it again"
            )
        tensors[name] = RawTensor(dtype, shape, body[begin:end])
    return tensors, metadata


def write_raw_tensors(path: str | Path, tensors: Mapping[str, RawTensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, tensor by tensor, and force it to the disk.

    The header is padded so that every tensor starts at a multiple of 8 bytes; wider dtypes go first,
    as the reference writer has it, so that each is aligned to its own size.
    """
    order = sorted(tensors, key=lambda name: (-ITEM_BYTES[tensors[name].dtype], name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    offset = 0
    for name in order:
        tensor = tensors[name]
        header[name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.data.nbytes],
        }
        offset += tensor.data.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with storage.explained(f"cannot write {path}"), open(path, "wb") as stream:
        stream.write(len(text).to_bytes(8, "little"))
        stream.write(text)
        for name in order:
            data = tensors[name].data
            for begin in range(0, data.nbytes, _COPY_BYTES):
                stream.write(data[begin : begin + _COPY_BYTES].data)
        stream.flush()
        os.fsync(stream.fileno())


def from_torch(state: Mapping[str, Any]) -> dict[str, RawTensor]:
    """Raw tensors of a torch state dict."""
    import torch

    names = {
        torch.float64: "F64",
        torch.float32: "F32",
        torch.float16: "F16",
        torch.bfloat16: "BF16",
        torch.int64: "I64",
        torch.int32: "I32",
        torch.int16: "I16",
        torch.int8: "I8",
        torch.uint8: "U8",
        torch.bool: "BOOL",
    }
    tensors = {}
    for name, value in state.items():
        if not isinstance(value, torch.Tensor):
            raise InputError(f"{name} in the checkpoint is a {type(value).__name__}, expected a tensor")
        if value.dtype not in names:
            raise InputError(f"tensor {name} has the dtype {value.dtype}, known are {', '.join(map(str, names))}")
        flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        tensors[name] = RawTensor(names[value.dtype], tuple(value.shape), flat.numpy())
    return tensors


def from_numpy(tensors: Iterable[tuple[str, np.ndarray]]) -> dict[str, RawTensor]:
    """Arrays with their own dtypes as raw tensors."""
    kinds = {np.dtype(spelled): name for name, spelled in _NUMPY.items()}
    result = {}
    for name, array in tensors:
        kind = kinds[array.dtype]
        result[name] = RawTensor(kind, array.shape, np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return result
