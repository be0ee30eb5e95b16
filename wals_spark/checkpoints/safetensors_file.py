"""safetensors files read and written as raw bytes, without converting a number.

The format (https://github.com/huggingface/safetensors): an unsigned little-endian 64-bit header length, a JSON header
``{name: {"dtype", "shape", "data_offsets"}}``, then the tensors, row-major, little-endian. Files are mapped, not
loaded: a checkpoint is copied at the speed of the disk, in a few megabytes of memory beside the page cache.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from wals_spark import storage
from wals_spark.checkpoints.json_file import (
    parse_json_object,
    refuse_lfs_pointer,
    require_ids,
    require_texts,
    require_value,
)
from wals_spark.checkpoints.raw_tensor import ITEM_BYTES, RawTensor
from wals_spark.errors import InputError

_MAX_HEADER = 100_000_000
_COPY_BYTES = 8 << 20
_MAX_DIMENSIONS = 32


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
        Not a safetensors file, cut short, with offsets that overlap, or of a dtype that is not known; the message
        names the file.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is not a file, expected safetensors")
    size = path.stat().st_size
    with open(path, "rb") as stream:
        first = stream.read(8)
        refuse_lfs_pointer(first + stream.read(64), str(path))
        length = int.from_bytes(first, "little")
        if size < 8 or not 2 <= length <= min(size - 8, _MAX_HEADER):
            raise InputError(
                f"{path} is not a safetensors file, or it was cut short ({size} bytes): copy or download it again"
            )
        stream.seek(8)
        header = parse_json_object(stream.read(length), f"{path}: its safetensors header")
    metadata = require_texts({"__metadata__": {}, **header}, "__metadata__", f"{path}: its safetensors header")
    entries = {name: _entry(path, name, entry) for name, entry in header.items() if name != "__metadata__"}
    start = 8 + length
    body = np.memmap(path, np.uint8, "r", start, (size - start,)) if size > start else np.empty(0, np.uint8)
    tensors: dict[str, RawTensor] = {}
    last = 0
    for name, (dtype, shape, begin, end) in sorted(entries.items(), key=lambda item: item[1][2:]):
        expected = math.prod(shape) * ITEM_BYTES[dtype]
        if end > len(body) or end - begin != expected:
            raise InputError(
                f"{path}: tensor {name} should have {expected} bytes, the file holds "
                f"{max(0, min(end, len(body)) - begin)}: it was cut short, copy or download it again"
            )
        if begin < last:
            raise InputError(f"{path}: tensor {name} overlaps {list(tensors)[-1]}: download the file again")
        last = end
        tensors[name] = RawTensor(dtype, shape, body[begin:end])
    return tensors, metadata


def _entry(path: Path, name: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    """dtype, shape, begin and end of a tensor in the header."""
    what = f"{path}: tensor {name} in its safetensors header"
    if not isinstance(entry, dict):
        raise InputError(f"{what} is {entry!r:.60}, expected dtype, shape and data_offsets: download the file again")
    dtype = require_value(entry, "dtype", str, what)
    if dtype not in ITEM_BYTES:
        raise InputError(f"{path}: tensor {name} has the dtype {dtype}, known are {', '.join(ITEM_BYTES)}")
    shape, offsets = require_ids(entry, "shape", what), require_ids(entry, "data_offsets", what)
    if len(offsets) != 2 or len(shape) > _MAX_DIMENSIONS:
        raise InputError(f"{what} has {len(offsets)} data_offsets and {len(shape)} dimensions: download the file again")
    return dtype, tuple(shape), offsets[0], offsets[1]


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
    header: dict[str, Any] = {"__metadata__": dict(sorted({"format": "pt", **metadata}.items()))}
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
