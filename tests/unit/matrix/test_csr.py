"""Cells to compressed rows."""

from __future__ import annotations

import numpy as np
import pytest

from wals_spark.errors import InputError
from wals_spark.matrix.csr import build_csr, sum_by


def cells(seed: int, count: int, rows: int, cols: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return (
        rng.integers(0, rows, count).astype(np.int32),
        rng.integers(0, cols, count).astype(np.int32),
        rng.integers(1, 1 << 40, count),
    )


def dense(rows: np.ndarray, cols: np.ndarray, values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    out = np.zeros(shape, values.dtype)
    np.add.at(out, (rows, cols), values)
    return out


@pytest.mark.parametrize("count", [0, 1, 7, 500], ids=lambda count: f"{count} cells")
def test_rows_hold_the_sums_of_repeated_cells(count: int) -> None:
    rows, cols, values = cells(3, count, 11, 13)
    csr = build_csr(rows, cols, values, 11)
    out = np.zeros((11, 13), np.int64)
    for i in range(11):
        part = slice(csr.indptr[i], csr.indptr[i + 1])
        assert (np.diff(csr.indices[part]) > 0).all()
        out[i, csr.indices[part]] = csr.values[part]
    assert np.array_equal(out, dense(rows, cols, values, (11, 13)))


def test_the_order_of_arrival_changes_nothing_for_floats() -> None:
    rows, cols, _ = cells(5, 400, 6, 5)
    values = np.random.default_rng(5).standard_normal(400)
    first = build_csr(rows, cols, values, 6)
    order = np.random.default_rng(6).permutation(400)
    second = build_csr(rows[order], cols[order], values[order], 6)
    assert first.values.tobytes() == second.values.tobytes()


def test_repeated_cells_can_be_refused() -> None:
    twice = np.array([1, 1], np.int32)
    with pytest.raises(InputError, match="1 cells of the matrix occur more than once"):
        build_csr(twice, twice, np.array([2, 3]), 2, duplicates="refuse")


def test_a_sum_beyond_int64_is_an_error_not_a_negative_number() -> None:
    twice = np.array([0, 0], np.int32)
    large = np.array([2**62, 2**62])
    with pytest.raises(InputError, match="exceeds 2\\^63"):
        build_csr(twice, twice, large, 1)
    with pytest.raises(InputError, match="exceeds 2\\^63"):
        sum_by(twice, large, 1)


def test_row_numbers_repeat_each_row_by_its_length() -> None:
    csr = build_csr(np.array([0, 2, 2], np.int32), np.array([1, 0, 3], np.int32), np.array([1, 1, 1]), 3)
    assert csr.row_numbers(0, 3).tolist() == [0, 2, 2]
    assert csr.row_numbers(1, 3).tolist() == [2, 2]
