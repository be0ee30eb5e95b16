"""The file of a domain pack: what is in it, and what is refused."""

from __future__ import annotations

import contextlib
import json
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pack_models import BIAS, EMBEDDING, memory_base, small_pack

from wals_spark.checkpoints.artifact import manifest_sha256
from wals_spark.checkpoints.domain_pack import (
    DomainPack,
    dequantised,
    describe_pack,
    read_pack,
    sealed_pack,
    write_pack,
)
from wals_spark.checkpoints.raw_tensor import tensor_hashes
from wals_spark.checkpoints.safetensors_file import read_raw_tensors, write_raw_tensors
from wals_spark.errors import InputError

FUZZ = settings(
    max_examples=300, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
DTYPES = ["int8", "fp16", "fp32"]
ODD = [None, True, -1, 3, 1.5, "x", "", "\0", [], {}, [None], [1 << 70], {"x": None}, [3, 4], float("nan")]


def same(first: DomainPack, second: DomainPack) -> bool:
    arrays = [(getattr(first, name), getattr(second, name)) for name in ("ids", "rows", "bias_ids", "bias", "share")]
    scales = first.scales is second.scales or np.array_equal(first.scales, second.scales)
    return scales and first.header == second.header and all(np.array_equal(a, b) for a, b in arrays)


@pytest.fixture
def pack(tmp_path, request):
    return small_pack(memory_base(tmp_path), dtype=getattr(request, "param", "int8"))


@pytest.fixture
def file(tmp_path, pack):
    write_pack(tmp_path / "pack.safetensors", pack)
    return tmp_path / "pack.safetensors"


@pytest.mark.parametrize("pack", DTYPES, indirect=True)
def test_what_is_written_is_read(pack, file):
    assert same(read_pack(file), pack)


def test_the_same_pack_is_the_same_file(pack, file, tmp_path):
    write_pack(tmp_path / "again", read_pack(file))
    assert (tmp_path / "again").read_bytes() == file.read_bytes()


def test_anyone_can_read_it_with_safetensors(pack, file):
    tensors = safetensors.numpy.load_file(file)
    assert {name: str(value.dtype) for name, value in tensors.items()} == {
        "ids": "int32",
        "rows": "int8",
        "scales": "float32",
        "bias_ids": "int32",
        "bias": "float32",
        "share": "float32",
    }
    ids, rows, _ = dequantised(pack)
    assert np.array_equal(tensors["ids"], ids)
    assert np.array_equal(tensors["rows"] * tensors["scales"][:, None], rows)


def test_the_description_says_where_it_comes_from_and_what_it_loses(pack):
    header = pack.header
    assert header["format"] == "wals_spark domain pack"
    assert header["base"]["source"] == "base"
    assert {EMBEDDING, BIAS} < header["base"]["tensors"].keys()
    assert header["vocabulary"]["tokens"] == 6
    assert header["injection"]["mode"] == "blend"
    assert header["injection"]["run"] == {"run_id": "r"}
    assert 0 < header["error"]["row_rms"] <= header["error"]["row_max"]
    assert 0 < header["error"]["relative_rms"] < 0.01
    assert describe_pack(pack).startswith("5 rows and ")


def test_bert_base_in_int8_is_below_25_mb_when_every_row_moved(tmp_path):
    V, d = 30_522, 768
    tensors = {
        "ids": np.arange(V),
        "rows": np.ones((V, d), np.int8),
        "scales": np.ones(V, np.float32),
        "bias_ids": np.arange(V),
        "bias": np.zeros(V, np.float32),
        "share": np.ones(V, np.float32),
    }
    names = [
        f"bert.encoder.layer.{layer}.attention.output.LayerNorm.weight{i}" for layer in range(12) for i in range(16)
    ]
    described = {
        "dtype": "int8",
        "content": "differences",
        "base": {
            "source": "b",
            "embedding": "e",
            "head_bias": "h",
            "shape": [V, d],
            "tensors": dict.fromkeys(names, "0" * 64),
        },
        "vocabulary": {"tokens": V, "hash": "h"},
        "error": {"relative_rms": 0.0},
        "injection": {"mode": "fit"},
    }
    write_pack(tmp_path / "pack", sealed_pack(tensors, described))
    assert (tmp_path / "pack").stat().st_size < 25_000_000
    assert len(read_pack(tmp_path / "pack").ids) == V


def test_differences_of_values_need_the_base(tmp_path):
    base = memory_base(tmp_path)
    pack = small_pack(base, dtype="fp32")
    with pytest.raises(InputError, match="give its base"):
        dequantised(pack)
    opened = SimpleNamespace(tensors=base.tensors, embedding=EMBEDDING, head_bias=BIAS)
    ids, rows, bias = dequantised(pack, opened)
    E0, b0 = base.tensors[EMBEDDING].values(), base.tensors[BIAS].values()
    assert np.allclose(rows, pack.rows - E0[ids], atol=1e-7)
    assert np.allclose(bias[pack.bias_ids], pack.bias - b0[pack.bias_ids], atol=1e-7)
    assert not bias[np.setdiff1d(np.arange(12), pack.bias_ids)].any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_pack_of_nothing_is_written_and_read(tmp_path, dtype):
    pack = small_pack(memory_base(tmp_path), rows=0, dtype=dtype)
    write_pack(tmp_path / "pack", pack)
    assert read_pack(tmp_path / "pack").rows.shape == (0, 4)


def test_another_kind_of_file_is_named(tmp_path):
    (tmp_path / "text").write_text("hello")
    write_raw_tensors(tmp_path / "other", {}, {})
    for name, message in (
        ("text", "not a safetensors file"),
        ("other", "no domain pack"),
        ("nothing", "is not a file"),
    ):
        with pytest.raises(InputError, match=message):
            read_pack(tmp_path / name)
    with pytest.raises(InputError, match="is not a file"):
        read_pack(tmp_path)


def test_one_changed_number_is_refused_with_both_hashes(file):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"has the SHA-256 [0-9a-f]{64}, expected [0-9a-f]{64}: it is damaged"):
        read_pack(file)


def test_a_changed_description_is_refused(file, pack):
    forge(file, {**pack.header, "injection": {"mode": "fit"}}, sign=False)
    with pytest.raises(InputError, match=r"description has the SHA-256 .* damaged or was edited"):
        read_pack(file)


def test_a_newer_format_is_refused(file, pack):
    forge(file, {**pack.header, "format_version": 2})
    with pytest.raises(InputError, match="has format 2, this version reads up to 1"):
        read_pack(file)


def forge(file, header, *, sign=True, **tensors):
    """Write a pack with another description or other tensors, with right hashes as a careful forger would."""
    from wals_spark.checkpoints.raw_tensor import from_numpy

    raw, _ = read_raw_tensors(file)
    raw = {name: type(value)(value.dtype, value.shape, np.array(value.data)) for name, value in raw.items()}
    for name, value in tensors.items():
        if value is None:
            del raw[name]
        else:
            raw |= from_numpy([(name, value)])
    header = dict(header)
    if tensors:
        header["tensors"] = tensor_hashes(raw)
    if sign:
        header["sha256"] = manifest_sha256(header)
    write_raw_tensors(file, raw, {"domain_pack": json.dumps(header)})


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"ids": np.array([2, 3, 4, 5, 12], np.int32)}, "ids must ascend from 0 to 11"),
        ({"ids": np.array([2, 3, 4, 4, 5], np.int32)}, "ids must ascend"),
        ({"ids": np.array([-1, 3, 4, 5, 6], np.int32)}, "ids must ascend"),
        ({"ids": np.array([2, 3, 4, 5], np.int32)}, r"rows has shape \[5, 4\], expected \[4, 4\]"),
        ({"ids": np.array([2.0, 3, 4, 5, 6], np.float32)}, "ids is F32"),
        ({"rows": np.zeros((5, 4), np.float32)}, "rows is F32"),
        ({"rows": np.zeros((5, 3), np.int8)}, r"rows has shape \[5, 3\]"),
        ({"rows": np.full((5, 4), -128, np.int8)}, "rows hold numbers"),
        ({"rows": None}, "holds the tensors"),
        ({"more": np.zeros(3, np.float32)}, "holds the tensors"),
        ({"scales": None}, "holds the tensors"),
        ({"scales": np.zeros(5, np.float32)}, "scales hold numbers"),
        ({"scales": np.full(5, np.nan, np.float32)}, "scales hold numbers"),
        ({"scales": np.ones((5, 1), np.float32)}, r"scales is F32 \[5, 1\]"),
        ({"bias": np.zeros(50, np.float32)}, "bias has shape"),
        ({"bias_ids": np.zeros(0, np.int32), "bias": np.full(1, np.inf, np.float32)}, "bias has shape"),
        ({"share": np.full(5, np.inf, np.float32)}, "share hold numbers"),
    ],
)
def test_a_forged_tensor_is_named(file, pack, tensors, message):
    forge(file, pack.header, **tensors)
    with pytest.raises(InputError, match=message):
        read_pack(file)


@pytest.mark.parametrize("pack", ["fp16", "fp32"], indirect=True)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite_are_refused(file, pack, value):
    rows = np.array(pack.rows)
    rows[3, 1] = value
    forge(file, pack.header, rows=rows)
    with pytest.raises(InputError, match="rows hold numbers that no pack has"):
        read_pack(file)


@pytest.mark.parametrize("key", ["dtype", "content", "base.shape", "base.tensors", "vocabulary.hash", "injection.mode"])
def test_a_key_that_is_missing_or_of_another_kind_is_named(file, pack, key):
    *outer, last = key.split(".")
    for odd in (None, 3.5, "other"):
        header = json.loads(json.dumps(pack.header))
        inner = header[outer[0]] if outer else header
        inner[last] = odd
        if odd == "other" and last in ("hash", "mode"):
            continue
        forge(file, header)
        with pytest.raises(InputError, match=last):
            read_pack(file)


def paths_of(value):
    if not isinstance(value, dict):
        return []
    return [(key, *rest) for key in value for rest in [(), *paths_of(value[key])]]


def ours(call):
    with contextlib.suppress(InputError):
        call()


def test_every_key_of_the_description_may_be_missing_or_anything(file, pack):
    for path in paths_of(pack.header):
        for odd in [(), *((value,) for value in ODD)]:
            header = json.loads(json.dumps(pack.header))
            inner = header
            for key in path[:-1]:
                inner = inner[key]
            if odd:
                inner[path[-1]] = odd[0]
            else:
                del inner[path[-1]]
            forge(file, header, sign=path != ("sha256",))
            ours(lambda: describe_pack(read_pack(file)))


@FUZZ
@given(place=st.integers(0, 1 << 20), content=st.binary(min_size=1, max_size=12), cut=st.booleans())
def test_no_damage_is_read_as_another_pack(file, pack, place, content, cut):
    good = file.read_bytes()
    place %= len(good)
    file.write_bytes(good[:place] + content + (b"" if cut else good[place + len(content) :]))
    try:
        ours(lambda: _must_be(read_pack(file), pack))
    finally:
        file.write_bytes(good)


def _must_be(found, pack):
    assert same(found, pack)


@FUZZ
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=8,
    )
)
def test_no_json_raises_anything_else(file, pack, value):
    if isinstance(value, dict):
        value = {**pack.header, **value}
    raw, _ = read_raw_tensors(file)
    write_raw_tensors(file.with_name("odd"), raw, {"domain_pack": json.dumps(value)})
    ours(lambda: read_pack(file.with_name("odd")))
