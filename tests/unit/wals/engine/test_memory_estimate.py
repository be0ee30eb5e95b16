"""Memory before it is used, and the plan that fits it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from wals_spark.config import TrainConfig
from wals_spark.errors import ConfigError
from wals_spark.wals.engine.memory_estimate import ProblemSize, estimate_memory, plan_memory
from wals_spark.wals.engine.system_memory import machine_memory
from wals_spark.wals.partition.memory_plan import MemoryPlan

RESIDENT = MemoryPlan("replicated", "resident")
AUTO = TrainConfig()
RESIDENT_CONFIG = TrainConfig(exchange="replicated", matrix="resident")
SIZE = ProblemSize(50_000_000, (200_000, 100_000), 64, 2, layouts=2)
GIB = 1 << 30


def test_the_parts_follow_the_formula() -> None:
    estimate = estimate_memory(SIZE, RESIDENT)
    assert estimate.matrix == 2 * 25_000_000 * 12
    assert estimate.loading == 25_000_000 * (100 + 12)
    assert estimate.marginals == 300_000 * 64
    # Both sides, a rotated copy of the larger, four times the own rows, and the starting numbers in the making.
    assert estimate.factors == (300_000 + 200_000 + 4 * 100_000) * 64 * 4 + (1 << 27)
    assert estimate.process == 800 << 20
    assert estimate.peak == estimate.process + estimate.marginals + estimate.loading


def test_rows_that_are_not_whole_lines_are_copied() -> None:
    whole = estimate_memory(SIZE, RESIDENT).factors
    assert estimate_memory(replace(SIZE, biased=True), RESIDENT).factors == whole + 200_000 * 64 * 4
    odd = replace(SIZE, k=72)
    assert estimate_memory(odd, RESIDENT).factors == (300_000 + 2 * 200_000 + 4 * 100_000) * 72 * 4 + (1 << 27)


def test_one_layout_and_one_rank_need_less() -> None:
    whole = estimate_memory(replace(SIZE, ranks=1), RESIDENT)
    symmetric = estimate_memory(replace(SIZE, ranks=1, layouts=1), RESIDENT)
    assert symmetric.matrix * 2 == whole.matrix
    assert symmetric.loading == 50_000_000 * 60


@pytest.mark.parametrize(
    ("gib", "factors", "matrix"),
    [
        (16, "replicated", "resident"),
        (10, "replicated", "streamed"),
        (7, "sharded", "resident"),
        (3, "sharded", "streamed"),
    ],
)
def test_the_fastest_way_that_fits_is_taken(gib: int, factors: str, matrix: str) -> None:
    size = ProblemSize(800_000_000, (2_000_000, 2_000_000), 256, 16, layouts=2)
    plan, estimate = plan_memory(size, AUTO, gib * GIB)
    assert (plan.factors, plan.matrix) == (factors, matrix)
    assert estimate.peak <= gib * GIB


def test_what_is_asked_for_is_not_changed_and_sizes_its_blocks() -> None:
    plan, _ = plan_memory(SIZE, TrainConfig(exchange="sharded", matrix="streamed"), 2 * GIB)
    assert (plan.factors, plan.matrix) == ("sharded", "streamed")
    assert plan.block_cells == 2 * GIB // 8 // 60
    assert plan.fetched_rows == 2 * GIB // 8 // (6 * 64 * 4)
    ample, _ = plan_memory(SIZE, TrainConfig(exchange="replicated", matrix="streamed"), 500 * GIB)
    assert ample.block_cells == MemoryPlan().block_cells


def test_what_does_not_fit_is_refused_with_both_numbers_and_the_keys() -> None:
    big = ProblemSize(10**9, (10**6, 10**6), 512, 4, layouts=1)
    with pytest.raises(ConfigError, match=r"needs about \d+\.\d\d GiB per rank.*ranks has 2\.00 GiB; lower train\.k"):
        plan_memory(big, AUTO, 2 * GIB)
    with pytest.raises(ConfigError, match=r"train\.exchange=auto, or set train\.matrix=auto"):
        plan_memory(big, RESIDENT_CONFIG, 8 * GIB)
    plan_memory(big, RESIDENT_CONFIG, 1 << 40)


def test_an_objective_that_needs_everything_keeps_it_in_memory() -> None:
    with pytest.raises(ConfigError, match="factors replicated and matrix resident"):
        plan_memory(replace(SIZE, whole=True), AUTO, GIB)
    assert plan_memory(replace(SIZE, whole=True), AUTO, 4 * GIB)[0].matrix == "resident"


def test_one_rank_never_shards() -> None:
    plan, _ = plan_memory(replace(SIZE, ranks=1), AUTO, GIB)
    assert (plan.factors, plan.matrix) == ("replicated", "streamed")


def test_this_machine_has_some_memory() -> None:
    assert machine_memory() > 1 << 20
