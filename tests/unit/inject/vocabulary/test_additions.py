"""Additions change the segmentation of their own text only, and each becomes one token."""

from __future__ import annotations

import json

import numpy as np
import pytest
from inject_models import KINDS, LINES, wordpiece
from tokenizers import Tokenizer

from wals_spark.errors import InputError
from wals_spark.inject.vocabulary.additions import MOST_FORMS, build_extension, with_longer_words
from wals_spark.inject.vocabulary.candidates import CandidateWord, split_words
from wals_spark.inject.vocabulary.command import run_extend_tokenizer
from wals_spark.inject.vocabulary.segmentation import compare_segmentation, pieces_of, random_texts
from wals_spark.tokenizer import load_tokenizer

FAMILY = {"agent": 100, "agents": 60, "agented": 9, "lamp": 3, "agentful": 4}


@pytest.fixture
def load(tmp_path):
    def run(kind):
        KINDS[kind]().save(str(tmp_path / "tokenizer.json"))
        return load_tokenizer(str(tmp_path)), json.loads((tmp_path / "tokenizer.json").read_text())

    return run


def changes(loaded, extension, texts):
    new = Tokenizer.from_str(json.dumps(extension.content))
    origin = np.concatenate([np.arange(len(loaded.tokens)), np.full(len(extension.added), -1)])
    return compare_segmentation(pieces_of(loaded.tokenizer), pieces_of(new), origin, texts)


def test_wordpiece_takes_longer_words_along_so_that_no_other_word_changes(load):
    loaded, content = load("WordPiece")
    counted = split_words(FAMILY, loaded)
    best = [word for word in counted if word.text == "agent"]
    alone = build_extension(content, loaded, best)
    texts = [f"the {word} ran" for word in FAMILY]
    assert len(changes(loaded, alone, texts).elsewhere) > 0
    chosen, left_out = with_longer_words(best, counted, loaded, 10)
    assert {word.text for word in chosen} == {"agent", "agents", "agented", "agentful"}
    assert left_out == {}
    found = changes(loaded, build_extension(content, loaded, chosen), texts)
    assert found.elsewhere == ()
    assert found.within == 4


def test_a_word_with_too_many_longer_ones_is_left_out_and_said_to_be(load):
    loaded, _ = load("WordPiece")
    family = {"agent" + end: 20 for end in ["", *(f"{a}{b}" for a in "aes" for b in "nort")]}
    counted = split_words(family, loaded)
    chosen, left_out = with_longer_words([word for word in counted if word.text == "agent"], counted, loaded, 100)
    assert chosen == []
    assert left_out == {"agent": f"more than {MOST_FORMS} longer words begin with it and would be split anew"}


def test_longer_words_count_towards_the_number_asked_for(load):
    loaded, _ = load("WordPiece")
    counted = split_words(FAMILY, loaded)
    chosen, _ = with_longer_words([word for word in counted if word.text == "agent"], counted, loaded, 3)
    assert chosen == []


def test_unigram_additions_within_one_another_become_one_token_each(load):
    loaded, content = load("Unigram")
    counted = split_words({"dogsail": 9, "dogsails": 9, "dogsailsmat": 9, "sailsmat": 9, "catdogsails": 9}, loaded)
    assert len(counted) >= 4
    extension = build_extension(content, loaded, counted)
    new = Tokenizer.from_str(json.dumps(extension.content))
    for word in extension.words:
        (index,) = new.encode(f" {word.text}", add_special_tokens=False).ids
        assert index >= len(loaded.tokens)
    assert set(extension.left_out) == {word.text for word in counted} - {word.text for word in extension.words}
    assert extension.left_out == {}


@pytest.mark.parametrize("kind", KINDS)
def test_texts_without_new_tokens_segment_as_before(load, kind):
    loaded, content = load(kind)
    extension = build_extension(content, loaded, split_words({"dogsails": 9, "catrivers": 9, "matlamps": 9}, loaded))
    found = changes(loaded, extension, [*LINES, *random_texts(loaded, 200, 1)])
    assert found.without_new == 0
    assert found.unchanged >= len(LINES)


def test_a_word_that_is_not_segmented_as_one_token_is_left_out(load):
    loaded, content = load("Unigram")
    good = split_words({"dogsails": 9}, loaded)
    pieces = loaded.tokenizer.encode(" cat mat", add_special_tokens=False).ids
    never = CandidateWord("cat mat", 5, tuple(pieces))
    extension = build_extension(content, loaded, [*good, never])
    assert [word.text for word in extension.words] == ["dogsails"]
    assert "would be segmented as" in extension.left_out["cat mat"]
    with pytest.raises(InputError, match="none of 1 becomes one token"):
        build_extension(content, loaded, [never])


def test_the_command_says_how_many_documents_change(tmp_path, make_checkpoint, make_config):
    base = make_checkpoint(class_name="BertForMaskedLM", vocab_size=120)
    wordpiece().save(str(base / "tokenizer.json"))
    text = tmp_path / "text.txt"
    text.write_text("\n".join(["the agent ran", "two agents ran", "the cat"] * 20))
    said = run_extend_tokenizer(
        make_config(inject__checkpoint=str(base)),
        str(tmp_path / "x"),
        most=5,
        min_count=20,
        batches=(),
        texts=[str(text)],
        listing=None,
    )
    assert "; of 60 documents 40 are segmented otherwise, 0 outside of new tokens: " in said
    words = [line.split("\t")[0] for line in (tmp_path / "x" / "words.tsv").read_text().splitlines()[1:]]
    assert {"agent", "agents"} <= set(words)
