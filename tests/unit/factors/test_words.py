from __future__ import annotations

import pytest

from wals_spark.factors.words import WordLookup, readable, style_of, to_byte_level

BYTE_LEVEL = ["Ġcat", "cat", "ing", "Ġthe", "ĠParis", "Ġ", "ĊĊ", "ĠÃ©tÃ©", "Ã", "<s>"]


def test_the_marks_of_tokens_give_the_style():
    assert style_of(BYTE_LEVEL) == "byte_level"
    assert style_of(["▁cat", "s", "▁the"]) == "sentencepiece"
    assert style_of(["cat", "##s", "the"]) == "wordpiece"
    assert style_of(["cat", "the"]) == "words"


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        ("Ġcat", "cat"),
        ("ing", "…ing"),
        ("Ġ", "␣"),
        ("ĠĠĠ", "␣␣"),
        ("ĊĊ", "⏎⏎"),
        ("ĠÃ©tÃ©", "été"),
        ("Ã", "<C3>"),
        ("Ġ(", "("),
        ("(", "("),
        ("<s>", "<s>"),
    ],
)
def test_byte_level_tokens_are_shown_as_people_write(token, shown):
    assert readable(token, "byte_level") == shown


def test_other_styles_are_shown_as_people_write():
    assert readable("▁cat", "sentencepiece") == "cat"
    assert readable("s", "sentencepiece") == "…s"
    assert readable("##ing", "wordpiece") == "…ing"
    assert readable("cat", "words") == "cat"
    assert readable("a\u200bb", "words") == "a<U+200B>b"


def test_the_byte_level_alphabet_is_gpt2s(data):
    from wals_spark.tokenizer import load_tokenizer

    loaded = load_tokenizer(str(data / "tokenizers" / "roberta-base"))
    for text in (" été", " naïve", "日本", " \u00ad", "~`\x00\x7f"):
        ids = loaded.tokenizer.encode(text, add_special_tokens=False).ids
        assert "".join(loaded.tokens[i] for i in ids) == to_byte_level(text)


def test_a_word_is_found_with_the_mark_of_its_start_first():
    lookup = WordLookup(BYTE_LEVEL)
    assert lookup.find("cat") == 0
    assert lookup.find("ing") == 2
    assert lookup.find("paris") == 4
    assert lookup.find("été") == 7
    assert lookup.find("Cat") == 0
    assert lookup.find("dog") is None


def test_plain_vocabularies_are_searched_by_case():
    lookup = WordLookup(["jerusalem", "OPEC", "tiger"])
    assert lookup.find("Jerusalem") == 0
    assert lookup.find("OPEC") == 1
    assert lookup.find("tiger") == 2


def test_starts_word():
    assert WordLookup(BYTE_LEVEL).starts_word("Ġcat")
    assert not WordLookup(BYTE_LEVEL).starts_word("cat")
    assert not WordLookup(["cat", "##s"]).starts_word("##s")
    assert WordLookup(["cat", "dog"]).starts_word("dog")
