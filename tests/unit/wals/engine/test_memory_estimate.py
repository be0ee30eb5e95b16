"""Memory before it is needed, and what is held where."""

from __future__ import annotations

from dataclasses import replace

import pytest

from wals_spark.errors import ConfigError
from wals_spark.wals.engine.memory_estimate import Problem, choose, estimate_memory, machine_memory
from wals_spark.wals.partition.memory_plan import Holding

RESIDENT = Holding("replicated", "resident")
PROBLEM = Problem(50_000_000, (200_000, 100_000), 64, 2, layouts=2)
GIB = 1 << 30


def test_the_parts_follow_the_formula() -> None:
    estimate = estimate_memory(PROBLEM, RESIDENT)
    assert estimate.matrix == 2 * 25_000_000 * 12
    assert estimate.loading == 25_000_000 * (100 + 12)
    assert estimate.marginals == 300_000 * 64
    # Both sides, a turned copy of the larger, four times the own rows, and the starting numbers in the making.
    assert estimate.factors == (300_000 + 200_000 + 4 * 100_000) * 64 * 4 + (1 << 27)
    assert estimate.process == 800 << 20
    assert estimate.peak == estimate.process + estimate.marginals + estimate.loading


def test_rows_that_are_not_whole_lines_are_copied() -> None:
    whole = estimate_memory(PROBLEM, RESIDENT).factors
    assert estimate_memory(replace(PROBLEM, biased=True), RESIDENT).factors == whole + 200_000 * 64 * 4
    odd = replace(PROBLEM, k=72)
    assert estimate_memory(odd, RESIDENT).factors == (300_000 + 2 * 200_000 + 4 * 100_000) * 72 * 4 + (1 << 27)


def test_one_layout_and_one_rank_need_less() -> None:
    whole = estimate_memory(replace(PROBLEM, ranks=1), RESIDENT)
    symmetric = estimate_memory(replace(PROBLEM, ranks=1, layouts=1), RESIDENT)
    assert symmetric.matrix * 2 == whole.matrix
    assert symmetric.loading == 50_000_000 * 60


@pytest.mark.parametrize(
    ("gib", "exchange", "matrix"),
    [
        (16, "replicated", "resident"),
        (10, "replicated", "streamed"),
        (7, "sharded", "resident"),
        (3, "sharded", "streamed"),
    ],
)
def test_the_fastest_way_that_fits_is_taken(gib: int, exchange: str, matrix: str) -> None:
    problem = Problem(800_000_000, (2_000_000, 2_000_000), 256, 16, layouts=2)
    holding, estimate = choose(problem, Holding(), gib * GIB)
    assert (holding.exchange, holding.matrix) == (exchange, matrix)
    assert estimate.peak <= gib * GIB
    assert holding.settled


def test_what_is_asked_for_is_not_changed_and_sizes_its_blocks() -> None:
    holding, _ = choose(PROBLEM, Holding("sharded", "streamed"), 2 * GIB)
    assert (holding.exchange, holding.matrix) == ("sharded", "streamed")
    assert holding.block_cells == 2 * GIB // 8 // 60
    assert holding.fetched_rows == 2 * GIB // 8 // (6 * 64 * 4)
    ample, _ = choose(PROBLEM, Holding("replicated", "streamed"), 500 * GIB)
    assert ample.block_cells == Holding().block_cells


def test_what_does_not_fit_is_refused_with_both_numbers_and_the_keys() -> None:
    big = Problem(10**9, (10**6, 10**6), 512, 4, layouts=1)
    with pytest.raises(ConfigError, match=r"needs about \d+\.\d\d GiB per rank.*ranks has 2\.00 GiB; lower train\.k"):
        choose(big, Holding(), 2 * GIB)
    with pytest.raises(ConfigError, match=r"train\.exchange=auto, or set train\.matrix=auto"):
        choose(big, RESIDENT, 8 * GIB)
    choose(big, RESIDENT, 1 << 40)


def test_an_objective_that_needs_everything_is_held_whole() -> None:
    with pytest.raises(ConfigError, match="factors replicated and matrix resident"):
        choose(replace(PROBLEM, whole=True), Holding(), GIB)
    assert choose(replace(PROBLEM, whole=True), Holding(), 4 * GIB)[0].matrix == "resident"


def test_one_rank_never_shards() -> None:
    holding, _ = choose(replace(PROBLEM, ranks=1), Holding(), GIB)
    assert (holding.exchange, holding.matrix) == ("replicated", "streamed")


def test_this_machine_has_some_memory() -> None:
    assert machine_memory() > 1 << 20
