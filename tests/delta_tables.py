"""Delta tables written action by action, for features that no writer at hand has."""

from __future__ import annotations

import itertools
import json
import os
import struct
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

_Z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"


_IDS = itertools.count(1)


def field(name: str, physical: str | None = None, kind: Any = "string") -> dict[str, Any]:
    """A field of a table's schema, by its name in the files where that is another."""
    metadata: dict[str, Any] = {}
    if physical is not None:
        metadata = {"delta.columnMapping.id": next(_IDS), "delta.columnMapping.physicalName": physical}
    return {"name": name, "type": kind, "nullable": True, "metadata": metadata}


def deletion_vector(rows: Sequence[int]) -> dict[str, Any]:
    """The inline descriptor of a deletion vector, by the protocol: a 64-bit Roaring bitmap in Z85."""
    bitmap = struct.pack("<iqi", 1681511377, 1, 0) + struct.pack("<iiHHI", 12346, 1, 0, len(rows) - 1, 16)
    bitmap += struct.pack(f"<{len(rows)}H", *sorted(rows))
    bitmap += bytes(-len(bitmap) % 4)
    text = ""
    for (word,) in struct.iter_unpack(">I", bitmap):
        text += "".join(_Z85[word // 85**power % 85] for power in (4, 3, 2, 1, 0))
    return {"storageType": "i", "pathOrInlineDv": text, "sizeInBytes": len(bitmap), "cardinality": len(rows)}


def add(directory: Any, name: str, table: pa.Table, uri: str | None = None, **keys: Any) -> dict[str, Any]:
    """Write a file and return the action that adds it."""
    os.makedirs(directory, exist_ok=True)
    path = os.path.join(directory, name)
    pq.write_table(table, path)
    stats = json.dumps({"numRecords": len(table), **keys.pop("stats", {})}, ensure_ascii=False)
    action = {"path": uri or name, "partitionValues": {}, "size": os.path.getsize(path), "modificationTime": 0}
    return {"add": {**action, "dataChange": True, "stats": stats, **keys}}


def remove(action: Mapping[str, Any]) -> dict[str, Any]:
    """The action that removes what another one adds."""
    kept = {key: action["add"][key] for key in ("path", "size", "deletionVector") if key in action["add"]}
    return {"remove": {**kept, "dataChange": True, "deletionTimestamp": 0}}


def write_log(
    directory: Any,
    *commits: Iterable[Mapping[str, Any]],
    features: Sequence[str] = (),
    conf: Mapping[str, str] | None = None,
    fields: Sequence[Mapping[str, Any]] = (field("id"), field("text")),
) -> str:
    """Write the log of a table, a version per commit; returns its path."""
    protocol: dict[str, Any] = {"minReaderVersion": 3 if features else 1, "minWriterVersion": 7 if features else 2}
    if features:
        protocol |= {"readerFeatures": list(features), "writerFeatures": list(features)}
    metadata = {
        "id": str(uuid.uuid4()),
        "format": {"provider": "parquet", "options": {}},
        "schemaString": json.dumps({"type": "struct", "fields": list(fields)}),
        "partitionColumns": [],
        "configuration": dict(conf or {}),
        "createdTime": 0,
    }
    log = os.path.join(directory, "_delta_log")
    os.makedirs(log, exist_ok=True)
    for version, actions in enumerate(commits):
        lines = [{"protocol": protocol}, {"metaData": metadata}] if version == 0 else []
        with open(os.path.join(log, f"{version:020}.json"), "w", encoding="utf-8") as stream:
            stream.writelines(json.dumps(action, ensure_ascii=False) + "\n" for action in [*lines, *actions])
    return str(directory)
