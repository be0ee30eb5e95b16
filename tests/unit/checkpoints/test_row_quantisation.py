"""Rows in fewer bits, and how far from the numbers they lie."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from wals_spark.checkpoints.row_quantisation import dequantise_rows, quantise_rows

ROWS = hnp.arrays(
    np.float64,
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=6),
    elements=st.floats(-(2.0**100), 2.0**100, width=32),
)


@settings(max_examples=300, deadline=None)
@given(ROWS)
def test_int8_errs_by_half_a_scale_at_most(rows):
    codes, scales = quantise_rows(rows, "int8")
    assert codes.dtype == np.int8
    assert codes.min() >= -127
    assert (np.abs(rows - dequantise_rows(codes, scales)) <= scales[:, None].astype(np.float64) / 2).all()


@settings(max_examples=300, deadline=None)
@given(ROWS)
def test_the_greatest_entry_of_a_row_has_the_greatest_code(rows):
    codes, scales = quantise_rows(rows, "int8")
    large = np.abs(rows).max(axis=1) > 1e-30  # below, a scale has too few bits to come near
    assert (np.abs(codes.astype(int)).max(axis=1)[large] == 127).all()
    assert np.allclose(scales[large], np.abs(rows).max(axis=1)[large] / 127, rtol=1e-6)


def test_a_row_of_zeros_has_scale_1():
    codes, scales = quantise_rows(np.zeros((2, 3)), "int8")
    assert codes.tolist() == [[0, 0, 0]] * 2
    assert scales.tolist() == [1, 1]


def test_the_least_positive_numbers_keep_the_bound():
    tiny = np.float64(np.finfo(np.float32).smallest_subnormal)
    rows = np.array([[tiny, 0], [tiny * 300, tiny * -130], [tiny * 126, tiny]])
    codes, scales = quantise_rows(rows, "int8")
    assert (np.abs(rows - dequantise_rows(codes, scales)) <= scales[:, None].astype(np.float64) / 2).all()


def test_ties_go_to_the_even_code():
    codes, scales = quantise_rows(np.array([[127.0, 0.5, 1.5, -0.5, -2.5]]), "int8")
    assert scales.tolist() == [1]
    assert codes.tolist() == [[127, 0, 2, 0, -2]]


def test_fp16_is_within_half_a_unit_in_the_last_place_and_infinite_beyond_its_range():
    rows = np.array([[1 + 2**-11, 1 + 3 * 2**-11, 65504.0, 65520.0]])
    stored, scales = quantise_rows(rows, "fp16")
    assert scales is None
    assert stored.dtype == np.float16
    assert stored.tolist() == [[1.0, 1 + 2 * 2**-10, 65504.0, np.inf]]


@pytest.mark.parametrize("dtype", ["fp16", "fp32", "int8"])
def test_no_rows_are_no_rows(dtype):
    stored, scales = quantise_rows(np.zeros((0, 4)), dtype)
    assert dequantise_rows(stored, scales).shape == (0, 4)


@settings(max_examples=100, deadline=None)
@given(ROWS)
def test_fp32_gives_numbers_of_32_bits_back(rows):
    assert np.array_equal(dequantise_rows(*quantise_rows(rows, "fp32")), rows)
