"""Input that is large in one direction: a million empty documents, one document of 100 MB."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wals_spark import schemas
from wals_spark.cooccurrence.stages import CooccurrenceStage
from wals_spark.corpus.stages import CorpusStage, VocabularyStage
from wals_spark.errors import InputError
from wals_spark.stage import run_stage

pytestmark = pytest.mark.spark

WORDS = ["alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf"]


def empty_documents(path, texts):
    pq.write_table(pa.table({"text": pa.array(texts)}), path, row_group_size=200_000)


def test_a_million_empty_documents_are_dropped_and_counted(make_context, tmp_path):
    source = tmp_path / "empty.parquet"
    empty_documents(source, [""] * 600_000 + ["one document"] + [" \n"] * 400_000)
    manifest, _ = run_stage(make_context(corpus__path=str(source), corpus__held_out_fraction=0.0), CorpusStage())
    assert manifest.outputs["documents"] == 1
    assert manifest.outputs["dropped"] == {"empty": 1_000_000}


def test_nothing_but_a_million_empty_documents_is_refused_with_their_number(make_context, tmp_path):
    source = tmp_path / "empty.parquet"
    empty_documents(source, [""] * 1_000_000)
    with pytest.raises(InputError, match=r"1 files with 1,000,000 documents \(1,000,000 empty\)"):
        run_stage(make_context(corpus__path=str(source)), CorpusStage())


def cyclic_pairs(tokens, window):
    """Units of a text of that many tokens that repeats `WORDS`."""
    size = len(WORDS)
    pairs = np.zeros((size, size), np.int64)
    unit = int(np.lcm.reduce(np.arange(1, window + 1)))
    for distance in range(1, window + 1):
        # Word i begins a pair at positions i, i + size, ... below tokens - distance.
        starts = np.array([len(range(word, tokens - distance, size)) for word in range(size)])
        for word, times in enumerate(starts):
            other = (word + distance) % size
            pairs[word, other] += times * unit // distance
            pairs[other, word] += times * unit // distance
    return pairs


def test_a_document_of_100_megabytes_is_counted_exactly(make_context, tmp_path):
    source = tmp_path / "long.txt"
    turn = " ".join(WORDS) + " "
    turns = 100_000_000 // len(turn)
    source.write_text(turn * turns)
    context = make_context(
        corpus__path=str(source),
        corpus__held_out_fraction=0.0,
        vocabulary__kind="words",
        vocabulary__min_count=1,
        cooccurrence__window_left=10,
        cooccurrence__window_right=10,
    )
    corpus, vocabulary, counts = (
        run_stage(context, stage)[0] for stage in (CorpusStage(), VocabularyStage(), CooccurrenceStage())
    )
    tokens = turns * len(WORDS)
    assert corpus.outputs["text_bytes"] == turns * len(turn)
    assert vocabulary.outputs["tokens"] == counts.outputs["tokens"] == tokens
    assert counts.outputs["documents"] == 1
    found = np.zeros((len(WORDS), len(WORDS)), np.int64)
    ids = {row["token_id"]: WORDS.index(row["token"]) for row in context.tables.read(schemas.VOCABULARY).collect()}
    for row in context.tables.read(schemas.COOCCURRENCE).collect():
        found[ids[row["row_id"]], ids[row["col_id"]]] = row["units"]
    assert (found == cyclic_pairs(tokens, 10)).all(), json.dumps(found.tolist())
