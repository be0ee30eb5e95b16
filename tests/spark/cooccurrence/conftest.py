"""Warehouses whose vocabulary stage is done, made without running it."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from wals_spark import schemas, storage, token_shards
from wals_spark.runs import Manifest
from wals_spark.tokenizer import vocabulary_hash


@pytest.fixture
def encode():
    """Write documents (lists of ids) as a batch's encoded shards, the vocabulary table and the manifest."""

    def run(context, documents, size, shards=2, tokens=None):
        batch_id = context.config.corpus.batch_id
        directory = storage.join(context.manifests.warehouse, "_encoded", batch_id)
        listing = []
        for shard in range(shards):
            writer = token_shards.ShardWriter(storage.join(directory, f"part-{shard:05d}.arrow"))
            mine = list(range(shard, len(documents), shards))
            flat = np.array([token for d in mine for token in documents[d]], np.int32)
            offsets = np.cumsum([0] + [len(documents[d]) for d in mine]).astype(np.int64)
            writer.write([f"{batch_id}-{d}" for d in mine], flat, offsets)
            listing.append(writer.close())
        token_shards.write_listing(directory, listing)
        counts = np.bincount([token for document in documents for token in document if token >= 0], minlength=size)
        tokens = tokens or [f"t{i}" for i in range(size)]
        rows = pa.table(
            {
                "token_id": np.arange(size, dtype=np.int32),
                "token": tokens,
                "count": counts,
                "document_count": counts,
                "is_special": np.zeros(size, bool),
            }
        )
        context.tables.replace_rows(schemas.VOCABULARY, rows, {})
        outputs = {
            "version": 1,
            "size": size,
            "vocabulary_hash": vocabulary_hash(tokens),
            "kind": "words",
            "encoded": directory,
        }
        context.manifests.write(
            Manifest("vocabulary", batch_id, "complete", f"vocabulary of {batch_id}", "r", outputs=outputs)
        )

    return run


@pytest.fixture
def read_pairs():
    """The pairs of a batch with their units, through Spark."""

    def read(context, batch_id="default"):
        frame = context.tables.read(schemas.COOCCURRENCE, {"batch_id": batch_id})
        return {(row.row_id, row.col_id): row.units for row in frame.collect()}

    return read
