from __future__ import annotations

import numpy as np
import pytest

from wals_spark.factors.top_k import merge_top_k, no_answers, top_k, unit_rows


def plain(matrix, queries, count, allowed, exclude):
    """The definition, one pair at a time, in fp64."""
    answers = []
    for number, query in enumerate(queries):
        scored = []
        for index, row in enumerate(matrix):
            norm = np.linalg.norm(row) * np.linalg.norm(query)
            if np.linalg.norm(row) == 0 or not allowed[index] or index == exclude[number]:
                continue
            scored.append((-(row @ query) / norm, index))
        answers.append([index for _, index in sorted(scored)[:count]])
    return answers


@pytest.mark.parametrize("block", [7, 50, 1000])
def test_top_k_equals_the_definition_whatever_the_block(block):
    generator = np.random.default_rng(0)
    matrix = generator.normal(size=(300, 8)).astype(np.float32)
    matrix[::17] = 0
    allowed = generator.random(300) > 0.3
    exclude = np.array([0, 5, -1, 299])
    queries = matrix[[1, 5, 9, 299]]
    ids, cosine = top_k(queries, matrix, 6, cosine=True, allowed=allowed, exclude=exclude, block=block)
    assert ids.tolist() == plain(matrix.astype(np.float64), queries.astype(np.float64), 6, allowed, exclude)
    assert (np.diff(cosine, axis=1) <= 1e-6).all()


def test_ties_go_to_the_smaller_id():
    matrix = np.tile(np.array([[1.0, 0.0]]), (200, 1))
    for block in (3, 64, 500):
        ids, cosine = top_k(matrix[:1], matrix, 5, cosine=True, exclude=np.array([2]), block=block)
        assert ids.tolist() == [[0, 1, 3, 4, 5]]
        assert np.allclose(cosine, 1)


def test_fewer_answers_than_asked_for_are_marked():
    ids, cosine = top_k(np.eye(3)[:1], np.eye(3), 5, exclude=np.array([0]))
    assert ids.tolist() == [[1, 2, -1, -1, -1]]
    assert np.isnan(cosine[0, 2:]).all()


def test_zero_rows_and_zero_queries_do_no_harm():
    matrix = np.array([[0.0, 0.0], [1.0, 1.0]])
    ids, _ = top_k(matrix, matrix, 2, cosine=True)
    assert ids.tolist() == [[1, -1], [1, -1]]
    assert np.array_equal(unit_rows(matrix)[0], [0, 0])


def test_merge_of_parts_equals_the_whole():
    generator = np.random.default_rng(1)
    cosine = np.round(generator.normal(size=(3, 400)), 1).astype(np.float32)
    ids = np.tile(np.arange(400), (3, 1))
    empty = no_answers(3, 5)
    whole = merge_top_k(*empty, ids, cosine, 5)
    parts = merge_top_k(*merge_top_k(*empty, ids[:, 200:], cosine[:, 200:], 5), ids[:, :200], cosine[:, :200], 5)
    assert np.array_equal(whole[0], parts[0])
    assert np.array_equal(whole[0], np.lexsort((ids, -cosine), axis=1)[:, :5])


@pytest.mark.parametrize("block", [5, 33, 1000])
def test_products_are_sorted_falling_and_equal_ones_by_position(block):
    generator = np.random.default_rng(2)
    queries, items = (generator.integers(-2, 3, size=(rows, 4)).astype(np.float32) for rows in (9, 120))
    ids, products = top_k(queries, items, 7, block=block)
    whole = queries @ items.T
    expected = np.lexsort((np.broadcast_to(np.arange(120), whole.shape), -whole), axis=1)[:, :7]
    assert np.array_equal(ids, expected)
    assert np.array_equal(products, np.take_along_axis(whole, expected, 1))
