"""Which rank owns which row."""

from __future__ import annotations

import numpy as np
import pytest

from wals_spark.matrix.placement import assign_rows


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_ranks_differ_by_less_than_the_longest_row(ranks: int) -> None:
    cells = np.random.default_rng(0).zipf(1.3, 5000).clip(max=20_000)
    owner = assign_rows(cells, 64, ranks)
    work = np.bincount(owner, weights=cells + 64 / 3, minlength=ranks)
    assert work.max() - work.min() <= cells.max() + 64 / 3


def test_no_row_gives_no_owner() -> None:
    assert assign_rows(np.zeros(0, np.int64), 8, 2).tolist() == []
