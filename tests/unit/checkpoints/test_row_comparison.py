from __future__ import annotations

import numpy as np

from wals_spark.checkpoints.raw_tensor import RawTensor, from_values
from wals_spark.checkpoints.row_comparison import differing_rows, displacements, row_hashes, row_norms


def test_a_row_hash_sees_one_bit():
    values = np.zeros((3, 2), np.float32)
    flipped = values.copy()
    flipped[2, 1] = -0.0
    before, after = row_hashes(from_values(values, "F32")), row_hashes(from_values(flipped, "F32"))
    assert np.flatnonzero(before != after).tolist() == [2]


def test_rows_are_compared_with_the_rows_they_come_from():
    before = np.array([[3.0, 4.0], [0.0, 1.0]], np.float32)
    after = np.array([[0.0, 1.0], [6.0, 8.0], [3.0, 4.5]], np.float32)
    origin = np.array([1, -1, 0])
    raw: list[RawTensor] = [from_values(values, "F32") for values in (before, after)]
    assert differing_rows(raw[0], raw[1], origin).tolist() == [False, True, True]
    assert displacements(before, after, origin).tolist() == [0.0, 10.0, 0.5]
    assert row_norms(before).tolist() == [5.0, 1.0]
