from __future__ import annotations

import numpy as np
import pytest

from wals_spark.errors import InputError
from wals_spark.mlm.data import NO_DOCUMENT, encode, mask_tokens, pack_sequences, special_ids
from wals_spark.tokenizer import load_tokenizer


def documents(*lengths):
    return [np.arange(5, 5 + n, dtype=np.int32) % 18 + 5 for n in lengths]


def test_special_ids_are_found_by_name(special):
    assert (special.start, special.end, special.mask) == (0, 2, 4)
    assert special.all == {0, 1, 2, 3, 4}
    assert special.size == 23


def test_a_tokenizer_without_a_mask_is_refused(tmp_path):
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "a": 2}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(InputError, match=r"no mask token \(looked for <mask>, \[MASK\]\)"):
        special_ids(load_tokenizer(str(tmp_path)))


def test_encode_gives_an_array_per_text_without_special_tokens(tiny_tokenizer):
    encoded = encode(tiny_tokenizer, ["the cat", "", "cat the the"], batch=2)
    assert [ids.tolist() for ids in encoded] == [[5, 6], [], [6, 5, 5]]


def test_pack_cuts_one_stream_with_separators(special):
    packed = pack_sequences(documents(3, 6), special, 6)
    assert packed.ids.tolist() == [[0, 10, 11, 12, 2, 2], [0, 10, 11, 12, 13, 2]]
    assert packed.document.tolist() == [[-1, 0, 0, 0, -1, -1], [-1, 1, 1, 1, 1, -1]]
    assert packed.documents == 2


def test_pack_puts_no_separator_where_a_sequence_starts(special):
    packed = pack_sequences(documents(4, 4), special, 6)
    assert packed.ids[:, 1].tolist() == [10, 10]
    assert (packed.document[:, 1:-1] >= 0).all()


def test_fair_takes_the_start_of_every_document_first(special):
    packed = pack_sequences(documents(40, 40, 40), special, 6, limit=3, round_robin=True)
    assert packed.document[:, 1].tolist() == [0, 1, 2]
    unfair = pack_sequences(documents(40, 40, 40), special, 6, limit=3)
    assert unfair.document[:, 1].tolist() == [0, 0, 0]


def test_pack_keeps_at_most_the_limit_and_drops_what_is_not_full(special):
    assert pack_sequences(documents(50), special, 6, limit=4).ids.shape == (4, 6)
    assert pack_sequences(documents(11), special, 6).ids.shape == (2, 6)
    assert pack_sequences(documents(0), special, 6).ids.shape == (0, 6)


def test_masks_are_the_same_for_the_same_seed_and_differ_for_another(special):
    packed = pack_sequences(documents(400, 300), special, 34)
    first, second, other = (mask_tokens(packed, special, 0.15, seed) for seed in (7, 7, 8))
    assert np.array_equal(first.inputs, second.inputs)
    assert np.array_equal(first.column, second.column)
    assert not np.array_equal(first.inputs, other.inputs)


def test_masks_take_the_same_share_of_every_sequence_and_no_special_token(special):
    packed = pack_sequences(documents(33, 31, 400), special, 34)
    masked = mask_tokens(packed, special, 0.15, 1)
    maskable = (packed.document != NO_DOCUMENT).sum(axis=1)
    assert np.bincount(masked.row, minlength=len(packed)).tolist() == np.rint(0.15 * maskable).tolist()
    assert not np.isin(masked.target, list(special.all)).any()
    assert np.array_equal(masked.target, packed.ids[masked.row, masked.column])


def test_masks_replace_80_10_10(special):
    packed = pack_sequences([np.full(60_000, 9, np.int32)], special, 102)
    masked = mask_tokens(packed, special, 0.2, 3)
    seen = masked.inputs[masked.row, masked.column]
    share_masked = (seen == special.mask).mean()
    share_kept = (seen == 9).mean()
    assert abs(share_masked - 0.8) < 0.015
    assert abs(share_kept - (0.1 + 0.1 / 18)) < 0.012
    assert not np.isin(seen[seen != special.mask], list(special.all)).any()


def test_what_is_not_a_target_is_not_touched(special):
    packed = pack_sequences(documents(300), special, 34)
    masked = mask_tokens(packed, special, 0.15, 1)
    untouched = np.ones_like(packed.ids, bool)
    untouched[masked.row, masked.column] = False
    assert np.array_equal(masked.inputs[untouched], packed.ids[untouched])


def test_targets_come_in_the_order_of_the_rows(special):
    masked = mask_tokens(pack_sequences(documents(500), special, 34), special, 0.15, 1)
    assert (np.diff(masked.row) >= 0).all()


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1])
def test_a_mask_fraction_outside_0_1_is_refused(special, fraction):
    with pytest.raises(InputError, match="mask fraction"):
        mask_tokens(pack_sequences(documents(50), special, 10), special, fraction, 1)


def test_a_sequence_too_short_for_text_is_refused(special):
    with pytest.raises(InputError, match="sequence length 2"):
        pack_sequences(documents(50), special, 2)
