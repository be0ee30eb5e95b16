"""Token shards, and jobs of states over a tiny checkpoint, without Spark."""

from __future__ import annotations

import numpy as np
import pytest

from wals_spark import token_shards
from wals_spark.inject.fit.states_job import SEQUENCES, StatesJob, checkpoint_content, load_encoder
from wals_spark.mlm.data import special_ids
from wals_spark.mlm.masking import Maskings
from wals_spark.mlm.state_files import write_sequences
from wals_spark.mlm.text_sequences import cut_documents
from wals_spark.tokenizer import load_tokenizer


@pytest.fixture
def write_shards(tmp_path):
    """Write documents by id as a batch of token shards; returns its directory."""

    def write(documents, shards=1, name="encoded"):
        directory = tmp_path / name
        listing = []
        for shard in range(shards):
            writer = token_shards.ShardWriter(str(directory / f"part-{shard:05d}.arrow"))
            mine = list(documents)[shard::shards]
            flat = np.array([token for doc in mine for token in documents[doc]], np.int32)
            writer.write(mine, flat, np.cumsum([0, *(len(documents[doc]) for doc in mine)]).astype(np.int64))
            listing.append(writer.close())
        token_shards.write_listing(str(directory), listing)
        return str(directory)

    return write


@pytest.fixture
def make_job(make_checkpoint, tmp_path):
    """A job over ten sequences, seven of them to fit on, and their splits."""

    def make(name="states", checkpoint=None, **values):
        checkpoint = checkpoint or make_checkpoint()
        generator = np.random.default_rng(0)
        tokens = generator.integers(5, 300, 10 * 20).astype(np.int32)
        keys = np.arange(10, dtype=np.uint64) * np.uint64(10**18)
        sequences = cut_documents(tokens, np.arange(11) * 20, keys, 34)
        splits = ["training"] * 7 + ["validation"] * 3
        settings = {
            "directory": str(tmp_path / name),
            "scratch": str(tmp_path / "scratch"),
            "fingerprint": "f" * 16,
            "checkpoint": str(checkpoint),
            "checkpoint_sha256": checkpoint_content(str(checkpoint)),
            "special": special_ids(load_tokenizer(str(checkpoint))),
            "maskings": Maskings(2),
            "precision": "fp32",
            "batch_size": None,
        }
        job = StatesJob(**{**settings, **values})
        write_sequences(f"{job.directory}/{SEQUENCES}", sequences, splits)
        return job, splits

    yield make
    load_encoder.cache_clear()
