import numpy as np
import pyarrow as pa
import pytest

from wals_spark.errors import InputError
from wals_spark.matrix.list_column import lists_of_length, lists_to_matrix, matrix_to_lists

MATRIX = np.arange(12, dtype=np.float32).reshape(4, 3)
TYPES = [pa.list_(pa.float32()), pa.large_list(pa.float32()), pa.list_(pa.float32(), 3)]


@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_every_list_type_becomes_a_matrix(kind):
    np.testing.assert_array_equal(lists_to_matrix(pa.array(MATRIX.tolist(), kind)), MATRIX)


@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_chunks_and_slices_keep_their_rows(kind):
    column = pa.array(MATRIX.tolist(), kind)
    chunked = pa.chunked_array([column[1:2], column[:0], column[2:]])
    np.testing.assert_array_equal(lists_to_matrix(chunked), MATRIX[1:])


def test_one_chunk_is_not_copied():
    column = matrix_to_lists(MATRIX)
    assert np.shares_memory(lists_to_matrix(column), MATRIX)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_a_matrix_comes_back_with_its_dtype(dtype):
    back = lists_to_matrix(matrix_to_lists(MATRIX.astype(dtype)))
    assert back.dtype == dtype
    np.testing.assert_array_equal(back, MATRIX)


def test_a_transposed_matrix_is_written_by_rows():
    np.testing.assert_array_equal(lists_to_matrix(matrix_to_lists(MATRIX.T)), MATRIX.T)


def test_no_rows():
    assert lists_to_matrix(pa.array([], pa.list_(pa.float32(), 3))).shape == (0, 3)
    assert lists_to_matrix(pa.chunked_array([], pa.list_(pa.float32()))).shape == (0, 0)
    assert len(matrix_to_lists(MATRIX[:0])) == 0


def test_no_columns():
    assert lists_to_matrix(matrix_to_lists(MATRIX[:, :0])).shape == (4, 0)


@pytest.mark.parametrize("chunks", [[[[1.0], [1.0, 2.0]]], [[[1.0]], [[1.0, 2.0]]]], ids=["one chunk", "two chunks"])
def test_ragged_lists_are_refused(chunks):
    column = pa.chunked_array([pa.array(chunk, pa.list_(pa.float32())) for chunk in chunks])
    with pytest.raises(InputError, match="column u: lists have 1 to 2 values"):
        lists_to_matrix(column, "u")


@pytest.mark.parametrize("rows", [[[1.0], None], [[1.0], [None]]], ids=["a list", "a value"])
def test_nulls_are_refused(rows):
    with pytest.raises(InputError, match="null"):
        lists_to_matrix(pa.array(rows, pa.list_(pa.float32())))


def test_lists_of_structures():
    pairs = pa.StructArray.from_arrays([pa.array([1, 2, 3, 4])], ["item"])
    assert lists_of_length(pairs, 2, 2).to_pylist() == [[{"item": 1}, {"item": 2}], [{"item": 3}, {"item": 4}]]


def test_more_values_than_a_list_array_can_have_are_refused():
    with pytest.raises(InputError, match="exceed"):
        lists_of_length(pa.array([], pa.int32()), 1 << 20, 1 << 12)
