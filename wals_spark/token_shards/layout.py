"""Files and columns of a batch of token shards, and the markers among its ids."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from hashlib import blake2b

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from wals_spark import storage
from wals_spark.errors import InputError

OOV = -1
"""A token that is not in the vocabulary: it has a position, and no row."""
PARAGRAPH = -2
"""The end of a paragraph (a line break); has no position."""
SENTENCE = -3
"""The end of a sentence; has no position."""
SPECIAL = -4
"""A special token of the tokenizer: has a position, is never counted and never crossed."""

LISTING = "shards.json"
"""Written last: the list of the shards of a batch, in order."""
SCHEMA = pa.schema(
    [
        ("doc_id", pa.string()),
        ("key", pa.uint64()),
        ("first", pa.int64()),
        ("token_ids", pa.list_(pa.int32())),
        ("breaks", pa.list_(pa.int32())),
    ]
)

Ints = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]


def document_key(doc_id: str) -> int:
    """A stateless 64-bit hash of a document id: BLAKE2b, 8 bytes, little endian."""
    return int.from_bytes(blake2b(doc_id.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


@dataclass(frozen=True)
class TokenShard:
    """A shard file.

    Attributes
    ----------
    path : str
        Of the ``.arrow`` file.
    documents : int
    batches : tuple of int
        Tokens of each of its record batches, markers not counted.
    """

    path: str
    documents: int
    batches: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """All tokens of the shard, markers not counted."""
        return sum(self.batches)


def write_listing(directory: str, shards: Iterable[TokenShard]) -> None:
    """Store the list of shards, in order: the directory is whole from here on."""
    entries = [{**asdict(shard), "path": posixpath.basename(shard.path)} for shard in shards]
    storage.write_json(storage.join(directory, LISTING), {"format_version": 1, "shards": entries})


def list_shards(directory: str) -> list[TokenShard]:
    """The shards of a batch, in order.

    Raises
    ------
    InputError
        There is no whole batch at `directory`.
    """
    listing = storage.join(directory, LISTING)
    if not storage.exists(listing):
        raise InputError(f"{directory} holds no encoded documents ({LISTING} is missing); run `wals-spark vocabulary`")
    return [
        TokenShard(storage.join(directory, entry["path"]), entry["documents"], tuple(entry["batches"]))
        for entry in storage.read_json(listing)["shards"]
    ]
