"""Rows of new tokens: pieces, baselines, sparse combinations."""

from __future__ import annotations

import json

import numpy as np
import pytest
from inject_models import train_tokenizer, wordpiece_json
from tokenizers import Tokenizer

from wals_spark.inject.vocabulary import transfer
from wals_spark.tokenizer import LoadedTokenizer


def loaded(content):
    tokenizer = Tokenizer.from_str(json.dumps(content))
    size = tokenizer.get_vocab_size()
    return LoadedTokenizer(tokenizer, tuple(tokenizer.id_to_token(i) for i in range(size)), frozenset(), "")


def pieces(content, *tokens):
    names = {index: token for token, index in content["model"]["vocab"].items()}
    found = transfer.pieces_in_old_vocabulary(tokens, loaded(content), content)
    return [[names[index] for index in ids.tolist()] for ids in found]


def test_pieces_of_byte_level_tokens_are_those_of_the_old_merges():
    content = json.loads(train_tokenizer(400).to_str())
    found = pieces(content, "Ġthecat", "Ã", "Ġthe", "")
    assert found[0] == loaded(content).tokenizer.encode(" thecat", add_special_tokens=False).tokens
    assert len(found[0]) > 1
    assert found[1:] == [["Ã"], ["Ġthe"], []]


def test_wordpiece_tokens_split_into_the_longest_old_pieces_where_they_stand():
    content = wordpiece_json(["the", "##the", "##se", "##s", "t", "##t"])
    assert pieces(content, "these", "##these", "thes", "##tt") == [
        ["the", "##se"],
        ["##the", "##se"],
        ["the", "##s"],
        ["##t", "##t"],
    ]


def test_a_token_with_a_part_that_the_old_vocabulary_lacks_has_no_pieces():
    content = wordpiece_json(["the"])
    assert pieces(content, "theq", "##x", "##") == [[], [], []]


def test_random_rows_have_the_mean_and_the_variances_of_the_old_ones():
    generator = np.random.default_rng(0)
    E = (generator.standard_normal((500, 3)) * [1, 2, 3] + [5, 0, -5]).astype(np.float32)
    rows = transfer.random_rows(E, 20_000, 1)
    np.testing.assert_allclose(rows.mean(axis=0), E.mean(axis=0), atol=0.1)
    np.testing.assert_allclose(rows.std(axis=0), E.std(axis=0), rtol=0.05)
    assert np.array_equal(rows, transfer.random_rows(E, 20_000, 1))
    assert not np.array_equal(rows, transfer.random_rows(E, 20_000, 2))


@pytest.mark.parametrize("how", ["focus", "omp"])
def test_a_token_with_the_factors_of_an_anchor_gets_its_row(how):
    factors = np.concatenate([np.eye(4), np.eye(4)[1:2]]).astype(np.float32)
    rows = np.arange(12, dtype=np.float32).reshape(4, 3)
    found = transfer.combined_rows(how, factors, np.array([4]), np.arange(4), rows)
    np.testing.assert_allclose(found, rows[1:2], atol=1e-5)


def test_baselines_are_what_they_say():
    E = np.arange(6, dtype=np.float32).reshape(3, 2)
    given = [np.array([0, 2]), np.array([], np.int64)]
    assert transfer.row_baseline("subtokens", E, given, 1).tolist() == [[2.0, 3.0], [2.0, 3.0]]
    assert transfer.row_baseline("mean", E, given, 1).tolist() == [[2.0, 3.0], [2.0, 3.0]]
    assert transfer.row_baseline("random", E, given, 1).shape == (2, 2)
