from __future__ import annotations

import numpy as np
import pytest

from wals_spark.checkpoints.outliers import compare_checkpoints, outlier_rows
from wals_spark.checkpoints.raw_tensor import from_values
from wals_spark.errors import InputError


def embeddings(seed=0, size=2000):
    generator = np.random.default_rng(seed)
    old = generator.standard_normal((size, 16)).astype(np.float32)
    new = old + (0.1 * generator.lognormal(0, 0.7, (size, 1)) * generator.standard_normal((size, 16))).astype(
        np.float32
    )
    return old, new


def test_a_single_changed_row_is_flagged():
    old, _ = embeddings()
    new = old.copy()
    new[17] += 0.01
    found = outlier_rows(old, new)
    assert (found.changed, found.rows.tolist(), found.reasons) == (1, [17], ("lonely",))
    assert found.lines(["x"] * 18) == ["row 17 'x' moved by 0.04: almost no other row changed"]


@pytest.mark.parametrize("seed", range(5))
def test_a_poisoned_row_among_many_changed_ones_is_flagged_and_alone(seed):
    old, new = embeddings(seed)
    assert outlier_rows(old, new).rows.tolist() == []
    new[31] = 40.0
    assert outlier_rows(old, new).rows.tolist() == [31]


def test_dividing_by_the_declared_shares_finds_what_hides_among_them():
    generator = np.random.default_rng(3)
    old = generator.standard_normal((2000, 16)).astype(np.float32)
    shares = generator.lognormal(-4, 1.2, 2000).clip(0.001, 0.9).astype(np.float32)
    new = old + shares[:, None] * generator.standard_normal((2000, 16)).astype(np.float32)
    row = int(np.argmin(shares))
    new[row] = old[row] + 0.2
    assert outlier_rows(old, new).rows.tolist() == []
    found = outlier_rows(old, new, shares)
    assert (found.rows.tolist(), found.reasons) == ([row], ("far",))
    shares[7] = 0
    assert 7 in outlier_rows(old, new, shares).rows


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_rounding_of_small_shares_is_no_outlier(dtype):
    generator = np.random.default_rng(4)
    old = from_values(generator.standard_normal((2000, 64)).astype(np.float32), dtype).values()
    proposed = old + 0.5 * generator.standard_normal((2000, 64)).astype(np.float32)
    shares = np.where(np.arange(2000) % 4, 0.3, np.geomspace(1e-5, 0.01, 2000)).astype(np.float32)
    new = from_values(old + shares[:, None] * (proposed - old), dtype).values()
    assert outlier_rows(old, new, shares).rows.tolist() == []


def test_a_grown_row_says_so():
    old, new = embeddings()
    new[3] *= 100 / np.linalg.norm(new[3])
    assert outlier_rows(old, new).reasons == ("long",)


def test_nothing_changed_is_nothing_suspicious():
    old, _ = embeddings()
    found = outlier_rows(old, old)
    assert found.to_json() == {"changed": 0, "rows": [], "displacement": [], "reasons": []}


def test_an_injection_is_not_suspicious_and_a_poisoned_copy_is(make_checkpoint, inject):
    from wals_spark.checkpoints.raw_tensor import replace_rows
    from wals_spark.checkpoints.safetensors_file import read_raw_tensors, write_raw_tensors

    name = "roberta.embeddings.word_embeddings.weight"
    base = make_checkpoint()
    directory, _ = inject(base, "replace")
    assert compare_checkpoints(str(base), str(directory)).rows.tolist() == []
    tensors, metadata = read_raw_tensors(directory / "model.safetensors")
    tensors = {key: type(t)(t.dtype, t.shape, t.data.copy()) for key, t in tensors.items()}
    tensors[name] = replace_rows(tensors[name], np.array([60]), np.full((1, 16), 3.0))
    write_raw_tensors(directory / "model.safetensors", tensors, metadata)
    assert compare_checkpoints(str(base), str(directory)).rows.tolist() == [60]


def test_checkpoints_of_different_size_are_refused(make_checkpoint):
    with pytest.raises(InputError, match="one vocabulary and width"):
        compare_checkpoints(str(make_checkpoint()), str(make_checkpoint("wide", hidden_size=32)))
