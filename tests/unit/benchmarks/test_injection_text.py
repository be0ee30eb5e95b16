"""Texts cut, split by document and sampled for a comparison."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from injection_text import is_test_document, read_split, read_texts, split_text, write_split

from wals_spark.errors import InputError


@pytest.fixture
def documents(tiny_tokenizer):
    """60 documents of 40 words of the tokenizer."""
    words = [token for token in tiny_tokenizer.tokens if not token.startswith("<")]
    generator = np.random.default_rng(0)
    return [" ".join(generator.choice(words, 40)) for _ in range(60)]


def test_training_and_test_sequences_are_of_different_documents(documents, tiny_tokenizer):
    text = split_text(iter(documents), tiny_tokenizer, 20, 1000, 1000)
    assert len(text.training) > 0
    assert len(text.test) > 0
    assert not is_test_document(text.training.document).any()
    assert is_test_document(text.test.document).all()


def test_documents_that_repeat_count_once(documents, tiny_tokenizer):
    once = split_text(iter(documents), tiny_tokenizer, 20, 1000, 1000)
    twice = split_text(iter(documents * 2), tiny_tokenizer, 20, 1000, 1000)
    assert np.array_equal(once.training.tokens, twice.training.tokens)
    assert twice.facts["documents"] == "60"


def test_sequences_of_training_text_are_not_tested_on(documents, tiny_tokenizer):
    repeated = [documents[0] + f" {word}" for word in documents[1].split()]
    text = split_text(iter(documents + repeated), tiny_tokenizer, 20, 1000, 1000)
    trained = {text.training.piece(index).tobytes() for index in range(len(text.training))}
    assert not any(text.test.piece(index).tobytes() in trained for index in range(len(text.test)))


def test_a_smaller_sample_is_the_beginning_of_a_larger_one(documents, tiny_tokenizer):
    small, large = (split_text(iter(documents), tiny_tokenizer, 20, count, 5).training for count in (8, 16))
    assert np.array_equal(small.tokens, large.take(np.arange(8)).tokens)


def test_what_is_written_is_read(documents, tiny_tokenizer, tmp_path):
    text = split_text(iter(documents), tiny_tokenizer, 20, 8, 4)
    write_split(tmp_path / "text.safetensors", text)
    found = read_split(tmp_path / "text.safetensors")
    assert found.facts == text.facts
    assert np.array_equal(found.training.tokens, text.training.tokens)
    assert np.array_equal(found.test.document, text.test.document)


def test_texts_are_read_from_parquet_without_empty_ones(tmp_path):
    pq.write_table(pa.table({"text": ["a", None, "", "b"]}), tmp_path / "texts.parquet")
    assert list(read_texts([tmp_path / "texts.parquet"])) == ["a", "b"]


def test_no_text_is_refused(tiny_tokenizer):
    with pytest.raises(InputError, match="no text"):
        split_text(iter([]), tiny_tokenizer, 20, 8, 4)
