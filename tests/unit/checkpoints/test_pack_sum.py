"""Packs added to their base: strengths, overlaps, order, and what stays to the bit."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pack_models import BIAS, DESCRIBED, EMBEDDING, memory_base, moved_by, small_pack

from wals_spark.checkpoints.domain_pack import dequantised
from wals_spark.checkpoints.edit import apply_edit
from wals_spark.checkpoints.pack_making import pack_of_edit
from wals_spark.checkpoints.pack_sum import PackBase, check_pack_base, edit_of_packs, scaled_packs
from wals_spark.checkpoints.raw_tensor import from_values, tensor_hashes
from wals_spark.errors import ConfigError, InputError

HYPOTHESIS = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
DTYPES = st.sampled_from(["int8", "fp16", "fp32"])
STORED = st.sampled_from(["F32", "F16", "BF16"])
STRENGTH = st.sampled_from([0.0, 1.0, -1.0, 0.5]) | st.floats(-2, 2)


def result(base, packs, strengths):
    return apply_edit(base, edit_of_packs(scaled_packs(packs, strengths), base))


def same_bytes(first, second):
    return all(first[name].same_bytes(second[name]) for name in first.keys() | second.keys())


@HYPOTHESIS
@given(dtype=DTYPES, stored=STORED, rows=st.integers(0, 10), strength=STRENGTH, seed=st.integers(0, 99))
def test_the_result_is_the_base_plus_strength_times_differences_rounded_once(
    tmp_path, dtype, stored, rows, strength, seed
):
    base = memory_base(tmp_path, dtype=stored, seed=seed)
    pack = small_pack(base, seed, dtype, rows)
    found = result(base, [pack], [strength])
    E0, b0 = (base.tensors[name].values().astype(np.float64) for name in (EMBEDDING, BIAS))
    D, d = np.zeros_like(E0), np.zeros_like(b0)
    stored_rows = pack.rows.astype(np.float64) * (1 if pack.scales is None else pack.scales[:, None].astype(np.float64))
    D[pack.ids] = stored_rows - (E0[pack.ids] if dtype == "fp32" else 0)
    d[pack.bias_ids] = pack.bias.astype(np.float64) - (b0[pack.bias_ids] if dtype == "fp32" else 0)
    assert found[EMBEDDING].same_bytes(from_values((E0 + strength * D).astype(np.float32), stored))
    assert found[BIAS].same_bytes(from_values((b0 + strength * d).astype(np.float32), stored))
    assert found["bert.pooler.dense.bias"] is base.tensors["bert.pooler.dense.bias"]


@HYPOTHESIS
@given(
    kinds=st.lists(DTYPES, min_size=1, max_size=4),
    strengths=st.lists(STRENGTH, min_size=4, max_size=4),
    stored=STORED,
    seed=st.integers(0, 99),
)
def test_the_order_of_the_packs_does_not_matter(tmp_path, kinds, strengths, stored, seed):
    base = memory_base(tmp_path, dtype=stored, seed=seed)
    packs = [small_pack(base, 10 * seed + i, kind, 4 + i) for i, kind in enumerate(kinds)]
    pairs = list(zip(packs, strengths, strict=False))
    found = [result(base, *zip(*order, strict=True)) for order in itertools.permutations(pairs)]
    assert all(same_bytes(found[0], other) for other in found[1:])


@HYPOTHESIS
@given(kinds=st.lists(DTYPES, min_size=1, max_size=3), stored=STORED, seed=st.integers(0, 99))
def test_strength_0_is_the_base_to_the_bit(tmp_path, kinds, stored, seed):
    base = memory_base(tmp_path, dtype=stored, seed=seed)
    values = base.tensors[EMBEDDING].values().copy()
    values[:, 0] = -0.0
    base = replace(base, tensors={**base.tensors, EMBEDDING: from_values(values, stored)})
    packs = [small_pack(base, 10 * seed + i, kind) for i, kind in enumerate(kinds)]
    edit = edit_of_packs(scaled_packs(packs, [0.0]), base)
    assert len(edit.ids) == 0
    assert edit.head_bias is None
    assert same_bytes(apply_edit(base, edit), base.tensors)


@HYPOTHESIS
@given(
    stored=STORED,
    seed=st.integers(0, 99),
    ids=st.sets(st.integers(2, 11)),
    scale=st.sampled_from([0.0, 1e-30, 1e-3, 1.0, 1e4]),
)
def test_values_of_32_bits_are_given_back_to_the_bit(tmp_path, stored, seed, ids, scale):
    """Also where E0 + (E' - E0) in float32 would not be E': the new rows are of any size beside the old."""
    base = memory_base(tmp_path, dtype=stored, seed=seed)
    ids = np.array(sorted(ids), np.int64)
    generator = np.random.default_rng(seed)
    edit = moved_by(base, ids, np.zeros((len(ids), 4)))
    edit = replace(edit, rows=(scale * generator.standard_normal((len(ids), 4))).astype(np.float32))
    edit = replace(edit, head_bias=scale * generator.standard_normal(12))
    pack = pack_of_edit(base, edit, "fp32", DESCRIBED)
    assert same_bytes(result(base, [pack], [1.0]), apply_edit(base, edit))


def test_packs_add_where_they_overlap_and_say_how_many_rows_do(tmp_path):
    base = memory_base(tmp_path)
    first = pack_of_edit(base, moved_by(base, [2, 3, 4], np.full(12, 0.5)), "fp16", DESCRIBED)
    second = pack_of_edit(base, moved_by(base, [4, 5], np.full(8, 0.25), np.full(12, 1.0)), "fp16", DESCRIBED)
    edit = edit_of_packs(scaled_packs([first, second], [1.0, 2.0]), base)
    E0, b0 = base.tensors[EMBEDDING].values(), base.tensors[BIAS].values()
    assert edit.ids.tolist() == [2, 3, 4, 5]
    assert np.allclose(edit.rows - E0[2:6], np.array([0.5, 0.5, 1.0, 0.5])[:, None], atol=1e-3)
    assert np.allclose(edit.head_bias - b0, 2, atol=1e-3)
    assert edit.facts == {
        "rows_of_packs": 4,
        "biases_of_packs": 12,
        "rows_of_several_packs": 1,
        "biases_of_several_packs": 0,
    }


def test_a_pack_of_strength_0_overlaps_with_nothing(tmp_path):
    base = memory_base(tmp_path)
    packs = [small_pack(base, seed, rows=10) for seed in (1, 2)]
    assert edit_of_packs(scaled_packs(packs, [1.0]), base).facts["rows_of_several_packs"] == 10
    assert edit_of_packs(scaled_packs(packs, [1.0, 0.0]), base).facts["rows_of_several_packs"] == 0


def test_an_applied_pack_gives_the_differences_it_says(tmp_path):
    base = memory_base(tmp_path)
    pack = small_pack(base)
    ids, rows, bias = dequantised(pack)
    edit = edit_of_packs(scaled_packs([pack], [1.0]), base)
    assert np.array_equal(edit.ids, ids)
    assert np.allclose(edit.rows, base.tensors[EMBEDDING].values()[ids] + rows, atol=1e-6)
    assert np.allclose(edit.head_bias, base.tensors[BIAS].values() + bias, atol=1e-6)


def test_shares_add_with_the_size_of_the_strengths(tmp_path):
    base = memory_base(tmp_path)
    packs = [small_pack(base, seed, rows=10) for seed in (1, 2)]
    assert edit_of_packs(scaled_packs(packs, [0.5, -1.0]), base).share.tolist() == [0, 0, *[1.5] * 10]
    undeclared = [replace(packs[0], share=None), packs[1]]
    assert not edit_of_packs(scaled_packs(undeclared, [1.0]), base).share.any()


@pytest.mark.parametrize(
    ("strengths", "message"),
    [
        ([1.0, 2.0, 3.0], "3 strengths for 2 packs"),
        ([float("nan")], "strength of a pack is nan"),
        ([float("inf"), 1.0], "strength of a pack is inf"),
        ([1e9], "expected a number up to 1000"),
        ([10**400], "expected a number up to 1000"),
    ],
)
def test_strengths_that_do_not_fit_are_refused(tmp_path, strengths, message):
    base = memory_base(tmp_path)
    with pytest.raises(ConfigError, match=message):
        scaled_packs([small_pack(base, 1), small_pack(base, 2)], strengths)


def test_a_pack_given_twice_is_refused(tmp_path):
    pack = small_pack(memory_base(tmp_path))
    with pytest.raises(ConfigError, match="given twice"):
        scaled_packs([pack, pack], [1.0])


@pytest.mark.parametrize("stored", ["F16", "BF16", "F32"])
def test_a_row_that_would_overflow_the_base_is_named(tmp_path, stored):
    base = memory_base(tmp_path, dtype=stored)
    edit = moved_by(base, [3], np.full(4, 6e4 if stored == "F16" else 3e38))
    pack = pack_of_edit(base, edit, "int8", DESCRIBED)
    result(base, [pack], [1.0])
    with pytest.raises(InputError, match=f"row 3 of the embedding would not be finite in {stored}"):
        result(base, [pack], [2.0])


def test_a_bias_that_would_overflow_the_base_is_named(tmp_path):
    base = memory_base(tmp_path, dtype="F16")
    pack = pack_of_edit(base, moved_by(base, [3], np.ones(4), np.full(12, 6e4)), "int8", DESCRIBED)
    with pytest.raises(InputError, match="entry 0 of the head bias would not be finite in F16"):
        result(base, [pack], [2.0])


def pack_base(base, **changed):
    hashes = tensor_hashes(base.tensors)
    given = PackBase("CKPT", hashes, EMBEDDING, BIAS, (12, 4), "hash", base.protected)
    return replace(given, **changed)


def test_a_pack_of_another_base_vocabulary_or_shape_is_refused_with_both_hashes(tmp_path):
    base = memory_base(tmp_path)
    pack = small_pack(base)
    vocabulary = pack.header["vocabulary"]["hash"]
    check_pack_base(pack, "PACK", pack_base(base, vocabulary=vocabulary))
    with pytest.raises(InputError, match=f"vocabulary of the hash {vocabulary}, the tokenizer of CKPT has hash"):
        check_pack_base(pack, "PACK", pack_base(base))
    other = memory_base(tmp_path, seed=1)
    found, expected = (tensor_hashes(each.tensors)[EMBEDDING] for each in (other, base))
    with pytest.raises(InputError, match=rf"{EMBEDDING} of CKPT has the SHA-256 {found}, expected {expected}"):
        check_pack_base(pack, "PACK", pack_base(other, vocabulary=vocabulary))
    for changed in ({"shape": (13, 4)}, {"embedding": BIAS}, {"head_bias": None}):
        with pytest.raises(InputError, match="PACK is for"):
            check_pack_base(pack, "PACK", pack_base(base, vocabulary=vocabulary, **changed))


@pytest.mark.parametrize("name", [EMBEDDING, BIAS, "bert.pooler.dense.bias"])
def test_every_tensor_of_the_base_counts(tmp_path, name):
    base = memory_base(tmp_path)
    pack = small_pack(base)
    vocabulary = pack.header["vocabulary"]["hash"]
    hashes = tensor_hashes(base.tensors)
    for tensors in (
        {**hashes, name: "0"},
        {each: hashes[each] for each in hashes if each != name},
        {**hashes, "x": "0"},
    ):
        with pytest.raises(InputError, match="made for another base"):
            check_pack_base(pack, "PACK", pack_base(base, vocabulary=vocabulary, tensors=tensors))


def test_a_pack_that_moves_a_protected_row_is_refused(tmp_path):
    base = memory_base(tmp_path)
    pack = small_pack(base, rows=10)
    vocabulary = pack.header["vocabulary"]["hash"]
    with pytest.raises(InputError, match=r"PACK moves 1 rows of special or reserved tokens \(first: \[7\]\)"):
        check_pack_base(pack, "PACK", pack_base(base, vocabulary=vocabulary, protected=np.array([0, 1, 7])))
