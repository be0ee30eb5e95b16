"""Encoded documents: what the vocabulary stage writes and the co-occurrence stage counts.

A batch is a directory of shards, ``part-00000.arrow`` and so on, with ``shards.json`` written last. A
shard is an Arrow IPC file whose record batches hold about `BATCH_TOKENS` tokens each, one row per
*piece*: a document, or a part of a document longer than `PIECE_TOKENS`::

    doc_id string | key uint64 | first int64 | token_ids list<int32> | breaks list<int32>

``key`` is `document_key` of the id, ``first`` the position in its document of the piece's first token
(a piece with ``first > 0`` continues the row before it), ``breaks`` the ends of paragraphs and sentences:
``2 p + 1`` for a paragraph and ``2 p`` for a sentence that ends after the piece's token p.

Word shards hold ids that are local to the shard; ``part-00000.words.npy`` (uint64 hash of each local
word) and ``vocabulary.npy`` (hash, id; sorted by hash) translate them, so that text is tokenised once,
before the vocabulary is known. Readers see global ids and markers only.
"""

from wals_spark.token_shards.layout import (
    OOV,
    PARAGRAPH,
    SENTENCE,
    SPECIAL,
    TokenShard,
    document_key,
    list_shards,
    write_listing,
)
from wals_spark.token_shards.local_ids import write_local_words, write_vocabulary
from wals_spark.token_shards.reader import (
    BatchRange,
    Boundary,
    TokenChunk,
    read_batch_ranges,
    read_shards,
    split_shards,
)
from wals_spark.token_shards.writer import ShardWriter

__all__ = [
    "OOV",
    "PARAGRAPH",
    "SENTENCE",
    "SPECIAL",
    "BatchRange",
    "Boundary",
    "ShardWriter",
    "TokenChunk",
    "TokenShard",
    "document_key",
    "list_shards",
    "read_batch_ranges",
    "read_shards",
    "split_shards",
    "write_listing",
    "write_local_words",
    "write_vocabulary",
]
