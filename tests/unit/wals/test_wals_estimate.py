"""Memory before it is needed."""

from __future__ import annotations

import pytest

from wals_spark.errors import ConfigError
from wals_spark.wals.estimate import check_memory, estimate_memory, machine_memory


def test_the_parts_follow_the_formula() -> None:
    estimate = estimate_memory(1_000_000, (2_000, 1_000), 64, 2, layouts=2)
    assert estimate.matrix == 2 * 500_000 * 12
    assert estimate.factors == (3_000 + 2_000) * 64 * 4
    assert estimate.loading == 500_000 * (100 + 12)
    assert estimate.peak == estimate.loading


def test_one_layout_and_one_rank_need_less() -> None:
    whole = estimate_memory(1_000_000, (2_000, 2_000), 64, 1, layouts=2)
    symmetric = estimate_memory(1_000_000, (2_000, 2_000), 64, 1, layouts=1)
    assert symmetric.matrix * 2 == whole.matrix
    assert symmetric.loading == 1_000_000 * 60


def test_what_does_not_fit_is_refused_with_both_numbers_and_the_keys() -> None:
    estimate = estimate_memory(10**9, (10**6, 10**6), 512, 4, layouts=1)
    with pytest.raises(ConfigError, match=r"needs about \d+\.\d GiB \(4 ranks.*has 8\.0 GiB; lower train\.k"):
        check_memory(estimate, 8 << 30, 4)
    check_memory(estimate, 1 << 40, 4)


def test_this_machine_has_some_memory() -> None:
    assert machine_memory() > 1 << 20
