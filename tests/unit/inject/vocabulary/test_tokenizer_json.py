from __future__ import annotations

import json

import numpy as np
import pytest
from inject_models import train_tokenizer
from tokenizers import Tokenizer

from wals_spark.inject.vocabulary.extend import extend_tokenizer
from wals_spark.inject.vocabulary.tokenizer_json import bpe_merges, token_ids, tokenizer_model_type
from wals_spark.inject.vocabulary.trim import kept_ids, trim_tokenizer


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        ({"type": "Unigram", "vocab": [["a", -1.0]]}, "Unigram"),
        ({"vocab": {"a": 0}, "merges": []}, "BPE"),
        ({"vocab": [["a", -1.0]], "unk_id": 0}, "Unigram"),
        ({"vocab": {"a": 0}, "max_input_chars_per_word": 100}, "WordPiece"),
        ({"vocab": {"a": 0}, "unk_token": "a"}, "WordLevel"),
    ],
)
def test_the_model_type_follows_from_the_keys_where_the_file_does_not_name_it(model, kind):
    assert tokenizer_model_type({"model": model}) == kind


def test_both_spellings_of_merges_are_read():
    assert bpe_merges({"model": {"merges": ["a b", ["ab", "c"]]}}) == [("a", "b"), ("ab", "c")]


def test_added_tokens_belong_to_the_vocabulary():
    content = {"model": {"vocab": [["a", -1.0], ["b", -2.0]]}, "added_tokens": [{"content": "<mask>", "id": 9}]}
    assert token_ids(content) == {"a": 0, "b": 1, "<mask>": 9}


def old_spelling(content):
    """As the files of 2019 have it: no kind, merges as strings."""
    model = {name: value for name, value in content["model"].items() if name != "type"}
    return {**content, "model": {**model, "merges": [" ".join(pair) for pair in bpe_merges(content)]}}


def test_an_old_file_is_extended_and_trimmed_like_a_new_one():
    tokenizer = train_tokenizer(400)
    content = json.loads(tokenizer.to_str())
    old = old_spelling(content)
    word = tokenizer.encode(" dogsails", add_special_tokens=False).tokens
    (new_result, added), (old_result, same) = extend_tokenizer(content, [word]), extend_tokenizer(old, [word])
    assert added == same
    assert Tokenizer.from_str(json.dumps(old_result)).to_str() == Tokenizer.from_str(json.dumps(new_result)).to_str()
    counts = np.arange(400)
    kept = kept_ids(old, counts, range(5), 300)
    assert kept.tolist() == kept_ids(content, counts, range(5), 300).tolist()
    small = Tokenizer.from_str(json.dumps(trim_tokenizer(old, kept)))
    assert small.to_str() == Tokenizer.from_str(json.dumps(trim_tokenizer(content, kept))).to_str()


def test_robertas_own_file_is_a_bpe(data):
    content = json.loads((data / "tokenizers" / "roberta-base" / "tokenizer.json").read_text(encoding="utf-8"))
    assert tokenizer_model_type(content) == "BPE"
    assert len(bpe_merges(content)) == 50_000
    assert len(token_ids(content)) == 50_265
