"""safetensors files read and written as raw bytes, without converting a number.

The format (https://github.com/huggingface/safetensors): an unsigned little-endian 64-bit header length, a JSON header
``{name: {"dtype", "shape", "data_offsets"}}``, then the tensors, row-major, little-endian. Files are mapped, not
loaded: a checkpoint is copied at the speed of the disk, in a few megabytes of memory beside the page cache.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from wals_spark import storage
from wals_spark.checkpoints.raw_tensor import ITEM_BYTES, RawTensor
from wals_spark.errors import InputError

_MAX_HEADER = 100_000_000
_COPY_BYTES = 8 << 20


def read_raw_tensors(path: str | Path) -> tuple[dict[str, RawTensor], dict[str, str]]:
    """Map a safetensors file into memory; nothing is read before it is used.

    Returns
    -------
    tensors : dict of str to RawTensor
        In the order of the file.
    metadata : dict of str to str

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

    The header is padded so that the tensors start at a multiple of 8 bytes; wider dtypes go first, as safetensors' own
    writer has it, so that each is aligned to its own size.

    Notes
    -----
    The bytes are those of ``safetensors.serialize_file`` (0.8) where there is one key of metadata. With more, the order
    of its keys varies from run to run, since they pass through a hash map, and with it the hash of the file. Before 0.8
    it takes every tensor as ``bytes``, a copy of the whole file in memory. This writer gives the same file every time
    and copies nothing.
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
