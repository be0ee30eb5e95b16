"""Files of states: Arrow IPC files that are mapped into memory, and a listing that is written last.

A directory of states holds ``part-00000.arrow`` and so on, one record batch each, with the columns of `MaskedStates`,
not compressed, and ``states.json``, the list of the parts in order with the split that each belongs to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa

from wals_spark import storage
from wals_spark.errors import InputError
from wals_spark.mlm.hidden_states import MaskedStates
from wals_spark.mlm.text_sequences import TextSequences

LISTING = "states.json"
"""Written last: the parts of a directory of states, in order."""
TRAINING, VALIDATION, GENERAL = "training", "validation", "general"
SPLITS = (TRAINING, VALIDATION, GENERAL)
"""Text to fit on, documents of the same text held out of the fit, and text like the model's pretraining."""
_IDENTITY = b"identity"


@dataclass(frozen=True)
class StatePart:
    """A file of states.

    Attributes
    ----------
    path : str
    split : {"training", "validation", "general"}
    sequences : int
    positions : int
        Masked positions, over all maskings.
    base_loss : float
        Sum over the positions of the base's loss, nats.
    """

    path: str
    split: str
    sequences: int
    positions: int
    base_loss: float


def write_state_part(path: str, states: MaskedStates, identity: str = "") -> int:
    """Write a file of states so that it is there whole or not at all.

    Parameters
    ----------
    path : str
        Path or URI.
    states : MaskedStates
    identity : str
        Names what the states were computed from; see `part_identity`.

    Returns
    -------
    int
        Bytes written.
    """
    arrays = [_column(getattr(states, field.name)) for field in fields(MaskedStates)]
    batch = pa.RecordBatch.from_arrays(arrays, [field.name for field in fields(MaskedStates)])
    batch = batch.replace_schema_metadata({_IDENTITY: identity.encode()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    content = sink.getvalue().to_pybytes()
    storage.write_bytes(path, content)
    return len(content)


def read_state_part(path: str) -> MaskedStates:
    """The states of a file; on a local path they are mapped, not read, and cannot be written to.

    Raises
    ------
    InputError
        The file is no such file.
    """
    with _opened(path) as reader:
        batch = reader.get_batch(0)
    return MaskedStates(*(_array(batch.column(field.name)) for field in fields(MaskedStates)))


def part_identity(path: str) -> str | None:
    """The identity that a file of states was written with, None where there is no whole file."""
    if not storage.exists(path):
        return None
    try:
        with _opened(path) as reader:
            return (reader.schema.metadata or {}).get(_IDENTITY, b"").decode()
    except InputError:
        return None


def write_state_listing(directory: str, parts: Sequence[StatePart], facts: Mapping[str, Any]) -> None:
    """Store the list of the parts, in order, with facts about them: the directory is whole from here on."""
    entries = [{**asdict(part), "path": part.path.rpartition("/")[2]} for part in parts]
    storage.write_json(storage.join(directory, LISTING), {"format_version": 1, **facts, "parts": entries})


def list_state_parts(directory: str, split: str | None = None) -> list[StatePart]:
    """The parts of a directory of states, in order; only those of one split where it is given.

    Raises
    ------
    InputError
        There are no whole states at `directory`.
    """
    path = storage.join(directory, LISTING)
    if not storage.exists(path):
        raise InputError(f"{directory} holds no states ({LISTING} is missing); run `wals-spark states`")
    parts = [
        StatePart(**{**entry, "path": storage.join(directory, entry["path"])})
        for entry in storage.read_json(path)["parts"]
    ]
    return [part for part in parts if split in (None, part.split)]


def load_states(parts: Sequence[StatePart], rank: int = 0, ranks: int = 1) -> MaskedStates:
    """The states of a rank's share of some parts, concatenated in their order.

    The shares are runs of consecutive parts with about the same number of positions each; over all ranks, in order,
    they are all parts.

    Parameters
    ----------
    parts : sequence of StatePart
    rank : int
    ranks : int
        R; each rank gives its number, from 0 to R - 1.

    Returns
    -------
    MaskedStates
        One copy of the rank's positions; no more is held while it is made.

    Raises
    ------
    InputError
        There are no parts at all.
    """
    if not parts:
        raise InputError("there are no parts of states to load")
    own = share_of_rank(parts, rank, ranks)
    total = sum(part.positions for part in own)
    like = read_state_part(parts[0].path)
    names = [field.name for field in fields(MaskedStates)]
    whole = MaskedStates(
        *(np.empty((total, *column.shape[1:]), column.dtype) for column in (getattr(like, name) for name in names))
    )
    begin = 0
    for part in own:
        states = read_state_part(part.path)
        if len(states) != part.positions:
            raise InputError(
                f"{part.path} has {len(states)} positions, {LISTING} says {part.positions}: states were mixed"
            )
        for name in names:
            getattr(whole, name)[begin : begin + len(states)] = getattr(states, name)
        begin += len(states)
    return whole


def share_of_rank(parts: Sequence[StatePart], rank: int, ranks: int) -> list[StatePart]:
    """The parts whose middle position lies in the `rank`-th of `ranks` equal stretches of all positions."""
    sizes = np.array([part.positions for part in parts], np.int64)
    middle = np.cumsum(sizes) - sizes / 2
    owner = np.minimum((middle * ranks / max(1, sizes.sum())).astype(np.int64), ranks - 1)
    return [part for part, own in zip(parts, owner.tolist(), strict=True) if own == rank]


def write_sequences(path: str, sequences: TextSequences, split: Sequence[str]) -> None:
    """Store sequences, each with its split."""
    columns = [
        pa.array(sequences.document),
        pa.array(sequences.start),
        pa.ListArray.from_arrays(pa.array(sequences.offsets.astype(np.int32)), pa.array(sequences.tokens)),
        pa.array(list(split), pa.string()),
    ]
    batch = pa.RecordBatch.from_arrays(columns, ["document", "start", "token_ids", "split"])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    storage.write_bytes(path, sink.getvalue().to_pybytes())


def read_sequences(path: str) -> tuple[TextSequences, list[str]]:
    """The sequences of `write_sequences`, and the split of each.

    Raises
    ------
    InputError
        The file is no such file.
    """
    with _opened(path) as reader:
        batch = reader.get_batch(0)
    lists = batch.column("token_ids")
    sequences = TextSequences(
        lists.values.to_numpy(),
        lists.offsets.to_numpy().astype(np.int64),
        batch.column("document").to_numpy(),
        batch.column("start").to_numpy(),
    )
    return sequences, batch.column("split").to_pylist()


def _column(values: np.ndarray) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1]) if values.ndim == 2 else flat


def _array(column: pa.Array) -> np.ndarray:
    if pa.types.is_fixed_size_list(column.type):
        return np.asarray(column.values.to_numpy().reshape(-1, column.type.list_size))
    return np.asarray(column.to_numpy())


def _opened(path: str) -> pa.RecordBatchFileReader:
    if storage.is_local(path):
        source: Any = pa.memory_map(storage.local_path(path))
    else:
        source = pa.BufferReader(storage.read_bytes(path))
    try:
        return pa.ipc.open_file(source)
    except pa.ArrowInvalid as error:
        raise InputError(f"{path} is no file of states ({error}): it is damaged; remove it and run again") from error
