"""Factors that a training starts from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wals_spark.cluster.process_group import LocalGroup
from wals_spark.wals.engine.rank import run
from wals_spark.wals.engine.task import RankTask


@pytest.mark.parametrize("initial", [False, True])
def test_no_sweep_gives_starting_factors_of_both_sides(
    tmp_path: Path,
    make_task: Callable[..., RankTask],
    result_of: Callable[[RankTask], dict[str, np.ndarray]],
    initial: bool,
) -> None:
    counts = np.array([[3, 0, 1], [0, 0, 2], [0, 0, 0], [5, 0, 0]])
    path = tmp_path / "initial.parquet"
    pq.write_table(pa.table({"id": [0], "vector": [[2.0, 3.0]]}), path)
    changes = {"initial": str(path)} if initial else {}
    task = make_task(counts, "implicit", k=2, start="positive", canonical=False, start_only=True, **changes)
    assert run(task, LocalGroup())["losses"] == []
    factors = result_of(task)
    filled = np.array([True, True, False, True])
    assert np.allclose(np.linalg.norm(factors["row"], axis=1), filled)
    assert (factors["row"][filled] > 0).all()
    assert np.allclose(factors["col"][0], [2.0, 3.0]) == initial
    assert np.linalg.norm(factors["col"][2]) == pytest.approx(1.0)
