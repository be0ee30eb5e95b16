"""Folding, dropping and tidying batches, on both formats, interrupted too."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest
from oracles.cooccurrence import count_pairs

from wals_spark import schemas
from wals_spark.config import CooccurrenceConfig
from wals_spark.cooccurrence import batches
from wals_spark.cooccurrence.semantics import semantics_of
from wals_spark.cooccurrence.stages import CooccurrenceStage
from wals_spark.errors import InputError
from wals_spark.stage import run_stage

pytestmark = pytest.mark.spark

SIZE = 20
FORMATS = ["parquet", pytest.param("delta", marks=pytest.mark.delta)]


def documents_of(seed):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, SIZE, rng.integers(2, 60)).tolist() for _ in range(10)]


def expected(*seeds, **options):
    semantics = semantics_of(CooccurrenceConfig(**options))
    total = Counter()
    for seed in seeds:
        total.update(count_pairs(list(enumerate(documents_of(seed))), semantics))
    return dict(total)


@pytest.fixture
def three(make_context, encode):
    """A warehouse with the batches a, b and c."""

    def make(**options):
        for seed, name in enumerate("abc"):
            context = make_context(corpus__batch_id=name, **options)
            encode(context, documents_of(seed), SIZE)
            run_stage(context, CooccurrenceStage())
        return make_context(**options)

    return make


def marginals_of(context, batch):
    files = context.tables.files(schemas.MARGINALS, {"batch_id": batch})
    table = pq.read_table(files[0].path)
    return dict(zip(table["token_id"].to_pylist(), table["row_units"].to_pylist(), strict=True))


@pytest.mark.parametrize("table_format", FORMATS)
def test_folding_gives_the_exact_sum_once(three, read_pairs, table_format):
    context = three(table_format=table_format)
    manifest = batches.compact(context, "sum", ["a", "b"])
    pairs = expected(0, 1)
    assert read_pairs(context, "sum") == pairs
    assert context.tables.values(schemas.COOCCURRENCE) == ["c", "sum"]
    assert context.manifests.keys("cooccurrence") == ["c", "sum"]
    assert manifest.outputs["nnz"] == len(pairs)
    assert manifest.outputs["total_units"] == sum(pairs.values())
    assert manifest.outputs["folded"] == ["a", "b"]
    rows = Counter()
    for (i, _), units in pairs.items():
        rows[i] += units
    assert marginals_of(context, "sum") == {i: rows[i] for i in range(SIZE)}
    assert batches.compact(context, "c", ["all"]).outputs["folded"] == ["a", "b", "c"]
    assert read_pairs(context, "c") == expected(0, 1, 2)


@pytest.mark.parametrize("again", [["a", "b"], ["b"], ["a", "b", "sum"]])
def test_folding_what_is_folded_is_done_already(three, caplog, again):
    context = three()
    first = batches.compact(context, "sum", ["a", "b"])
    with caplog.at_level("INFO"):
        assert batches.compact(context, "sum", again) == first
    assert "already done" in caplog.text
    assert batches.compact(context, "sum", ["all"]).outputs["folded"] == ["a", "b", "c"]
    caplog.clear()
    with caplog.at_level("INFO"):
        batches.compact(context, "sum", ["all"])
    assert "already done" in caplog.text


def test_a_folded_part_is_not_halved_or_pruned_again(three, read_pairs):
    options = {"diagonal": "once", "min_pair_count": 1.0}
    context = three(**{f"cooccurrence__{key}": value for key, value in options.items()})
    batches.compact(context, "sum")
    assert read_pairs(context, "sum") == expected(0, 1, 2, **options)


@pytest.mark.parametrize("at", ["cells", "marginals", "manifests"])
def test_an_interrupted_folding_is_finished_by_the_same_command(three, read_pairs, monkeypatch, at):
    context = three()

    def killed(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if at == "cells":
            patch.setattr(batches, "_fold_cells", killed)
        elif at == "marginals":
            patch.setattr(batches, "_fold_marginals", killed)
        else:
            patch.setattr(context.manifests, "remove", killed)
        with pytest.raises(KeyboardInterrupt):
            batches.compact(context, "a", ["a", "b", "c"])
    assert not context.manifests.find("cooccurrence", "a").complete
    with pytest.raises(InputError, match="was interrupted; finish it"):
        batches.compact(context, "a", ["b", "c"])
    batches.compact(context, "a", ["a", "b", "c"])
    assert read_pairs(context, "a") == expected(0, 1, 2)
    assert context.manifests.keys("cooccurrence") == ["a"]
    assert sum(marginals_of(context, "a").values()) == sum(expected(0, 1, 2).values())


def test_a_folded_batch_is_not_counted_again(three, make_context):
    context = three()
    batches.compact(context, "a", ["a", "b"])
    with pytest.raises(InputError, match="counting it again would lose them"):
        CooccurrenceStage().check(make_context(corpus__batch_id="a").config)
    with pytest.raises(InputError, match="would count its documents twice"):
        CooccurrenceStage().check(make_context(corpus__batch_id="b").config)
    CooccurrenceStage().check(make_context(corpus__batch_id="d").config)


def test_folding_refuses_what_it_cannot_mean(three):
    context = three()
    with pytest.raises(InputError, match="no complete batch x in"):
        batches.compact(context, "sum", ["a", "x"])
    with pytest.raises(InputError, match="'c' exists and is not among those to fold"):
        batches.compact(context, "c", ["a", "b"])
    with pytest.raises(InputError, match="cannot name a batch"):
        batches.compact(context, "../c", ["a", "b"])


@pytest.mark.parametrize("table_format", FORMATS)
def test_dropping_is_idempotent(three, table_format):
    context = three(table_format=table_format)
    assert batches.drop_batch(context, "b")
    assert not batches.drop_batch(context, "b")
    assert context.tables.values(schemas.COOCCURRENCE) == ["a", "c"]
    assert context.tables.values(schemas.MARGINALS) == ["a", "c"]
    assert context.manifests.keys("cooccurrence") == ["a", "c"]


def test_maintenance_keeps_every_table(three, read_pairs):
    context = three()
    done = batches.maintain(context)
    assert set(done) == {"vocabulary", "cooccurrence", "marginals", "metrics"}
    assert read_pairs(context, "a") == expected(0)
