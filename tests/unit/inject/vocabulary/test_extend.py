"""Modes that change the vocabulary: extend and trim, through the writer and verify."""

from __future__ import annotations

import json
from typing import get_args

import numpy as np
import pytest
from inject_models import TEXT

from wals_spark.checkpoints import artifact, atomic_directory
from wals_spark.checkpoints.checkpoint import embedding_values, open_checkpoint
from wals_spark.checkpoints.raw_tensor import replace_rows
from wals_spark.checkpoints.safetensors_file import read_raw_tensors, write_raw_tensors
from wals_spark.checkpoints.verify import verify_checkpoint
from wals_spark.config import InjectConfig
from wals_spark.errors import InputError
from wals_spark.factors.store import Vectors
from wals_spark.inject.prepare import prepare_edit
from wals_spark.inject.vocabulary import extend
from wals_spark.tokenizer import load_tokenizer

EMBEDDING = "roberta.embeddings.word_embeddings.weight"
WORDS = "dogsails catrivers greenlamps"


@pytest.fixture
def made(tmp_path, make_config):
    """Run a mode on a checkpoint with given counts and factors."""

    def run(base, mode, tokenizer, counts, matrix=None, name="out", **values):
        loaded = load_tokenizer(str(tokenizer))
        settings = {"inject__mode": mode, "inject__checkpoint": str(base), "vocabulary__tokenizer": str(tokenizer)}
        config = make_config(**settings, inject__anchor_min_count=1, **values)
        matrix = np.zeros((len(counts), 0), np.float32) if matrix is None else matrix
        vectors = Vectors(list(loaded.tokens), counts, matrix, np.zeros(len(counts), np.float32))
        prepared, change, factors = prepare_edit(config, vectors)
        described = {"mode": mode, "parameters": {"seed": 1, **config.inject.result_keys()}, "factors": None}
        with atomic_directory.staged_directory(str(tmp_path / name), replace=False) as staging:
            manifest = artifact.write_artifact(staging, prepared, change, factors, described)
        return tmp_path / name, manifest, change

    return run


@pytest.fixture
def extended(tmp_path, make_checkpoint, make_factors):
    """A checkpoint, an extended tokenizer beside it, and counts and factors of all its tokens."""
    base = make_checkpoint(edit=lambda model: model.lm_head.bias.copy_(model.lm_head.bias.new_tensor(range(400)) / 100))
    old = load_tokenizer(str(base))
    content = json.loads((base / "tokenizer.json").read_text())
    words = [old.tokenizer.encode(" " + word, add_special_tokens=False).tokens for word in WORDS.split()]
    result, added = extend.extend_tokenizer(content, words)
    (tmp_path / "extended").mkdir()
    (tmp_path / "extended" / "tokenizer.json").write_text(json.dumps(result))
    E = embedding_values(open_checkpoint(str(base)))
    directions = np.random.default_rng(0).standard_normal((16, 8))
    truth = np.random.default_rng(1).standard_normal((len(added), 16)).astype(np.float32) * E.std()
    matrix = (np.concatenate([E, truth]) @ directions).astype(np.float32)
    counts = np.full(len(matrix), 50)
    counts[:5] = 0
    return base, tmp_path / "extended", counts, matrix, added


def test_a_new_word_is_one_token_and_old_text_segments_as_before(extended):
    base, tokenizer, _, _, added = extended
    old, new = load_tokenizer(str(base)), load_tokenizer(str(tokenizer))
    assert new.tokens[: len(old.tokens)] == old.tokens
    assert new.tokens[len(old.tokens) :] == tuple(added)
    for word in WORDS.split():
        assert new.tokenizer.encode(f"a {word}", add_special_tokens=False).tokens[-1] == f"Ġ{word}"
        assert new.tokenizer.decode(new.tokenizer.encode(f"a {word}", add_special_tokens=False).ids) == f"a {word}"
    assert new.tokenizer.encode(TEXT).tokens == old.tokenizer.encode(TEXT).tokens


@pytest.mark.parametrize("method", get_args(InjectConfig.model_fields["extend_rows"].annotation))
def test_every_method_extends_and_verifies(extended, made, method):
    base, tokenizer, counts, matrix, added = extended
    directory, manifest, _ = made(base, "extend", tokenizer, counts, matrix, inject__extend_rows=method)
    assert manifest["embedding"]["new_rows"] == manifest["embedding"]["rows_changed"] == len(added)
    assert verify_checkpoint(directory, str(base), reload=method == "factors").failures == []
    found = open_checkpoint(str(directory))
    assert found.vocab_size == 400 + len(added) == found.config["vocab_size"]
    old = open_checkpoint(str(base))
    assert np.array_equal(found.tensors[EMBEDDING].rows[:400], old.tensors[EMBEDDING].rows)
    assert np.array_equal(found.tensors["lm_head.bias"].values()[:400], old.tensors["lm_head.bias"].values())


def test_rows_from_subtokens_and_mean_are_what_they_say(extended, made):
    base, tokenizer, counts, matrix, added = extended
    old, E = load_tokenizer(str(base)), embedding_values(open_checkpoint(str(base)))
    _, _, change = made(base, "extend", tokenizer, counts, matrix, inject__extend_rows="subtokens", name="a")
    pieces = old.tokenizer.encode(" " + added[-1].removeprefix("Ġ"), add_special_tokens=False).ids
    np.testing.assert_allclose(change.rows[-1], E[pieces].mean(axis=0), rtol=1e-5, atol=1e-7)
    _, _, change = made(base, "extend", tokenizer, counts, matrix, inject__extend_rows="mean", name="b")
    np.testing.assert_allclose(change.rows, np.repeat(E.mean(axis=0)[None], len(added), axis=0), rtol=1e-4, atol=1e-7)


def test_a_new_token_that_the_corpus_lacks_gets_the_mean_of_its_pieces(extended, made):
    base, tokenizer, counts, matrix, added = extended
    counts = counts.copy()
    counts[400] = 0
    _, _, change = made(base, "extend", tokenizer, counts, matrix)
    pieces = load_tokenizer(str(base)).tokenizer.encode(" " + added[0].removeprefix("Ġ"), add_special_tokens=False).ids
    E = embedding_values(open_checkpoint(str(base)))
    np.testing.assert_allclose(change.rows[0], E[pieces].mean(axis=0), rtol=1e-5, atol=1e-7)


def test_the_head_bias_of_new_tokens_follows_frequency():
    counts = np.array([1, 10, 100, 1000, 7])
    bias = 2 + 0.5 * np.log(counts + 0.5)
    found = extend.bias_from_counts(bias, counts, np.arange(4), np.array([50, 5]))
    np.testing.assert_allclose(found, 2 + 0.5 * np.log(np.array([50.5, 5.5])))


def test_sparsemax_is_the_projection_onto_the_simplex():
    z = np.random.default_rng(0).standard_normal((20, 7))
    p = extend.sparsemax(z)
    np.testing.assert_allclose(p.sum(axis=1), 1)
    assert (p >= 0).all()
    assert (p == 0).any()
    for _ in range(200):
        other = np.random.default_rng(_).dirichlet(np.ones(7), 20)
        assert (((z - p) ** 2).sum(axis=1) <= ((z - other) ** 2).sum(axis=1) + 1e-9).all()
    np.testing.assert_allclose(extend.sparsemax(np.array([[5.0, 0, 0]])), [[1, 0, 0]])


def test_a_tokenizer_that_does_not_extend_the_checkpoints_is_refused(make_checkpoint, made):
    base = make_checkpoint()
    with pytest.raises(InputError, match="under the same ids and new ones after them"):
        made(base, "extend", base, np.ones(400, np.int64), np.ones((400, 2), np.float32))


def test_a_word_of_unknown_pieces_is_refused(extended):
    base, *_ = extended
    content = json.loads((base / "tokenizer.json").read_text())
    with pytest.raises(InputError, match="pieces"):
        extend.extend_tokenizer(content, [["Ġnot", "there"]])


def test_trim_keeps_rows_and_bias_to_the_bit_and_verifies(make_checkpoint, made):
    base = make_checkpoint(edit=lambda model: model.lm_head.bias.copy_(model.lm_head.bias.new_tensor(range(400))))
    old = load_tokenizer(str(base))
    texts = ["the cat sat on the mat", "a dog ran"]
    counts = np.zeros(400, np.int64)
    for text in texts:
        np.add.at(counts, old.tokenizer.encode(text, add_special_tokens=False).ids, 1)
    directory, manifest, change = made(base, "trim", base, counts)
    report = verify_checkpoint(directory, str(base))
    assert report.failures == []
    assert manifest["embedding"]["rows_changed"] == 0
    assert manifest["embedding"]["dropped_rows"] == 400 - len(change.origin) > 50
    small, new = open_checkpoint(str(directory)), load_tokenizer(str(directory))
    bias = small.tensors["lm_head.bias"].values()
    for text in texts:
        before, after = old.tokenizer.encode(text), new.tokenizer.encode(text)
        assert before.tokens == after.tokens
        assert bias[after.ids].tolist() == before.ids


def test_trimmed_logits_are_those_of_the_kept_tokens(make_checkpoint, made):
    import torch
    from transformers import AutoModelForMaskedLM

    base = make_checkpoint()
    old = load_tokenizer(str(base))
    counts = np.zeros(400, np.int64)
    ids = old.tokenizer.encode("the cat sat on the mat").ids
    counts[ids] += 1
    directory, _, change = made(base, "trim", base, counts)
    new_ids = load_tokenizer(str(directory)).tokenizer.encode("the cat sat on the mat").ids
    with torch.no_grad():
        full = AutoModelForMaskedLM.from_pretrained(base)(torch.tensor([ids])).logits[0].numpy()
        small = AutoModelForMaskedLM.from_pretrained(directory)(torch.tensor([new_ids])).logits[0].numpy()
    np.testing.assert_allclose(small, full[:, change.origin], rtol=1e-5, atol=1e-6)


def test_a_row_that_moved_to_another_token_is_caught(make_checkpoint, made):
    base = make_checkpoint()
    counts = np.zeros(400, np.int64)
    counts[200:300] = 1
    directory, _, _ = made(base, "trim", base, counts)
    tensors, metadata = read_raw_tensors(directory / "model.safetensors")
    tensors = {name: type(t)(t.dtype, t.shape, t.data.copy()) for name, t in tensors.items()}
    values = tensors[EMBEDDING].values()
    tensors[EMBEDDING] = replace_rows(tensors[EMBEDDING], np.array([10, 11]), values[[11, 10]])
    write_raw_tensors(directory / "model.safetensors", tensors, metadata)
    failed = {check.name for check in verify_checkpoint(directory, str(base), reload=False).checks if not check.passed}
    assert {"tensors", "rows", "base rows"} <= failed
