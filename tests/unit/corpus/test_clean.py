from __future__ import annotations

import random
import unicodedata
from collections import Counter

import numpy as np
import pytest

from wals_spark.config import CorpusConfig
from wals_spark.corpus.clean import LINE_BREAKS, REMOVED, SPACES, clean_batch, filter_length
from wals_spark.corpus.document_batch import DocumentBatch
from wals_spark.errors import InputError


def cleaned(texts, counts=None, **keys):
    texts = [text if isinstance(text, bytes) else text.encode() for text in texts]
    batch = DocumentBatch.from_texts([f"d{n}" for n in range(len(texts))], texts, "a.txt")
    batch = clean_batch(batch, CorpusConfig(**keys), Counter() if counts is None else counts)
    return [(name, batch.text(index).decode()) for index, name in enumerate(batch.ids)]


def plainly(text):
    """The reference implementation: character by character."""
    text = text.replace("\r\n", "\n")
    out = []
    for character in text:
        if character in SPACES:
            out.append(" ")
        elif character in LINE_BREAKS or character in "\v\f\r":
            out.append("\n")
        elif character in REMOVED or (ord(character) < 32 and character not in "\t\n") or character == "\x7f":
            continue
        else:
            out.append(character)
    return unicodedata.normalize("NFC", "".join(out))


def test_normalization_equals_the_reference_implementation_on_random_text():
    rng = random.Random(1)
    letters = (
        "ab \t\n\r\x00\x0b\x1f\x7f" + SPACES + LINE_BREAKS + REMOVED + "ée\u0301ñ\u200d–“中\U0001f600ÅͅΩ가\u1100\u1161"
    )
    texts = ["".join(rng.choices(letters, k=rng.randrange(30))) for _ in range(3000)]
    expected = [(f"d{n}", plain) for n, text in enumerate(texts) if (plain := plainly(text)).strip()]
    assert cleaned(texts) == expected


def test_a_carriage_return_at_the_end_of_a_document_does_not_take_from_the_next():
    assert cleaned(["a\r", "\nb"]) == [("d0", "a\n"), ("d1", "\nb")]


def test_every_separator_of_unicode_is_covered():
    everything = map(chr, [*range(0xD800), *range(0xE000, 0x110000)])
    kinds = {character: unicodedata.category(character) for character in everything}
    spaces = {c for c, kind in kinds.items() if kind == "Zs"} - {" "}
    assert spaces <= set(SPACES)
    assert {c for c, kind in kinds.items() if kind in ("Zl", "Zp")} <= set(LINE_BREAKS)
    controls = {c for c, kind in kinds.items() if kind == "Cc" and ord(c) >= 0x80}
    assert controls <= set(REMOVED + LINE_BREAKS)


def test_normalization_can_be_turned_off():
    text = "e\u0301\u00a0x\x00"
    assert cleaned([text], normalize=False) == [("d0", text)]


@pytest.mark.parametrize("normalize", [True, False])
def test_documents_of_white_space_are_empty(normalize):
    counts: Counter[str] = Counter()
    texts = ["", " \n\t", "\u3000\u00a0\u2028", "x", " y", "\u00a0z"]
    assert [name for name, _ in cleaned(texts, counts, normalize=normalize)] == ["d3", "d4", "d5"]
    assert counts["empty"] == 3


def test_what_is_only_removed_characters_is_empty():
    counts: Counter[str] = Counter()
    assert cleaned(["\ufeff\u00ad\x00"], counts) == []
    assert counts["empty"] == 1


BAD = b"gut \xff\xfe schlecht"


def test_bytes_that_are_not_utf8_are_refused_with_their_place():
    with pytest.raises(InputError, match=r"a\.txt: document 'd1' is not UTF-8 at its byte 4 \(ff fe 20 73\)"):
        cleaned(["fine", BAD])


def test_utf16_is_recognised():
    with pytest.raises(InputError, match="looks like UTF-16"):
        cleaned(["text".encode("utf-16")])


def test_bytes_that_are_not_utf8_can_be_replaced():
    counts: Counter[str] = Counter()
    assert cleaned(["fine", BAD], counts, encoding_errors="replace") == [
        ("d0", "fine"),
        ("d1", "gut \ufffd\ufffd schlecht"),
    ]
    assert counts["not_utf8_replaced"] == 1


def test_bytes_that_are_not_utf8_can_be_skipped():
    counts: Counter[str] = Counter()
    assert cleaned([BAD, "fine"], counts, encoding_errors="skip") == [("d1", "fine")]
    assert counts["not_utf8_skipped"] == 1


@pytest.mark.parametrize("data", [b"\xc0\x80", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"ab\xe2\x82"])
def test_overlong_surrogate_and_cut_sequences_are_not_utf8(data):
    with pytest.raises(InputError, match="is not UTF-8"):
        cleaned([data])


def test_a_million_empty_documents_take_a_moment():
    counts: Counter[str] = Counter()
    batch = DocumentBatch.from_texts([""] * 1_000_000, [b""] * 1_000_000)
    assert len(clean_batch(batch, CorpusConfig(), counts)) == 0
    assert counts["empty"] == 1_000_000


def test_selecting_and_replacing_documents_keeps_offsets_right():
    batch = DocumentBatch.from_texts(["a", "b", "c"], [b"one", b"", b"three"])
    batch = batch.replace_texts({0: b"", 1: b"zwei"}).select(np.array([False, True, True]))
    assert [batch.text(index) for index in range(len(batch))] == [b"zwei", b"three"]
    assert batch.offsets.tolist() == [0, 4, 9]


def test_length_filters_count_characters_not_bytes():
    counts: Counter[str] = Counter()
    batch = DocumentBatch.from_texts(list("abcd"), [text.encode() for text in ("x", "äöü", "\U0001f600" * 4, "12345")])
    kept = filter_length(batch, CorpusConfig(min_characters=2, max_characters=4), counts)
    assert kept.ids == ["b", "c"]
    assert (counts["too_short"], counts["too_long"]) == (1, 1)
