from __future__ import annotations

import json
import struct

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from wals_spark.checkpoints.raw_tensor import from_numpy, from_torch, from_values, replace_rows
from wals_spark.checkpoints.row_comparison import row_hashes
from wals_spark.checkpoints.safetensors_file import read_raw_tensors, write_raw_tensors
from wals_spark.errors import InputError


def state():
    generator = torch.Generator().manual_seed(0)
    return {
        "half": torch.randn(3, 4, generator=generator).half(),
        "brain": torch.randn(5, 2, generator=generator).bfloat16(),
        "full": torch.randn(7, generator=generator),
        "double": torch.randn(2, 2, generator=generator).double(),
        "ids": torch.arange(6).reshape(1, 6),
        "flag": torch.tensor([True, False, True]),
        "scalar": torch.tensor(2.5),
    }


def test_reads_what_the_reference_writer_wrote_bit_by_bit(tmp_path):
    save_file(state(), tmp_path / "a.safetensors", {"format": "pt", "note": "x"})
    tensors, metadata = read_raw_tensors(tmp_path / "a.safetensors")
    expected = from_torch(state())
    assert metadata == {"format": "pt", "note": "x"}
    assert tensors.keys() == expected.keys()
    assert all(tensors[name].same_bytes(expected[name]) for name in expected)


def test_the_reference_reader_reads_what_we_write(tmp_path):
    write_raw_tensors(tmp_path / "b.safetensors", from_torch(state()), {})
    with safe_open(tmp_path / "b.safetensors", "pt") as opened:
        assert opened.metadata() == {"format": "pt"}
        for name, tensor in state().items():
            assert torch.equal(opened.get_tensor(name), tensor)
            assert opened.get_tensor(name).dtype == tensor.dtype


@pytest.mark.parametrize(("dtype", "kind"), [("BF16", torch.bfloat16), ("F16", torch.float16), ("F32", torch.float32)])
def test_rounding_is_that_of_torch(dtype, kind):
    values = np.random.default_rng(1).standard_normal(4000).astype(np.float32)
    values[:4] = [0.0, -0.0, 1e-30, 3.0e38 if dtype != "F16" else 60000.0]
    expected = from_torch({"x": torch.from_numpy(values).to(kind)})["x"]
    assert from_values(values, dtype).same_bytes(expected)
    assert np.array_equal(expected.values(), torch.from_numpy(values).to(kind).float().numpy())


def test_bfloat16_keeps_nan():
    assert np.isnan(from_values(np.array([np.nan, 1.0], np.float32), "BF16").values()).tolist() == [True, False]


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16", "F64"])
def test_replaced_rows_change_and_others_keep_their_bits(dtype):
    old = from_values(np.random.default_rng(2).standard_normal((6, 4)), dtype)
    new = replace_rows(old, np.array([1, 4]), np.ones((2, 4), np.float32))
    assert np.flatnonzero(row_hashes(old) != row_hashes(new)).tolist() == [1, 4]
    assert np.array_equal(new.values()[[1, 4]], np.ones((2, 4)))
    assert np.array_equal(old.rows[[0, 2, 3, 5]], new.rows[[0, 2, 3, 5]])


def test_a_row_hash_sees_one_bit():
    values = np.zeros((3, 2), np.float32)
    flipped = values.copy()
    flipped[2, 1] = -0.0
    before, after = row_hashes(from_values(values, "F32")), row_hashes(from_values(flipped, "F32"))
    assert np.flatnonzero(before != after).tolist() == [2]


@pytest.mark.parametrize("keep", [4, 40, -3])
def test_a_file_cut_short_is_named(tmp_path, keep):
    path = tmp_path / "cut.safetensors"
    save_file(state(), path)
    content = path.read_bytes()
    path.write_bytes(content[:keep])
    with pytest.raises(InputError, match=r"cut\.safetensors"):
        read_raw_tensors(path)


def test_an_unknown_dtype_is_named(tmp_path):
    header = json.dumps({"x": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}).encode()
    (tmp_path / "odd.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0")
    with pytest.raises(InputError, match="F4"):
        read_raw_tensors(tmp_path / "odd.safetensors")


def test_quantised_tensors_have_no_values():
    with pytest.raises(InputError, match="before quantisation"):
        from_numpy([("ids", np.arange(4))])["ids"].values()
