from __future__ import annotations

import gzip

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from wals_spark.compress import text_statistics
from wals_spark.errors import InputError
from wals_spark.mlm import data
from wals_spark.mlm.loss import load_masked_lm
from wals_spark.tokenizer import load_tokenizer


@pytest.fixture
def checkpoint(make_checkpoint):
    return make_checkpoint(hidden_dropout_prob=0.0, edit=lambda model: model.lm_head.bias.normal_())


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text(
        "the cat sat on the mat while a dog ran\n\nships sail under stars that shine on quiet harbours\n" * 8
    )
    return str(path)


@pytest.fixture
def masked(checkpoint, corpus):
    return text_statistics.masked_text(corpus, load_tokenizer(str(checkpoint)), 10, 12, seed=1)


def test_squared_gradients_are_those_of_autograd_per_target_and_per_position(checkpoint, masked):
    found = text_statistics.measure_sensitivity(checkpoint, masked)
    model = load_masked_lm(str(checkpoint))
    E = model.get_input_embeddings().weight
    expected = torch.zeros_like(E)
    ids = torch.from_numpy(masked.inputs.astype(np.int64))
    target = torch.from_numpy(masked.target.astype(np.int64))
    hidden = model.lm_head.layer_norm(
        torch.nn.functional.gelu(model.lm_head.dense(model.roberta(ids).last_hidden_state[masked.row, masked.column]))
    ).detach()
    for state, right in zip(hidden, target, strict=True):
        matrix = E.detach().clone().requires_grad_(True)
        logits = state @ matrix.T + model.lm_head.bias
        torch.nn.functional.cross_entropy(logits[None], right[None]).backward()
        expected += matrix.grad**2
    looked_up = E.detach()[ids].requires_grad_(True)
    logits = model(inputs_embeds=looked_up).logits[masked.row, masked.column]
    torch.nn.functional.cross_entropy(logits, target, reduction="sum").backward()
    expected.index_add_(0, ids.flatten(), looked_up.grad.flatten(0, 1) ** 2)
    np.testing.assert_allclose(found.fisher, expected.detach().numpy(), rtol=2e-4, atol=1e-9)
    np.testing.assert_allclose(found.second_moment, (hidden.T @ hidden / len(hidden)).numpy(), rtol=1e-5, atol=1e-7)
    assert found.targets == len(target)


@pytest.mark.parametrize("class_name", ["BertForMaskedLM", "DistilBertForMaskedLM"])
def test_other_heads_are_measured_too(make_checkpoint, corpus, class_name):
    base = make_checkpoint(class_name=class_name)
    masked = text_statistics.masked_text(corpus, load_tokenizer(str(base)), 4, 12, seed=1)
    found = text_statistics.measure_sensitivity(base, masked)
    assert found.fisher.min() >= 0
    assert (found.fisher.sum(axis=1) > 0).mean() > 0.99
    assert np.linalg.eigvalsh(found.second_moment).max() > 0


def test_text_is_read_from_lines_and_from_parquet(tmp_path, corpus):
    pq.write_table(pa.table({"text": ["one", None, "two"], "id": [1, 2, 3]}), tmp_path / "a.parquet")
    assert list(text_statistics.read_texts(str(tmp_path / "a.parquet"), "--text")) == ["one", "two"]
    assert len(list(text_statistics.read_texts(corpus, "--text"))) == 16


def test_frequencies_come_from_text_or_from_a_table(tmp_path, checkpoint, corpus):
    tokenizer = load_tokenizer(str(checkpoint))
    size = len(tokenizer.tokens)
    ids = np.concatenate(data.encode(tokenizer, text_statistics.read_texts(corpus, "x")))
    expected = np.bincount(ids, minlength=size) + 0.5
    assert np.array_equal(text_statistics.read_frequencies(corpus, size, tokenizer), expected)
    pq.write_table(pa.table({"token_id": [3, 7], "count": [10, 20]}), tmp_path / "counts.parquet")
    found = text_statistics.read_frequencies(str(tmp_path / "counts.parquet"), size, None)
    assert (found[3], found[7], found[0], len(found)) == (10.5, 20.5, 0.5, size)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("text.txt", "café\n".encode("latin-1"), r"text\.txt is not a file of UTF-8 text"),
        ("text.txt", gzip.compress(b"the cat"), r"text\.txt is not a file of UTF-8 text"),
        ("text.txt.gz", gzip.compress(b"the cat"), r"text\.txt\.gz is neither a \.txt file nor Parquet"),
        ("text.jsonl", b'{"text": "the cat"}\n', r"text\.jsonl is neither a \.txt file nor Parquet"),
        ("text.parquet", b"", r"text\.parquet is neither a \.txt file nor Parquet"),
        ("text.parquet", b"PAR1garbagePAR1", r"text\.parquet is neither a \.txt file nor Parquet"),
    ],
)
def test_text_of_another_kind_is_named(tmp_path, checkpoint, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"--text: .*{message}"):
        list(text_statistics.read_texts(str(path), "--text"))
    with pytest.raises(InputError, match=f"--frequencies: .*{message}"):
        text_statistics.read_frequencies(str(path), 10, load_tokenizer(str(checkpoint)))


@pytest.mark.parametrize(
    "columns",
    [
        {"token_id": ["a"], "count": [1]},
        {"token_id": [1], "count": ["x"]},
        {"token_id": [None, 1], "count": [1, 2]},
        {"token_id": [1.5], "count": [1]},
        {"token_id": [1], "count": [None]},
    ],
)
def test_counts_that_are_no_numbers_are_named(tmp_path, columns):
    path = tmp_path / "counts.parquet"
    pq.write_table(pa.table(columns), path)
    with pytest.raises(InputError, match=r"--frequencies: .*counts\.parquet has"):
        text_statistics.read_frequencies(str(path), 10, None)


def test_what_cannot_be_read_is_said(tmp_path, checkpoint, corpus):
    tokenizer = load_tokenizer(str(checkpoint))
    with pytest.raises(InputError, match="--text: there is nothing at"):
        list(text_statistics.read_texts(str(tmp_path / "none"), "--text"))
    pq.write_table(pa.table({"body": ["one"]}), tmp_path / "b.parquet")
    with pytest.raises(InputError, match="columns body, expected text"):
        list(text_statistics.read_texts(str(tmp_path / "b.parquet"), "--text"))
    with pytest.raises(InputError, match=r"no tokenizer\.json"):
        text_statistics.read_frequencies(corpus, 10, None)
    (tmp_path / "short.txt").write_text("cat\n")
    with pytest.raises(InputError, match="fewer than 12 tokens"):
        text_statistics.masked_text(str(tmp_path / "short.txt"), tokenizer, 4, 12, 0)
