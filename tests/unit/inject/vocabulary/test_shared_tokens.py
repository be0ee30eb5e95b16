"""Which tokens two tokenizers share."""

from __future__ import annotations

import json

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from inject_models import train_tokenizer, wordpiece_json
from oracles.transfer import shared_reference

from wals_spark.inject.vocabulary.shared_tokens import shared_origin, special_roles, token_convention


def origin_of(old, new):
    return shared_origin(old, new, special_roles(old), special_roles(new))


@settings(deadline=None)
@given(
    st.lists(st.text("abc", min_size=1, max_size=3), unique=True, max_size=20),
    st.lists(st.text("abc", min_size=1, max_size=3), unique=True, max_size=20),
)
def test_one_convention_shares_equal_strings_whatever_their_ids(before, after):
    old, new = wordpiece_json(before), wordpiece_json(after)
    found = origin_of(old, new)
    assert np.array_equal(found, shared_reference(old["model"]["vocab"], new["model"]["vocab"]))
    assert np.array_equal(found[:5], np.arange(5))


def test_a_tokenizer_shares_everything_with_itself():
    content = json.loads(train_tokenizer(320).to_str())
    assert np.array_equal(origin_of(content, content), np.arange(320))


def test_special_tokens_are_shared_by_role_across_conventions_and_nothing_else():
    byte_level = json.loads(train_tokenizer(300).to_str())
    other = wordpiece_json(["the", "a", "##s"])
    assert token_convention(byte_level) == "byte-level"
    assert token_convention(other) == "WordPiece ##"
    found = origin_of(byte_level, other)
    assert found[:5].tolist() == [
        1,
        3,
        0,
        2,
        4,
    ]  # <pad>, <unk>, <s>, </s>, <mask> for [PAD], [UNK], [CLS], [SEP], [MASK]
    assert (found[5:] == -1).all()


def test_another_mark_of_continuation_is_another_convention():
    assert (origin_of(wordpiece_json(["the"]), wordpiece_json(["the"], prefix="@@"))[5:] == -1).all()


def test_an_ordinary_token_is_not_shared_with_a_special_one_of_the_same_string():
    old = wordpiece_json(["odd"])
    new = wordpiece_json([], special=("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "odd"))
    assert origin_of(old, new)[5] == -1


def test_tokenizer_config_names_the_token_of_a_role():
    content = wordpiece_json([], special=("[PAD]", "[UNK]", "<start>", "[SEP]", "[MASK]"))
    assert "cls_token" not in special_roles(content)
    assert special_roles(content, {"cls_token": {"content": "<start>"}})["cls_token"] == 2


def test_metaspace_inside_a_sequence_of_components_is_found():
    content = wordpiece_json(["a"])
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [{"type": "Metaspace", "replacement": "▁"}]}
    assert token_convention(content) == "Metaspace ▁"


def test_ids_without_a_token_have_no_origin():
    old, new = wordpiece_json(["the"]), wordpiece_json(["the"])
    new["model"]["vocab"]["the"] = 9
    assert origin_of(old, new).tolist() == [0, 1, 2, 3, 4, -1, -1, -1, -1, 5]
