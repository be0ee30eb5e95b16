from __future__ import annotations

import itertools
import random
import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from wals_spark.corpus import byte_level_bpe, subword_encoder
from wals_spark.corpus.byte_level_bpe import ByteLevelEncoder, encodes_by_piece, is_byte_level
from wals_spark.corpus.document_batch import DocumentBatch
from wals_spark.corpus.sentences import punctuation_flags, sentence_ends
from wals_spark.corpus.subword_encoder import SubwordEncoder, find_breaks
from wals_spark.corpus.word_rules import SENTENCE_END
from wals_spark.corpus.words import RULES
from wals_spark.token_shards import OOV, SPECIAL

LETTERS = (
    "abcstmdrevlAB  \n\t'’.!?,\"()019½²ⅷ\u00a0\u2009\u3000\x85\x1c\u200béüßΣдא中文あ가"
    "\u0301\u0945\u20ac\U0001f600\U0001d400\U00010400\ue000"
)
ENGLISH = ["They're here; we've said it's what I'll do, he'd 've. 'sword' ''s 's't\n\n  two  spaces\n", "A b c. D"] * 5


def random_texts(seed, number=400):
    rng = random.Random(seed)
    return ["".join(rng.choices(LETTERS, k=rng.randrange(40))) for _ in range(number)]


def to_batch(texts):
    return DocumentBatch.from_texts([str(n) for n in range(len(texts))], [text.encode() for text in texts])


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


def make_encoder(tokenizer):
    def whole(texts):
        return [np.array(ids, np.int32) for ids in by_tokenizer(tokenizer, texts)]

    return ByteLevelEncoder(tokenizer, whole)


def by_tokenizer(tokenizer, texts):
    return [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]


def by_encoder(encoder, texts):
    tokens, offsets = encoder.encode(to_batch(texts))
    return [tokens[low:high].tolist() for low, high in itertools.pairwise(offsets)]


def test_ids_equal_the_tokenizers(tokenizer):
    encoder = make_encoder(tokenizer)
    for seed in range(3):
        texts = ["", *random_texts(seed), *ENGLISH]
        assert by_encoder(encoder, texts) == by_tokenizer(tokenizer, texts)


def test_documents_with_added_tokens_equal_the_tokenizers(tokenizer):
    texts = ["<s>", "a <mask> b", "a<s>", "<mask", "x", "  <mask>  <mask> 's", "<<s>s>"]
    assert by_encoder(make_encoder(tokenizer), texts) == by_tokenizer(tokenizer, texts)


@pytest.mark.slow
def test_pieces_equal_the_pre_tokenizers_for_every_character():
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    known = [
        code
        for code in range(0x40000)
        if not 0xD800 <= code < 0xE000 and byte_level_bpe.character_classes()[code] != RULES
    ]
    texts = [
        "".join(f"a{c}b {c} 1{c}2 !{c}?{c}{c} 's{c}" for c in map(chr, known[start : start + 512]))
        for start in range(0, len(known), 512)
    ]
    encoder = make_encoder(Tokenizer(models.BPE()))
    batch = to_batch(texts)
    pieces, ends = np.empty(len(batch.data), np.int32), np.zeros(len(texts) + 1, np.int64)
    done = 0
    while done < len(texts):
        done, state = encoder._cut(batch, done, pieces, ends)
        if state:
            encoder._dictionary.grow()
    lengths = np.diff(encoder._dictionary.starts)
    for index, text in enumerate(texts):
        expected = [len(piece) for piece, _ in splitter.pre_tokenize_str(text)]
        assert lengths[pieces[ends[index] : ends[index + 1]]].tolist() == expected


def test_characters_unknown_to_this_python_go_to_the_tokenizer(tokenizer):
    unknown = chr(int(np.flatnonzero(byte_level_bpe.character_classes()[:0x3000] == RULES)[0]))
    texts = [f"a{unknown}b 's", "plain", unknown, "\U000e0100x", "\U000f0000"]
    assert by_encoder(make_encoder(tokenizer), texts) == by_tokenizer(tokenizer, texts)


def test_forgetting_pieces_changes_nothing(tokenizer, monkeypatch):
    monkeypatch.setattr(byte_level_bpe, "MAX_PIECES", 10)
    encoder = make_encoder(tokenizer)
    for seed in range(3):
        texts = random_texts(seed, 50)
        assert by_encoder(encoder, texts) == by_tokenizer(tokenizer, texts)


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
    assert encodes_by_piece(tokenizer.to_str())
    assert not encodes_by_piece(altered(tokenizer, change))
    assert not is_byte_level(altered(tokenizer, change))


@pytest.mark.parametrize(
    "change",
    [
        lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)),
        lambda t: t.add_tokens([f"added {n}" for n in range(65)]),
        lambda t: setattr(t.model, "dropout", 0.1),
        lambda t: setattr(t, "model", models.Unigram([("a", 0.0)])),
    ],
)
def test_only_the_shape_that_is_understood_is_encoded_by_pieces(tokenizer, change):
    assert not encodes_by_piece(altered(tokenizer, change))


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
    found = sentence_ends(batch.data, batch.offsets, punctuation_flags()).tolist()
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
    monkeypatch.setattr(subword_encoder, "CALL_CHARACTERS", 30)
    assert len(list(subword_encoder.cut_long(texts[0]))) > 20
    parts = SubwordEncoder(serialized, frozenset(), tokenizer.get_vocab_size()).encode(to_batch(texts))
    assert parts.tokens.tolist() == whole.tokens.tolist()
    assert parts.offsets.tolist() == whole.offsets.tolist()
    assert parts.breaks.tolist() == whole.breaks.tolist()


def test_many_pieces_in_calls_of_few(tokenizer, monkeypatch):
    monkeypatch.setattr(byte_level_bpe, "CALL_PIECES", 3)
    texts = random_texts(6, 50)
    assert by_encoder(make_encoder(tokenizer), texts) == by_tokenizer(tokenizer, texts)


def test_a_difference_sends_whole_documents_to_the_tokenizer(tokenizer, monkeypatch, caplog):
    encoder = SubwordEncoder(tokenizer.to_str(), frozenset(), tokenizer.get_vocab_size())
    kinds = byte_level_bpe.character_classes().copy()
    kinds[ord("e")] = byte_level_bpe.NUMBER
    monkeypatch.setattr(encoder.quick, "_classes", kinds)
    monkeypatch.setattr(subword_encoder.logger, "propagate", True)
    texts = ["x", "abab ab", *ENGLISH]
    found = encoder.encode(to_batch(texts))
    assert encoder.quick is None
    assert caplog.text.count("other tokens by pieces") == 1
    assert found.tokens.tolist() == [token for ids in by_tokenizer(tokenizer, texts) for token in ids]
    assert encoder.encode(to_batch(texts)).tokens.tolist() == found.tokens.tolist()


def test_only_the_first_documents_are_encoded_twice(tokenizer, monkeypatch):
    monkeypatch.setattr(subword_encoder, "COMPARED_CHARACTERS", 20)
    encoder = SubwordEncoder(tokenizer.to_str(), frozenset(), tokenizer.get_vocab_size())
    encoder.encode(to_batch(ENGLISH))
    assert encoder._compared == len(ENGLISH[0].encode())


def test_roberta_on_real_text(data):
    import pyarrow.parquet as pq

    tokenizer = Tokenizer.from_file(str(data / "tokenizers" / "roberta-base" / "tokenizer.json"))
    assert encodes_by_piece(tokenizer.to_str())
    encoder = make_encoder(tokenizer)
    for name in ("enwiki/part-1.parquet", "novels.parquet", "biomedical.parquet", "scotus.parquet"):
        source = pq.ParquetFile(data / "corpora" / name)
        texts = [text[:20_000] for text in source.read_row_group(0, columns=["text"])["text"].to_pylist()[:40]]
        assert by_encoder(encoder, texts) == by_tokenizer(tokenizer, texts)


def breaks_of(encoded, index):
    return encoded.breaks[encoded.break_offsets[index] : encoded.break_offsets[index + 1]].tolist()


def exact_breaks(serialized, text):
    """By the spans of the tokenizer itself."""
    plain = Tokenizer.from_str(subword_encoder.untrimmed(serialized))
    spans = np.array(plain.encode(text, add_special_tokens=False).offsets, np.int64).reshape(-1, 2)
    return find_breaks(text, spans).tolist()


def with_added_tokens(tokenizer):
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.add_special_tokens([AddedToken("<left>", lstrip=True), AddedToken("<both>", lstrip=True, rstrip=True)])
    copy.add_tokens([AddedToken("<right>", rstrip=True)])
    return copy


def with_holes(unknown):
    """A byte-level BPE whose alphabet lacks most bytes, with or without an unknown token."""
    trained = Tokenizer(models.BPE(unk_token="<unk>" if unknown else None))
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = trainers.BpeTrainer(special_tokens=["<unk>"] if unknown else [], initial_alphabet=[], show_progress=False)
    trained.train_from_iterator(["abc. ab\ncab. "], trainer)
    return trained


LOSSY = {
    "tokens that take white space": with_added_tokens,
    "holes": lambda _: with_holes(False),
    "an unknown token": lambda _: with_holes(True),
}
PARTS = ["a", "b. ", "c", " ", "\n", ". ", "! x", "x", "é", "<left>", "<right>", "<both>", "<mask>", "<s>", "<unk>"]


@pytest.mark.parametrize("kind", LOSSY)
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.lists(st.sampled_from(PARTS), max_size=9).map("".join), min_size=1, max_size=4))
def test_boundaries_stay_in_their_document_where_tokens_do_not_hold_all_bytes(tokenizer, kind, texts):
    changed = LOSSY[kind](tokenizer)
    serialized = changed.to_str()
    encoder = SubwordEncoder(serialized, frozenset(), changed.get_vocab_size())
    assert encoder.byte_level
    found = encoder.encode(to_batch(texts))
    assert [breaks_of(found, index) for index in range(len(texts))] == [exact_breaks(serialized, t) for t in texts]


def test_a_boundary_after_a_special_token_does_not_move_into_the_next_document(tokenizer):
    encoder = SubwordEncoder(tokenizer.to_str(), frozenset({0, 1}), tokenizer.get_vocab_size())
    found = encoder.encode(to_batch(["a           <mask>\n", "b c d e"]))
    assert found.break_offsets.tolist() == [0, 0, 0]


def test_offsets_hold_white_space_whatever_the_tokenizer(tokenizer):
    """A paragraph ends after the token of its line feed, not before it."""
    spaced = altered(
        tokenizer,
        lambda t: (
            setattr(t, "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True)),
            setattr(t, "post_processor", processors.ByteLevel(trim_offsets=True)),
        ),
    )
    for serialized in (spaced, tokenizer.to_str()):
        encoder = SubwordEncoder(serialized, frozenset(), tokenizer.get_vocab_size())
        found = encoder.encode(to_batch(["a\n\nb"]))
        words = [tokenizer.id_to_token(token) for token in found.tokens]
        last = breaks_of(found, 0)[-1]
        assert (last & 1, "".join(words[: (last >> 1) + 1]).strip("Ġ")) == (1, "aĊĊ")


@pytest.mark.parametrize("special", [True, False])
def test_the_unknown_token_is_out_of_vocabulary_and_not_special(special):
    model = models.WordLevel({"[UNK]": 0, "a": 1, "b": 2, "[SEP]": 3}, unk_token="[UNK]")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["[UNK]", "[SEP]"])
    encoder = SubwordEncoder(tokenizer.to_str(), frozenset({0, 3} if special else {3}), 4)
    assert encoder.encode(to_batch(["a zz b[SEP]a"])).tokens.tolist() == [1, OOV, 2, SPECIAL, 1]


def test_the_unknown_token_of_a_unigram_tokenizer():
    tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0), ("b", -1.0)], unk_id=0))
    encoder = SubwordEncoder(tokenizer.to_str(), frozenset({0}), 3)
    assert encoder.encode(to_batch(["aéb"])).tokens.tolist() == [1, OOV, 2]
