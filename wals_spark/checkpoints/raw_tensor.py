"""Tensors as the bytes they are, of any dtype; only rows that change are ever converted to numbers.

An edit must prove that every tensor it did not declare is the same to the last bit. bfloat16 and float8 have no NumPy
dtype, so a tensor is carried as its bytes, its shape and the name of its dtype in the safetensors format.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

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
_NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "U64": "<u8", "I8": "i1"}
_ROWS_AT_ONCE = 4096
_FLOATS = ("F64", "F32", "F16", "BF16")


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
        """The numbers: float32 for F32, F16 and BF16 (exact), float64 for F64; a copy only where needed.

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
    """Numbers stored as `dtype`, rounded to nearest, ties to even.

    Raises
    ------
    InputError
        `dtype` is none of F64, F32, F16, BF16, I64, I32, I8 and U64.
    """
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
    """A copy of `tensor` with the rows `ids` set to `values` (n, d); every other row keeps its bits."""
    data = tensor.data.copy()
    for begin in range(0, len(ids), _ROWS_AT_ONCE):  # rounding to a narrower dtype takes several copies
        part = ids[begin : begin + _ROWS_AT_ONCE]
        new = from_values(values[begin : begin + _ROWS_AT_ONCE], tensor.dtype)
        data.reshape(tensor.shape[0], -1)[part] = new.data.reshape(len(part), -1)
    return RawTensor(tensor.dtype, tensor.shape, data)


def gather_rows(tensor: RawTensor, origin: np.ndarray) -> RawTensor:
    """Row i is the row ``origin[i]`` of `tensor`, or zeros where that is negative; works on vectors too."""
    rows = tensor.rows[np.maximum(origin, 0)]
    rows[origin < 0] = 0
    return RawTensor(tensor.dtype, (len(origin), *tensor.shape[1:]), rows.reshape(-1))


def tensor_hashes(tensors: Mapping[str, RawTensor], threads: int | None = None) -> dict[str, str]:
    """`RawTensor.sha256` of every tensor; hashing releases the interpreter lock, so it runs in threads."""
    with ThreadPoolExecutor(threads or min(8, os.cpu_count() or 1)) as pool:
        return dict(zip(tensors, pool.map(lambda tensor: tensor.sha256, tensors.values()), strict=True))


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def from_torch(state: Mapping[str, Any]) -> dict[str, RawTensor]:
    """Raw tensors of a torch state dict.

    Raises
    ------
    InputError
        A value that is no tensor, or of an unknown dtype.
    """
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
        if not isinstance(name, str) or not isinstance(value, torch.Tensor) or value.is_sparse:
            raise InputError(f"{name} in the checkpoint is a {type(value).__name__}, expected a tensor")
        if value.dtype not in names:
            raise InputError(f"tensor {name} has the dtype {value.dtype}, known are {', '.join(map(str, names))}")
        flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        tensors[name] = RawTensor(names[value.dtype], tuple(value.shape), flat.numpy())
    return tensors


def from_numpy(tensors: Iterable[tuple[str, np.ndarray]]) -> dict[str, RawTensor]:
    """Raw tensors of named arrays, in the arrays' own dtypes."""
    kinds = {np.dtype(spelled): name for name, spelled in _NUMPY.items()}
    result = {}
    for name, array in tensors:
        kind = kinds[array.dtype]
        result[name] = RawTensor(kind, array.shape, np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return result
