"""Fixtures of the injection tests."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from inject_models import inject, make_checkpoint, make_factors, random_documents, tokenizer_json, worlds

from wals_spark import schemas, storage, token_shards
from wals_spark.checkpoints.checkpoint import embedding_values, open_checkpoint
from wals_spark.matrix.list_column import matrix_to_lists
from wals_spark.runs import Manifest
from wals_spark.tokenizer import load_tokenizer

__all__ = ["context", "inject", "make_checkpoint", "make_factors", "tokenizer_json", "worlds"]


@pytest.fixture
def context(make_context, make_checkpoint, make_factors):
    """A context whose run has factors that fit its checkpoint."""

    def make(related=True, **values):
        directory = values.pop("checkpoint", None) or make_checkpoint()
        tokenizer = load_tokenizer(values.get("vocabulary__tokenizer", str(directory)))
        settings = {
            "inject__mode": "blend",
            "inject__checkpoint": str(directory),
            "inject__anchor_min_count": 1,
            "inject__strengths": "fitted",
            "vocabulary__tokenizer": str(directory),
            **values,
        }
        made = make_context(**settings)
        own = {token: index for index, token in enumerate(load_tokenizer(str(directory)).tokens)}
        E = embedding_values(open_checkpoint(str(directory)))[[own.get(token, 5) for token in tokenizer.tokens]]
        if not related:
            E = np.random.default_rng(9).standard_normal(E.shape).astype(np.float32)
        factors = make_factors(E)
        for side in ("row", "col"):
            rows = pa.table(
                {
                    "token_id": pa.array(np.arange(len(E)), pa.int32()),
                    "token": list(tokenizer.tokens),
                    "count": pa.array(factors.counts, pa.int64()),
                    "vector": matrix_to_lists(factors.matrix),
                    "bias": pa.array(np.zeros(len(E)), pa.float32()),
                }
            )
            made.tables.replace_rows(schemas.FACTORS, rows, {"run_id": "default", "side": side})
        outputs = {"vocabulary_hash": tokenizer.hash}
        made.manifests.write(Manifest("train", "default", "complete", "f", "default", outputs=outputs))
        return made

    return make


@pytest.fixture
def text_context(make_context, make_checkpoint):
    """A context whose batches are encoded with the tokenizer of its checkpoint."""

    def make(batches=None, shards=2, **values):
        directory = values.pop("checkpoint", None) or make_checkpoint()
        tokenizer = load_tokenizer(str(directory))
        settings = {
            "inject__mode": "fit",
            "inject__checkpoint": str(directory),
            "vocabulary__tokenizer": str(directory),
            "states__sequence_length": 32,
            "states__sequences": 40,
            "states__maskings": 2,
            "states__part_sequences": 16,
            **values,
        }
        context = make_context(**settings)
        for batch, documents in (batches or {"default": random_documents(0)}).items():
            encoded = storage.join(context.manifests.warehouse, "_encoded", batch)
            listing = []
            for shard in range(shards):
                writer = token_shards.ShardWriter(storage.join(encoded, f"part-{shard:05d}.arrow"))
                mine = range(shard, len(documents), shards)
                flat = np.array([token for d in mine for token in documents[d]], np.int32)
                writer.write([f"{batch}-{d}" for d in mine], flat, np.cumsum([0, *(len(documents[d]) for d in mine)]))
                listing.append(writer.close())
            token_shards.write_listing(encoded, listing)
            outputs = {"vocabulary_hash": tokenizer.hash, "kind": "tokenizer", "encoded": encoded}
            context.manifests.write(Manifest("vocabulary", batch, "complete", f"f-{batch}", "r", outputs=outputs))
        return context

    return make
