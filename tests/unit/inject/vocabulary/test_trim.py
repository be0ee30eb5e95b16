from __future__ import annotations

import json

import numpy as np
import pytest
from inject_models import TEXT, train_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers

from wals_spark.errors import InputError
from wals_spark.inject.vocabulary.trim import kept_ids, merge_closure, renumber_ids, trim_tokenizer

WORDS = tuple(TEXT.split())


def lines(seed, count=200, words=WORDS):
    generator = np.random.default_rng(seed)
    return [" ".join(generator.choice(words, 9)) for _ in range(count)]


def counted(tokenizer, texts):
    counts = np.zeros(tokenizer.get_vocab_size(), np.int64)
    for encoding in tokenizer.encode_batch(texts, add_special_tokens=False):
        np.add.at(counts, encoding.ids, 1)
    return counts


def trimmed(tokenizer, texts, min_count=1):
    content = json.loads(tokenizer.to_str())
    kept = kept_ids(content, counted(tokenizer, texts), [0, 1, 2, 3, 4], min_count)
    return kept, Tokenizer.from_str(json.dumps(trim_tokenizer(content, kept)))


def test_the_closure_holds_the_parts_of_parts():
    merges = [("a", "b"), ("ab", "c"), ("c", "d"), ("abc", "d"), ("ab", "cd")]
    assert merge_closure({"abcd"}, merges) == {"abcd", "abc", "d", "ab", "cd", "a", "b", "c"}
    assert merge_closure({"cd"}, merges) == {"cd", "c", "d"}


def test_text_of_the_corpus_segments_exactly_as_before():
    tokenizer = train_tokenizer(400)
    texts = lines(1, words=TEXT.split()[:12])
    kept, small = trimmed(tokenizer, texts)
    assert small.get_vocab_size() == len(kept) < 350
    for text in texts:
        before, after = tokenizer.encode(text), small.encode(text)
        assert before.tokens == after.tokens
        assert [kept[index] for index in after.ids] == before.ids


def test_other_text_still_survives_the_round_trip():
    _, small = trimmed(train_tokenizer(400), lines(1, words=TEXT.split()[:12]))
    for text in ("quiet harbours", "naïve 東京 \t x", ""):
        assert small.decode(small.encode(text).ids) == text


def test_real_text_segments_as_before_with_robertas_tokenizer(data):
    import pyarrow.parquet as pq

    tokenizer = Tokenizer.from_file(str(data / "tokenizers" / "roberta-base" / "tokenizer.json"))
    texts = pq.read_table(data / "corpora" / "biomedical.parquet", columns=["text"])["text"].slice(0, 150).to_pylist()
    kept, small = trimmed(tokenizer, texts)
    assert len(kept) < 20_000
    for before, after in zip(tokenizer.encode_batch(texts), small.encode_batch(texts), strict=True):
        assert before.tokens == after.tokens


def test_without_the_closure_text_would_not_segment_as_before():
    tokenizer = train_tokenizer(400)
    texts = lines(1)
    content = json.loads(tokenizer.to_str())
    counts = counted(tokenizer, texts)
    closed = set(kept_ids(content, counts, [0, 1, 2, 3, 4], 1).tolist())
    used = set(np.flatnonzero(counts).tolist())
    alphabet = {index for token, index in content["model"]["vocab"].items() if len(token) == 1}
    assert closed - used - alphabet - {0, 1, 2, 3, 4}


def test_special_ids_are_renumbered_everywhere():
    tokenizer = train_tokenizer(400)
    content = json.loads(tokenizer.to_str())
    mask = content["added_tokens"][4]
    kept, small = trimmed(tokenizer, lines(1, words=["cat"]))
    assert small.encode("cat").ids[0] == small.token_to_id("<s>") == 0
    assert kept[small.token_to_id("<mask>")] == mask["id"]
    config = renumber_ids({"vocab_size": 400, "pad_token_id": 1, "mask_token_id": 4, "x": 7}, kept, 400, "x")
    assert config == {"vocab_size": len(kept), "pad_token_id": 1, "mask_token_id": 4, "x": 7}


def test_a_threshold_drops_rare_tokens():
    texts = [*lines(1, words=["cat", "dog"]), "harbours"]
    tokenizer = train_tokenizer(400)
    every, _ = trimmed(tokenizer, texts)
    frequent, _ = trimmed(tokenizer, texts, min_count=5)
    assert len(frequent) < len(every)


@pytest.mark.parametrize("kind", ["WordPiece", "Unigram"])
def test_other_models_segment_as_before(kind):
    if kind == "WordPiece":
        vocabulary = ["[UNK]", "c", "##a", "##t", "cat", "do", "##g", "dog", "##s", "a", "t", "s", "g", "o", "##o", "d"]
        model = models.WordPiece({token: i for i, token in enumerate(vocabulary)}, unk_token="[UNK]")
    else:
        model = models.Unigram(
            [("<unk>", 0.0), ("cat", -1.0), ("c", -3.0), ("at", -2.5), ("dog", -1.5), ("s", -2.0)], 0
        )
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    texts = ["cat cats", "dog cat zebra"]
    content = json.loads(tokenizer.to_str())
    kept = kept_ids(content, counted(tokenizer, texts), [], 1)
    small = Tokenizer.from_str(json.dumps(trim_tokenizer(content, kept)))
    assert len(kept) < tokenizer.get_vocab_size()
    for text in texts:
        assert small.encode(text).tokens == tokenizer.encode(text).tokens


def test_another_kind_of_tokenizer_is_refused():
    with pytest.raises(InputError, match="WordLevel"):
        kept_ids({"model": {"type": "WordLevel", "vocab": {"a": 0}}}, np.ones(1), [], 1)
