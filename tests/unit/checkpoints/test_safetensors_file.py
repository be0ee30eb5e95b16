from __future__ import annotations

import json
import struct

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from wals_spark.checkpoints.raw_tensor import from_torch
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
