"""Packs made of edits and of injected checkpoints."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pack_models import DESCRIBED, EMBEDDING, memory_base, moved_by

from wals_spark.checkpoints.artifact import FACTORS
from wals_spark.checkpoints.checkpoint import open_checkpoint
from wals_spark.checkpoints.domain_pack import dequantised, read_pack
from wals_spark.checkpoints.pack_making import check_pack_output, make_pack, pack_of_edit, publish_pack
from wals_spark.checkpoints.raw_tensor import from_values
from wals_spark.checkpoints.safetensors_file import read_raw_tensors
from wals_spark.errors import ConfigError, InputError

STATED = {"inject__exposure": "rank", "inject__head_bias": 0.5}
DTYPES = ["int8", "fp16", "fp32"]


@settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    ids=st.sets(st.integers(2, 11)),
    still=st.sets(st.integers(2, 11)),
    scale=st.sampled_from([1e-6, 1e-3, 1.0, 1e3]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
def test_rows_that_did_not_move_are_not_stored_and_the_error_is_the_one_stated(
    tmp_path, ids, still, scale, dtype, seed
):
    base = memory_base(tmp_path, seed=seed)
    ids = np.array(sorted(ids), np.int64)
    by = scale * np.random.default_rng(seed).standard_normal((len(ids), 4))
    by[np.isin(ids, sorted(still))] = 0
    edit = moved_by(base, ids, by)
    pack = pack_of_edit(base, edit, dtype, DESCRIBED)
    E0 = base.tensors[EMBEDDING].values().astype(np.float64)
    wanted = np.zeros_like(E0)
    wanted[ids] = edit.rows - E0[ids]
    moved = np.flatnonzero((wanted != 0).any(axis=1))
    assert np.array_equal(pack.ids, moved)
    assert len(pack.bias_ids) == 0
    stored = pack.rows.astype(np.float64) * (1 if pack.scales is None else pack.scales[:, None].astype(np.float64))
    lost = np.linalg.norm(wanted[moved] - (stored - (E0[moved] if dtype == "fp32" else 0)), axis=1)
    error = pack.header["error"]
    assert error["row_max"] == pytest.approx(lost.max(initial=0), rel=1e-6, abs=1e-300)
    assert error["row_rms"] == pytest.approx(np.sqrt((lost**2).mean()) if len(lost) else 0, rel=1e-6, abs=1e-300)
    assert error["relative_rms"] * np.linalg.norm(wanted) == pytest.approx(np.linalg.norm(lost), rel=1e-6, abs=1e-300)


def test_a_row_that_rounds_to_zeros_is_left_out_and_counted(tmp_path):
    base = memory_base(tmp_path, scale=1e-8)
    pack = pack_of_edit(base, moved_by(base, [3, 4], [[1e-9] * 4, [1.0] * 4]), "fp16", DESCRIBED)
    assert pack.ids.tolist() == [4]
    assert pack.header["error"]["rows_lost"] == 1


def test_a_move_beyond_fp16_is_refused_where_the_pack_is_made(tmp_path):
    base = memory_base(tmp_path)
    edit = moved_by(base, [2, 5], [[0.0] * 3 + [1.0], [0.0] * 3 + [70_000.0]])
    with pytest.raises(InputError, match=r"1 rows \(first: row 5\): one moved by more than fp16 can hold: take int8"):
        pack_of_edit(base, edit, "fp16", DESCRIBED)
    assert pack_of_edit(base, edit, "int8", DESCRIBED).ids.tolist() == [2, 5]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_rows_and_biases_that_are_not_finite_are_refused(tmp_path, value):
    base = memory_base(tmp_path)
    edit = moved_by(base, [2], np.ones(4))
    with pytest.raises(InputError, match=r"row 2\): one is not finite"):
        pack_of_edit(base, replace(edit, rows=np.full((1, 4), value, np.float32)), "int8", DESCRIBED)
    bias = np.zeros(12)
    bias[7] = value
    with pytest.raises(InputError, match=r"row 7\): one of the head bias is not finite"):
        pack_of_edit(base, replace(edit, head_bias=bias), "fp32", DESCRIBED)


def test_a_protected_row_is_refused(tmp_path):
    base = memory_base(tmp_path)
    with pytest.raises(InputError, match=r"1 rows of special or reserved tokens moved \(first: \[1\]\)"):
        pack_of_edit(base, moved_by(base, [1, 2], np.ones(8)), "int8", DESCRIBED)


def test_another_vocabulary_and_another_dtype_are_refused(tmp_path):
    base = memory_base(tmp_path)
    edit = moved_by(base, [2], np.ones(4))
    with pytest.raises(ConfigError, match="keeps the vocabulary, mode blend does not"):
        pack_of_edit(base, replace(edit, origin=np.arange(12)), "int8", DESCRIBED)
    with pytest.raises(ConfigError, match="dtype of a domain pack is 'int4', expected one of fp32, fp16, int8"):
        pack_of_edit(base, edit, "int4", DESCRIBED)


def test_a_sign_of_zero_alone_is_no_difference_but_a_value(tmp_path):
    base = memory_base(tmp_path)
    values = base.tensors[EMBEDDING].values().copy()
    values[4, 0] = 0.0
    base = replace(base, tensors={**base.tensors, EMBEDDING: from_values(values, "F32")})
    row = values[4:5].copy()
    row[0, 0] = -0.0
    edit = replace(moved_by(base, [4], np.zeros(4)), rows=row)
    assert [len(pack_of_edit(base, edit, dtype, DESCRIBED).ids) for dtype in DTYPES] == [0, 0, 1]


def test_bits_lost_fall_with_the_bits_kept(make_checkpoint, inject):
    base = make_checkpoint()
    directory, _ = inject(base, **STATED)
    directory, _ = inject(base, "replace", name="more", **STATED)
    errors = [make_pack(directory, str(base), dtype).header["error"]["relative_rms"] for dtype in DTYPES]
    assert errors[2] == 0
    assert 0 < errors[1] < 1e-3 < errors[0] < 1e-2


def test_a_pack_of_a_checkpoint_holds_its_differences_and_its_story(make_checkpoint, inject):
    base = make_checkpoint()
    directory, manifest = inject(base, "replace", **STATED)
    opened = open_checkpoint(str(base))
    pack = make_pack(directory, str(base), "fp16")
    assert len(pack.ids) == manifest["embedding"]["rows_changed"]
    ids, rows, bias = dequantised(pack)
    after, _ = read_raw_tensors(directory / "model.safetensors")
    E0, b0 = (opened.tensors[name].values() for name in (opened.embedding, opened.head_bias))
    assert np.allclose(after[opened.embedding].values()[ids], E0[ids] + rows, atol=1e-3)
    assert np.allclose(after[opened.head_bias].values(), b0 + bias, atol=1e-6)
    said = pack.header["injection"]
    assert said["mode"] == "replace"
    assert said["factors"] == manifest["factors"]
    assert said["fit"]["strengths"]["head_bias"] == 0.5
    assert said["parameters"]["seed"] == manifest["parameters"]["seed"]
    proof, _ = read_raw_tensors(directory / FACTORS)
    assert np.array_equal(pack.share, proof["share"].data.view("<f4")[ids])


@pytest.mark.parametrize("mode", ["init"])
def test_modes_without_moved_rows_are_refused(make_checkpoint, inject, mode):
    base = make_checkpoint()
    directory, _ = inject(base, mode)
    with pytest.raises(InputError, match=f"made by mode {mode}: a domain pack holds moved rows"):
        make_pack(directory, str(base))


def test_a_checkpoint_that_does_not_verify_is_refused(make_checkpoint, inject):
    base = make_checkpoint()
    directory, _ = inject(base)
    (directory / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"does not verify against .* notes\.txt"):
        make_pack(directory, str(base))


def test_a_checkpoint_of_another_base_is_refused(make_checkpoint, inject):
    directory, _ = inject(make_checkpoint())
    other = make_checkpoint("other", edit=lambda model: model.lm_head.dense.bias.fill_(1.0))
    with pytest.raises(InputError, match="is not the base that was recorded"):
        make_pack(directory, str(other))


def test_the_file_is_never_put_where_something_else_is(tmp_path, make_checkpoint, inject):
    base = make_checkpoint()
    directory, _ = inject(base)
    pack = make_pack(directory, str(base))
    with pytest.raises(ConfigError, match="lies in the checkpoint"):
        check_pack_output(str(directory / "pack"), str(directory), replace=True)
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(InputError, match="notes exists; choose another, or replace it with --overwrite"):
        publish_pack(str(tmp_path / "notes"), str(directory), pack, replace=False)
    with pytest.raises(InputError, match="notes is not a safetensors file"):
        publish_pack(str(tmp_path / "notes"), str(directory), pack, replace=True)
    with pytest.raises(InputError, match="is not a plain file"):
        publish_pack(str(base), str(directory), pack, replace=True)
    assert (tmp_path / "notes").read_text() == "mine"
    before = sorted(tmp_path.iterdir())
    size = publish_pack(str(tmp_path / "new" / "pack"), str(directory), pack, replace=False)
    assert (tmp_path / "new" / "pack").stat().st_size == size
    publish_pack(str(tmp_path / "new" / "pack"), str(directory), pack, replace=True)
    assert read_pack(tmp_path / "new" / "pack").sha256 == pack.sha256
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "new"])
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["pack"]
