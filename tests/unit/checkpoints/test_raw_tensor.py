from __future__ import annotations

import numpy as np
import pytest
import torch

from wals_spark.checkpoints.raw_tensor import from_numpy, from_torch, from_values, replace_rows
from wals_spark.checkpoints.row_comparison import row_hashes
from wals_spark.errors import InputError


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


def test_quantised_tensors_have_no_values():
    with pytest.raises(InputError, match="before quantisation"):
        from_numpy([("ids", np.arange(4))])["ids"].values()


def test_replacing_rows_takes_one_copy_of_the_tensor_and_little_more():
    import tracemalloc

    values = np.ones((20_000, 256), np.float32)
    tensor = from_values(np.zeros((20_000, 256), np.float32), "BF16")
    tracemalloc.start()
    try:
        found = replace_rows(tensor, np.arange(20_000), values)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.same_bytes(from_values(values, "BF16"))
    assert peak < 4 * tensor.data.nbytes
