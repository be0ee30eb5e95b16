"""Documents of token ids to the shards of a batch."""

from __future__ import annotations

import posixpath
import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from wals_spark import storage
from wals_spark.token_shards.layout import SCHEMA, Ints, Longs, TokenShard, document_key

BATCH_TOKENS = 1 << 20
"""Tokens of a record batch, unless its one document has more."""
PIECE_TOKENS = 1 << 20
"""Tokens of a longer document that stand in one row."""


class ShardWriter:
    """Writes one shard, in batches of about `BATCH_TOKENS` tokens.

    Parameters
    ----------
    path : str
        Of the ``.arrow`` file. It appears when the writer is closed without an error.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.batches: list[int] = []
        self.documents = 0
        self._temporary = f"{path}.{uuid.uuid4().hex[:8]}.tmp"
        fs, target = storage.filesystem(self._temporary)
        fs.create_dir(posixpath.dirname(target), recursive=True)
        self._sink = fs.open_output_stream(target)
        self._writer = pa.ipc.new_file(self._sink, SCHEMA, options=pa.ipc.IpcWriteOptions(compression="lz4"))

    def write(
        self,
        doc_ids: Sequence[str] | pa.Array,
        tokens: Ints,
        offsets: Longs,
        breaks: Ints | None = None,
        break_offsets: Longs | None = None,
    ) -> None:
        """Append whole documents.

        Parameters
        ----------
        doc_ids : sequence of str or pyarrow.Array
        tokens : int32 array of shape (n,)
            Ids without markers; document d is ``tokens[offsets[d]:offsets[d + 1]]``.
        offsets : int64 array of shape (documents + 1,)
        breaks : int32 array of shape (b,) or None
            Ends of paragraphs and sentences, those of document d ``breaks[break_offsets[d]:break_offsets[d + 1]]``,
            coded as the package describes, with positions from the document's start, ascending.
        break_offsets : int64 array of shape (documents + 1,) or None

        Raises
        ------
        ValueError
            `offsets` does not have one entry more than `doc_ids`.
        """
        names = doc_ids.to_pylist() if isinstance(doc_ids, pa.Array) else list(doc_ids)
        if len(offsets) != len(names) + 1:
            raise ValueError(f"{len(names)} documents need {len(names) + 1} offsets, found {len(offsets)}")
        if breaks is None or break_offsets is None:
            breaks, break_offsets = np.zeros(0, np.int32), np.zeros(len(names) + 1, np.int64)
        keys = np.fromiter((document_key(name) for name in names), np.uint64, len(names))
        self.documents += len(names)
        start = 0
        while start < len(names):
            stop = int(np.searchsorted(offsets, offsets[start] + BATCH_TOKENS, side="right")) - 1
            if stop > start:
                self._write_batch(
                    names[start:stop],
                    keys[start:stop],
                    np.zeros(stop - start, np.int64),
                    _int_lists(tokens, offsets[start : stop + 1]),
                    _int_lists(breaks, break_offsets[start : stop + 1]),
                )
                start = stop
            else:
                self._write_pieces(
                    names[start],
                    keys[start : start + 1],
                    tokens[offsets[start] : offsets[start + 1]],
                    breaks[break_offsets[start] : break_offsets[start + 1]],
                )
                start += 1

    def _write_pieces(self, name: str, key: npt.NDArray[np.uint64], tokens: Ints, breaks: Ints) -> None:
        for first in range(0, len(tokens), PIECE_TOKENS):
            piece = tokens[first : first + PIECE_TOKENS]
            low, high = np.searchsorted(breaks, [2 * first, 2 * (first + len(piece))])
            self._write_batch(
                [name],
                key,
                np.array([first], np.int64),
                _int_lists(piece, np.array([0, len(piece)])),
                _int_lists((breaks[low:high] - 2 * first).astype(np.int32), np.array([0, high - low])),
            )

    def _write_batch(
        self, names: list[str], keys: npt.NDArray[np.uint64], first: Longs, tokens: pa.Array, breaks: pa.Array
    ) -> None:
        columns = [pa.array(names, pa.string()), pa.array(keys), pa.array(first), tokens, breaks]
        self._writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=SCHEMA))
        self.batches.append(len(tokens.values))

    def close(self) -> TokenShard:
        """Publish the file."""
        self._writer.close()
        self._sink.close()
        fs, temporary = storage.filesystem(self._temporary)
        _, path = storage.filesystem(self.path)
        fs.move(temporary, path)
        return TokenShard(self.path, self.documents, tuple(self.batches))

    def abort(self) -> None:
        """Remove what was written."""
        self._sink.close()
        storage.remove(self._temporary)


def _int_lists(values: npt.NDArray[Any], offsets: Longs) -> pa.Array:
    low, high = int(offsets[0]), int(offsets[-1])
    relative = pa.array((offsets - low).astype(np.int32))
    return pa.ListArray.from_arrays(relative, pa.array(values[low:high], pa.int32()))
