from __future__ import annotations

import random
import re

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from wals_spark.corpus import subwords
from wals_spark.corpus.batch import from_texts
from wals_spark.corpus.reference import SENTENCE_END
from wals_spark.corpus.subwords import SubwordEncoder, find_breaks, is_byte_level
from wals_spark.corpus.words import punctuation, sentence_ends
from wals_spark.encoded import SPECIAL

LETTERS = (
    "abcstmdrevlAB  \n\t'’.!?,\"()019½²ⅷ\u00a0\u2009\u3000\x85\x1c\u200béüßΣдא中文あ가"
    "\u0301\u0945\u20ac\U0001f600\U0001d400\U00010400\ue000"
)
ENGLISH = ["They're here; we've said it's what I'll do, he'd 've. 'sword' ''s 's't\n\n  two  spaces\n", "A b c. D"] * 5


def random_texts(seed, number=400):
    rng = random.Random(seed)
    return ["".join(rng.choices(LETTERS, k=rng.randrange(40))) for _ in range(number)]


def to_batch(texts):
    return from_texts([str(n) for n in range(len(texts))], [text.encode() for text in texts])


@pytest.fixture(scope="module")
def tokenizer():
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<s>", AddedToken("<mask>", lstrip=True)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator(random_texts(0, 2000) + ENGLISH * 20, trainer)
    return trained


def altered(tokenizer, change):
    copy = Tokenizer.from_str(tokenizer.to_str())
    change(copy)
    return copy.to_str()


@pytest.mark.parametrize(
    "change",
    [
        lambda t: setattr(t, "normalizer", normalizers.Lowercase()),
        lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True)),
        lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.Whitespace()),
    ],
)
def test_other_tokenizers_are_not_taken_for_byte_level(tokenizer, change):
    assert is_byte_level(tokenizer.to_str())
    assert not is_byte_level(altered(tokenizer, change))


@pytest.mark.parametrize("quick", [True, False])
def test_encoder_marks_special_tokens_and_breaks(tokenizer, quick):
    serialized = tokenizer.to_str()
    if not quick:
        serialized = altered(tokenizer, lambda t: setattr(t, "normalizer", normalizers.Sequence([])))
    encoder = SubwordEncoder(serialized, frozenset({0, 1}), tokenizer.get_vocab_size())
    assert encoder.byte_level == quick
    found = encoder.encode(to_batch(["ab. (cd!) e\nf.g", "a<s>b", "", "x\n"]))
    words = [tokenizer.id_to_token(token) if token >= 0 else None for token in found.tokens]
    assert "".join(word for word in words[: found.offsets[1]]) == "ab.Ġ(cd!)ĠeĊf.g"
    assert found.tokens[found.offsets[1] : found.offsets[2]].tolist().count(SPECIAL) == 1
    ends = {}
    for code in found.breaks[found.break_offsets[0] : found.break_offsets[1]].tolist():
        ends["".join(words[: (code >> 1) + 1])] = code & 1
    assert ends == {"ab.": 0, "ab.Ġ(cd!)": 0, "ab.Ġ(cd!)ĠeĊ": 1}
    assert found.break_offsets[2:].tolist() == [found.break_offsets[1]] * 3


def test_breaks_by_bytes_equal_those_by_offsets(tokenizer):
    quick = SubwordEncoder(tokenizer.to_str(), frozenset(), tokenizer.get_vocab_size())
    # Byte-level offsets that are not trimmed say exactly which characters a token holds.
    exact = altered(
        tokenizer,
        lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False)),
    )
    texts = [text for text in random_texts(5) + ENGLISH if text.isascii()] + ["a <mask> b. c\n<mask> d. e"]
    found = quick.encode(to_batch(texts))
    plain = Tokenizer.from_str(exact)
    for index, text in enumerate(texts):
        spans = np.array(plain.encode(text, add_special_tokens=False).offsets, np.int64).reshape(-1, 2)
        expected = find_breaks(text, spans).tolist()
        assert found.breaks[found.break_offsets[index] : found.break_offsets[index + 1]].tolist() == expected


def test_sentence_ends_equal_the_expression():
    texts = random_texts(9) + ENGLISH + ["「はい。」いいえ！ x.” y… z"]
    batch = to_batch(texts)
    found = sentence_ends(batch.data, batch.offsets, punctuation()).tolist()
    expected = [
        int(batch.offsets[index]) + len(text[: match.end()].encode())
        for index, text in enumerate(texts)
        for match in re.finditer(SENTENCE_END, text)
    ]
    assert found == expected


@pytest.mark.parametrize("byte_level", [True, False])
def test_a_long_document_in_parts_is_encoded_as_a_whole(tokenizer, monkeypatch, byte_level):
    serialized = tokenizer.to_str()
    if not byte_level:
        serialized = altered(tokenizer, lambda t: setattr(t, "normalizer", normalizers.Sequence([])))
    texts = ["".join(random_texts(1, 60)) + "".join(ENGLISH * 3), "", *ENGLISH]
    whole = SubwordEncoder(serialized, frozenset(), tokenizer.get_vocab_size()).encode(to_batch(texts))
    monkeypatch.setattr(subwords, "CALL_CHARACTERS", 30)
    assert len(list(subwords.cut_long(texts[0]))) > 20
    parts = SubwordEncoder(serialized, frozenset(), tokenizer.get_vocab_size()).encode(to_batch(texts))
    assert parts.tokens.tolist() == whole.tokens.tolist()
    assert parts.offsets.tolist() == whole.offsets.tolist()
    assert parts.breaks.tolist() == whole.breaks.tolist()
