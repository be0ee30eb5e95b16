"""Fold-in beside the half-steps of the engine: the rows of a training, folded in, are its next half-step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wals_spark.cluster.process_group import LocalGroup
from wals_spark.factors.foldin import FixedMarginals, fold_in, log_mean
from wals_spark.matrix.csr import build_csr
from wals_spark.objective import PRESETS, Objective
from wals_spark.wals.engine import checkpoint
from wals_spark.wals.engine.rank import run
from wals_spark.wals.engine.task import RankTask

SHAPE, RANK = (25, 18), 5
Cells = tuple[np.ndarray, np.ndarray, np.ndarray]


class StopError(Exception):
    pass


@pytest.fixture(scope="module")
def cells() -> Cells:
    """Ratings of both signs, some pairs twice; user 3 has one rating, user 4 none, user 5 only negative ones."""
    rng = np.random.default_rng(0)
    row, col = np.nonzero(rng.random(SHAPE) < 0.4)
    other = (row != 3) & (row != 4)
    row, col = np.append(row[other], 3), np.append(col[other], 2)
    row, col = np.append(row, row[:30]).astype(np.int32), np.append(col, col[:30]).astype(np.int32)
    value = rng.choice([-1.0, 0.5, 1.0, 2.0, 4.0], len(row))
    value[row == 5] = -np.abs(value[row == 5])
    return row, col, value


@pytest.fixture
def train_until(tmp_path: Path, make_task: Callable[..., RankTask], cells: Cells) -> Callable[..., dict[str, Any]]:
    """Factors after some half-sweeps: the last one solved a side from the other as it is there."""

    def train(objective: Objective, duplicates: str, last: int) -> dict[str, np.ndarray]:
        path = tmp_path / "cells.parquet"
        pq.write_table(pa.table(dict(zip(("row_id", "col_id", "value"), cells, strict=True))), path)
        task = replace(
            make_task(np.eye(2), precision="float64", k=RANK),
            files=(str(path),), shape=SHAPE, objective=objective, duplicates=duplicates, value="value", signed=True,
        )  # fmt: skip

        def stop(half: int) -> None:
            if half == last:
                raise StopError

        with pytest.raises(StopError):
            run(task, LocalGroup(), stop)
        state = checkpoint.load(task.checkpoints, task.facts)
        assert state is not None
        return state.factors

    return train


BIASES = {"explicit": ("none", "free", "fixed"), "implicit": ("none", "free"), "ials": ("none", "free")}
CASES = [
    (name, bias, duplicates) for name, biases in BIASES.items() for bias in biases for duplicates in ("keep", "sum")
]


@pytest.mark.parametrize("side", ["row", "col"])
@pytest.mark.parametrize(("name", "bias", "duplicates"), CASES)
def test_the_rows_of_the_training_get_its_next_half_step(
    train_until: Callable[..., dict[str, np.ndarray]], cells: Cells, name: str, bias: str, duplicates: str, side: str
) -> None:
    objective = replace(PRESETS[name], bias=bias)
    factors = train_until(objective, duplicates, 3 if side == "row" else 4)
    row, col, value = cells
    fixed, (m, n) = factors["col"], SHAPE
    if side == "col":
        row, col, fixed, (m, n) = col, row, factors["row"], SHAPE[::-1]
    rows = build_csr(row, col, value, m, duplicates=duplicates)
    others = build_csr(col, row, value, n, duplicates=duplicates)

    def marginals_of(csr: Any) -> tuple[np.ndarray, np.ndarray]:
        number, count = csr.row_numbers(0, len(csr.lengths)), len(csr.lengths)
        observed = np.bincount(number[objective.counted(csr.values)], minlength=count)
        return np.bincount(number, csr.values, count), observed

    own, other = marginals_of(rows), marginals_of(others)
    marginals = FixedMarginals(*other, float(other[0].sum()), int(other[1].sum()), log_mean(*own))
    u, b = fold_in(rows, fixed[:, :RANK], objective, marginals, c=fixed[:, RANK] if bias == "free" else None)
    assert np.allclose(u, factors[side][:, :RANK], rtol=1e-7, atol=1e-9)
    if bias != "none":
        assert np.allclose(b, factors[side][:, RANK], rtol=1e-7, atol=1e-9)


def test_the_result_has_the_marginals_of_both_sides(make_task: Callable[..., RankTask]) -> None:
    counts = np.array([[3, 0, 1], [0, 0, 2], [0, 0, 0], [5, 0, 0]])
    task = make_task(counts, "implicit", k=2, sweeps=1)
    facts = run(task, LocalGroup())
    found = {}
    for side in ("row", "col"):
        table = pa.concat_tables([pq.read_table(entry["path"]) for entry in facts["files"] if entry["side"] == side])
        table = table.sort_by("token_id")
        found[side] = (table["sum"].to_pylist(), table["cells"].to_pylist())
    assert found == {"row": ([4, 2, 0, 5], [2, 1, 0, 1]), "col": ([8, 0, 3], [2, 0, 2])}
    assert (facts["total"], facts["nnz"]) == (11, 4)
    assert facts["log_means"]["row"] == pytest.approx(np.log([4, 2, 5]).mean())
