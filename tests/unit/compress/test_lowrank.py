from __future__ import annotations

import numpy as np
import pytest
import torch

from wals_spark.checkpoints.raw_tensor import from_values
from wals_spark.compress import lowrank

V, D, R = 200, 24, 12


def make(dtype="F32", scale=1.0, shift=0.3, seed=0):
    generator = np.random.default_rng(seed)
    coordinates = scale * generator.standard_normal((V, R)) * np.logspace(0, -6, R)
    return lowrank.round_to_grids(
        coordinates, generator.standard_normal((R, D)), shift + generator.standard_normal(D), dtype
    )


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "F64"])
@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.3), (1e-9, 5.0), (300.0, 0.0)])
def test_the_expansion_has_the_same_bits_whatever_the_order_of_summation(dtype, scale, shift):
    factors = make(dtype, scale, shift)
    order = np.random.default_rng(1).permutation(R)
    exact = np.zeros((V, D))
    for k in order:
        exact += np.outer(factors.coordinates[:, k], factors.basis[k])
    exact += factors.mean
    other_way = factors.mean + sum(np.outer(factors.coordinates[:, k], factors.basis[k]) for k in range(R))
    assert np.array_equal(exact, other_way)
    rows = exact if dtype == "F64" else exact.astype(np.float32)
    assert from_values(rows, dtype).same_bytes(factors.expand())


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_torch_expands_to_the_same_bits(dtype):
    from wals_spark.compress.plugin import Expand

    factors = make(dtype)
    torch_type = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[dtype]
    given = {
        name: [torch.from_numpy(tensor.values().copy()).to(torch_type)] for name, tensor in factors.tensors().items()
    }
    found = Expand().convert(given, list(given), ["weight"])["weight"]
    assert found.dtype == torch_type
    assert np.array_equal(found.contiguous().view(torch.uint8).numpy().reshape(-1), factors.expand().data)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "F64"])
def test_what_is_stored_is_what_is_computed_with(dtype):
    factors = make(dtype)
    again = lowrank.from_tensors(*factors.tensors().values())
    assert np.array_equal(again.coordinates, factors.coordinates)
    assert again.expand().same_bytes(factors.expand())


def test_rounding_costs_two_millionths():
    generator = np.random.default_rng(3)
    A, B, mean = generator.standard_normal((V, R)), generator.standard_normal((R, D)), generator.standard_normal(D)
    factors = lowrank.round_to_grids(A, B, mean, "F32")
    exact = A @ B + mean
    assert np.linalg.norm(factors.expand().values() - exact) < 2e-6 * np.linalg.norm(exact)


def test_parameters_and_bytes_are_those_of_the_three_tensors():
    factors = make("F16")
    assert factors.parameters == sum(np.prod(tensor.shape) for tensor in factors.tensors().values())
    assert factors.bytes == sum(tensor.data.nbytes for tensor in factors.tensors().values())
    assert lowrank.parameter_count(50_265, 768, 512) == 26_129_664


def test_zeros_are_stored_as_zeros():
    factors = lowrank.round_to_grids(np.zeros((3, 2)), np.zeros((2, 4)), np.zeros(4), "F32")
    assert not factors.expand().values().any()


def test_small_numbers_survive_beside_large_ones():
    factors = lowrank.round_to_grids(np.array([[1e-3], [1.0]]), np.array([[1.0, 1e-4]]), np.zeros(2), "F32")
    np.testing.assert_allclose(factors.expand().values()[0], [1e-3, 1e-7], rtol=1e-2)
