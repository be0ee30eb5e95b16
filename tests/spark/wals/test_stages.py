"""The train stage over hand-made tables, in a local session with two slots."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from oracles import wals as oracle

from wals_spark import schemas
from wals_spark.errors import ConfigError, InputError
from wals_spark.factors.store import read_side
from wals_spark.objective import PRESETS
from wals_spark.runs import Manifest
from wals_spark.stage import run_stage
from wals_spark.tokenizer import vocabulary_hash
from wals_spark.wals.stages import TrainStage

pytestmark = pytest.mark.spark
SIZE, UNIT = 40, 2520

TOKENS = [f"t{i}" for i in range(SIZE)]


def symmetric_counts(seed: int = 0) -> np.ndarray:
    counts = np.random.default_rng(seed).poisson(0.6, (SIZE, SIZE)) * (UNIT // 2)
    counts = counts + counts.T
    counts[7] = 0
    counts[:, 7] = 0
    return counts


def write_counts(context: Any, batch: str, counts: np.ndarray, blocks: int = 3) -> None:
    """The tables and the manifest that the co-occurrence stage leaves."""
    with context.tables.staged_slice(schemas.COOCCURRENCE, {"batch_id": batch}) as staging:
        import os

        for block in range(blocks):
            rows, cols = np.nonzero(counts)
            mine = rows % blocks == block
            directory = f"{staging}/row_block={block}"
            os.makedirs(directory)
            pq.write_table(
                pa.table(
                    {
                        "row_id": rows[mine].astype(np.int32),
                        "col_id": cols[mine].astype(np.int32),
                        "units": counts[rows[mine], cols[mine]].astype(np.int64),
                    }
                ),
                f"{directory}/part-00000.parquet",
            )
    outputs = {
        "unit": UNIT,
        "symmetric": True,
        "vocabulary_size": SIZE,
        "vocabulary_hash": vocabulary_hash(TOKENS),
        "semantics": {"window": 10},
    }
    context.manifests.write(Manifest("cooccurrence", batch, "complete", f"print-{batch}", "r", outputs=outputs))
    vocabulary = pa.table(
        {
            "token_id": pa.array(range(SIZE), pa.int32()),
            "token": TOKENS,
            "count": pa.array(range(SIZE, 0, -1), pa.int64()),
            "document_count": pa.array([1] * SIZE, pa.int64()),
            "is_special": [False] * SIZE,
        }
    )
    context.tables.replace_rows(schemas.VOCABULARY, vocabulary, {})


def test_factors_minimise_the_reference_objective(make_context: Any) -> None:
    context = make_context(train__k=6, train__sweeps=60, train__tolerance=0)
    counts = symmetric_counts()
    write_counts(context, "default", counts)
    manifest, ran = run_stage(context, TrainStage())
    assert ran
    u, v = (read_side(context.tables, "default", side) for side in ("row", "col"))
    problem = oracle.dense_problem(PRESETS["ppmi"], counts / UNIT)
    b = np.zeros(SIZE)
    best = oracle.loss(problem, u.matrix, v.matrix, b, b)
    assert best == pytest.approx(manifest.outputs["loss"], rel=1e-4)
    improved, _ = oracle.half_step(problem, v.matrix, b)
    assert oracle.loss(problem, improved, v.matrix, b, b) > best * (1 - 1e-3)
    assert u.tokens[3] == "t3"
    assert u.counts[3] == SIZE - 3
    assert not u.matrix[7].any()
    assert manifest.outputs["empty_rows"] == 1
    assert not run_stage(context, TrainStage())[1]


def test_batches_are_summed_exactly(make_context: Any) -> None:
    first, second = symmetric_counts(1), symmetric_counts(2)
    context = make_context(train__k=4, train__sweeps=3, train__tolerance=0)
    write_counts(context, "a", first, blocks=2)
    write_counts(context, "b", second, blocks=3)
    apart = run_stage(context, TrainStage())[0].outputs["loss"]
    whole = make_context(train__k=4, train__sweeps=3, train__tolerance=0, run_id="sum", train__batches=["s"])
    write_counts(whole, "s", first + second)
    assert run_stage(whole, TrainStage())[0].outputs["loss"] == apart


def test_one_and_two_ranks_agree_bit_for_bit(make_context: Any) -> None:
    losses = []
    for workers in (1, 2):
        context = make_context(
            train__k=5, train__sweeps=4, train__tolerance=0, train__workers=workers, run_id=f"r{workers}"
        )
        write_counts(context, "default", symmetric_counts())
        manifest, _ = run_stage(context, TrainStage())
        assert manifest.outputs["ranks"] == workers
        losses.append((manifest.outputs["loss"], read_side(context.tables, f"r{workers}", "row").matrix.tobytes()))
    assert losses[0] == losses[1]


def test_more_factors_than_tokens_are_refused(make_context: Any) -> None:
    context = make_context(train__k=41)
    write_counts(context, "default", symmetric_counts())
    with pytest.raises(InputError, match=r"k is 41.*40 rows"):
        run_stage(context, TrainStage())


def test_more_workers_than_slots_are_refused(make_context: Any) -> None:
    context = make_context(train__k=4, train__workers=5)
    write_counts(context, "default", symmetric_counts())
    with pytest.raises(ConfigError, match=r"needs 5 concurrent tasks.*offers 2.*train.workers=2"):
        run_stage(context, TrainStage())


def test_negative_counts_name_the_file_and_the_rank(make_context: Any) -> None:
    context = make_context(train__k=4)
    counts = symmetric_counts()
    counts[2, 4] = -5
    write_counts(context, "default", counts)
    with pytest.raises(InputError, match=r"1 values are negative \(the least is -5\).*rank \d of 2 on"):
        run_stage(context, TrainStage())


def test_batches_counted_differently_are_refused(make_context: Any) -> None:
    context = make_context(train__k=4)
    write_counts(context, "a", symmetric_counts())
    other = context.manifests.require("cooccurrence", "a")
    context.manifests.write(Manifest(**{**other.__dict__, "key": "b", "outputs": {**other.outputs, "unit": 1}}))
    with pytest.raises(InputError, match=r"'a' and 'b' cannot be added: unit is 2520 and 1"):
        run_stage(context, TrainStage())


def test_given_targets_and_weights_take_the_place_of_the_counts(make_context: Any, tmp_path: Any) -> None:
    rng = np.random.default_rng(5)
    u, v = rng.standard_normal((SIZE, 2)), rng.standard_normal((SIZE, 2))
    row, col = np.nonzero(rng.random((SIZE, SIZE)) < 0.6)
    cells = {"row_id": row.astype(np.int32), "col_id": col.astype(np.int32)}
    table = pa.table({**cells, "target": (u @ v.T)[row, col], "weight": rng.uniform(0.5, 2, len(row))})
    path = str(tmp_path / "cells.parquet")
    pq.write_table(table, path)
    options = {"train__objective": "custom", "train__k": 2, "train__sweeps": 40, "train__regularization": 1e-5}
    options["train__precision"] = "float64"
    context = make_context(**options, train__cells=path)
    write_counts(context, "default", symmetric_counts())
    context.manifests.remove("cooccurrence", "default")
    context.manifests.write(Manifest("vocabulary", "default", "complete", "v", "r"))
    manifest, _ = run_stage(context, TrainStage())
    assert manifest.outputs["batches"] == [], "no counts are asked for"
    where = {"run_id": context.config.run_id}
    left, right = (read_side(context.tables, where["run_id"], side).matrix for side in ("row", "col"))
    assert np.abs((left @ right.T - u @ v.T)[row, col]).max() < 0.01
    with pytest.raises(ConfigError, match=r"custom needs train\.cells"):
        TrainStage().check(make_context(**options).config)
    with pytest.raises(ConfigError, match="there is no file at"):
        run_stage(make_context(**options, train__cells=path + "x"), TrainStage())
    pq.write_table(pa.concat_tables([table, table]), path)
    with pytest.raises(InputError, match="occur more than once"):
        run_stage(make_context(**options, train__cells=path), TrainStage())


def test_how_matrix_and_factors_are_held_is_configured_and_recorded(make_context: Any) -> None:
    holdings = {"auto": {}, "least": {"train__exchange": "sharded", "train__matrix": "streamed"}}
    losses = {}
    for name, keys in holdings.items():
        context = make_context(run_id=name, train__k=6, train__sweeps=3, train__workers=2, **keys)
        if name == "auto":
            write_counts(context, "default", symmetric_counts())
        outputs = run_stage(context, TrainStage())[0].outputs
        losses[name] = outputs["loss"]
        expected = ("replicated", "resident") if name == "auto" else ("sharded", "streamed")
        assert (outputs["exchange"], outputs["matrix"]) == expected
    assert losses["least"] == pytest.approx(losses["auto"], rel=1e-6)


def test_a_training_beyond_its_memory_is_refused_before_it_starts(make_context: Any) -> None:
    context = make_context(train__k=6, train__workers=2, train__memory_bytes=1 << 20)
    write_counts(context, "default", symmetric_counts())
    with pytest.raises(ConfigError, match=r"GiB per rank, factors \w+ and matrix \w+ .*lower train\.k"):
        run_stage(context, TrainStage())
