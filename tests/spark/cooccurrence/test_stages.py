"""The stage on both table formats."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from oracles.cooccurrence import count_pairs

from wals_spark import schemas, token_shards
from wals_spark.config import CooccurrenceConfig
from wals_spark.cooccurrence import plan
from wals_spark.cooccurrence.count_matrix import read_matrix
from wals_spark.cooccurrence.explain import explain
from wals_spark.cooccurrence.semantics import semantics_of
from wals_spark.cooccurrence.stages import CooccurrenceStage
from wals_spark.errors import InputError
from wals_spark.stage import run_stage

pytestmark = pytest.mark.spark

SIZE = 30
FORMATS = ["parquet", pytest.param("delta", marks=pytest.mark.delta)]


def random_documents(seed, documents=25, length=80):
    rng = np.random.default_rng(seed)
    return [rng.integers(-1, SIZE, rng.integers(0, length)).tolist() for _ in range(documents)]


def expected(documents, **options):
    return count_pairs(list(enumerate(documents)), semantics_of(CooccurrenceConfig(**options)))


@pytest.fixture(params=["shuffled", "direct"])
def way(request, monkeypatch):
    """Both ways of counting: tasks share the tokens, or the rows."""
    if request.param == "shuffled":
        monkeypatch.setattr(plan, "DIRECT_TASKS", 0)
    return request.param


@pytest.mark.parametrize("table_format", FORMATS)
def test_counts_equal_brute_force(make_context, encode, read_pairs, table_format, way):
    context = make_context(table_format=table_format)
    documents = random_documents(1)
    encode(context, documents, SIZE)
    manifest, ran = run_stage(context, CooccurrenceStage())
    assert ran
    pairs = expected(documents)
    assert read_pairs(context) == pairs
    assert manifest.outputs["nnz"] == len(pairs)
    assert manifest.outputs["total_units"] == sum(pairs.values())
    assert manifest.outputs["unit"] == 2520
    assert manifest.outputs["symmetric"]
    assert manifest.outputs["tokens"] == sum(map(len, documents))
    assert manifest.outputs["documents"] == len(documents)
    assert manifest.outputs["work"]["shuffled"] == (way == "shuffled")
    assert not run_stage(context, CooccurrenceStage())[1]


@pytest.mark.parametrize("table_format", FORMATS)
def test_a_row_lies_in_one_block_and_files_are_sorted(make_context, encode, table_format, way):
    context = make_context(table_format=table_format, cooccurrence__blocks=5)
    encode(context, random_documents(2), SIZE)
    run_stage(context, CooccurrenceStage())
    block_of = {}
    for data_file in context.tables.files(schemas.COOCCURRENCE, {"batch_id": "default"}):
        table = pq.ParquetFile(data_file.path).read()
        keys = list(zip(table["row_id"].to_pylist(), table["col_id"].to_pylist(), strict=True))
        assert keys == sorted(set(keys))
        block = int(data_file.values["row_block"])
        for row, _ in keys:
            assert block_of.setdefault(row, block) == block
    assert set(block_of.values()) == set(range(5))


@pytest.mark.parametrize("table_format", FORMATS)
def test_marginals(make_context, encode, table_format, way):
    options = {"window_left": 1, "window_right": 4}
    context = make_context(table_format=table_format, **{f"cooccurrence__{k}": v for k, v in options.items()})
    documents = random_documents(3)
    encode(context, documents, SIZE)
    manifest, _ = run_stage(context, CooccurrenceStage())
    assert not manifest.outputs["symmetric"]
    rows, cols = Counter(), Counter()
    for (i, j), units in expected(documents, **options).items():
        rows[i] += units
        cols[j] += units
    found = context.tables.read(schemas.MARGINALS, {"batch_id": "default"}).collect()
    assert {row.token_id: (row.row_units, row.col_units) for row in found} == {
        i: (rows[i], cols[i]) for i in range(SIZE)
    }


def test_any_number_of_shards_and_blocks_gives_the_same(make_context, encode, read_pairs, way):
    documents = random_documents(4)
    for shards, blocks in ((1, 1), (3, 7)):
        context = make_context(cooccurrence__blocks=blocks)
        encode(context, documents, SIZE, shards=shards)
        run_stage(context, CooccurrenceStage(), force=True)
        assert read_pairs(context) == expected(documents)


def test_documents_without_pairs_give_an_empty_matrix(make_context, encode, way):
    context = make_context()
    encode(context, [[1], [], [2], [-1]], SIZE)
    manifest, _ = run_stage(context, CooccurrenceStage())
    assert manifest.outputs["nnz"] == 0
    assert context.tables.read(schemas.COOCCURRENCE, {"batch_id": "default"}).count() == 0


def test_a_batch_with_other_semantics_is_refused(make_context, encode, read_pairs):
    first = make_context(corpus__batch_id="a")
    encode(first, random_documents(5), SIZE)
    run_stage(first, CooccurrenceStage())
    second = make_context(corpus__batch_id="b", cooccurrence__window_left=5)
    encode(second, random_documents(6), SIZE)
    with pytest.raises(InputError, match="window_left is 5 here and 10 there"):
        run_stage(second, CooccurrenceStage())
    assert read_pairs(first, "a") == expected(random_documents(5))


def test_a_batch_with_another_vocabulary_is_refused(make_context, encode):
    first = make_context(corpus__batch_id="a")
    encode(first, random_documents(5), SIZE)
    run_stage(first, CooccurrenceStage())
    second = make_context(corpus__batch_id="b")
    encode(second, random_documents(6), SIZE, tokens=[f"other{i}" for i in range(SIZE)])
    with pytest.raises(InputError, match=r"the vocabulary is .* here and .* there"):
        run_stage(second, CooccurrenceStage())


def test_a_vocabulary_that_only_grew_is_the_same(make_context, encode):
    first = make_context(corpus__batch_id="a")
    encode(first, random_documents(5), SIZE)
    run_stage(first, CooccurrenceStage())
    second = make_context(corpus__batch_id="b")
    encode(second, random_documents(6), SIZE + 4)
    assert run_stage(second, CooccurrenceStage())[1]


def test_a_batch_counted_after_the_vocabulary_grew_carries_the_grown_one(make_context, encode):
    """Encoded as a, b; counted as a, b: the manifest of a speaks of the vocabulary that its counts have rows for."""
    first, second = make_context(corpus__batch_id="a"), make_context(corpus__batch_id="b")
    encode(first, random_documents(5), SIZE)
    encode(second, random_documents(6), SIZE + 4)
    counted = [run_stage(context, CooccurrenceStage())[0].outputs for context in (first, second)]
    assert [outputs["vocabulary_size"] for outputs in counted] == [SIZE + 4, SIZE + 4]
    assert counted[0]["vocabulary_hash"] == counted[1]["vocabulary_hash"]


def test_counts_that_could_overflow_are_refused(make_context, encode):
    context = make_context(cooccurrence__unit_bits=48)
    documents = [[0] * 60_000]
    encode(context, documents, 1)
    with pytest.raises(InputError, match=r"counts could overflow.*unit_bits"):
        run_stage(context, CooccurrenceStage())


@pytest.mark.parametrize("table_format", FORMATS)
def test_the_matrix_without_spark(make_context, encode, table_format):
    context = make_context(table_format=table_format)
    documents = random_documents(7)
    encode(context, documents, SIZE)
    run_stage(context, CooccurrenceStage())
    matrix = read_matrix(context.config.warehouse)
    assert matrix.tokens[:2] == ["t0", "t1"]
    assert matrix.counts.shape == (SIZE, SIZE)
    cells = matrix.counts.tocoo()
    found = {
        (i, j): round(x * 2520) for i, j, x in zip(cells.row.tolist(), cells.col.tolist(), cells.data, strict=True)
    }
    assert found == expected(documents)


def test_the_matrix_is_refused_where_the_vocabulary_is_another(make_context, encode):
    context = make_context()
    encode(context, random_documents(7), SIZE)
    run_stage(context, CooccurrenceStage())
    encode(context, random_documents(7), SIZE, tokens=[f"other{i}" for i in range(SIZE)])
    with pytest.raises(InputError, match=r"was counted with a vocabulary of .* does not begin with these"):
        read_matrix(context.config.warehouse)


def test_the_plan_is_explained_before_anything_runs(make_context, encode):
    context = make_context(cooccurrence__blocks=3)
    documents = random_documents(8, documents=200)
    encode(context, documents, SIZE)
    lines = explain(context)
    assert f"{sum(map(len, documents)):,} tokens" in lines[1]
    expected_cells = int(lines[2].split()[1].replace(",", ""))
    assert expected_cells == pytest.approx(len(expected(documents)), rel=0.2)
    assert lines[4].startswith("3 row blocks")
    assert context.manifests.find("cooccurrence", "default") is None


def test_a_document_of_many_pieces_counts_as_a_whole(make_context, encode, read_pairs, monkeypatch, way):
    """One long document, cut by the shard writer, counted by several tasks."""
    monkeypatch.setattr(token_shards.writer, "BATCH_TOKENS", 50)
    monkeypatch.setattr(token_shards.writer, "PIECE_TOKENS", 50)
    monkeypatch.setattr(plan, "TOKENS_PER_TASK", 100)
    context = make_context(cooccurrence__oov="close_gap")
    rng = np.random.default_rng(9)
    documents = [rng.integers(-1, SIZE, 1000).tolist()]
    encode(context, documents, SIZE, shards=1)
    manifest, _ = run_stage(context, CooccurrenceStage())
    assert manifest.outputs["work"]["tasks"] == 2
    assert manifest.outputs["documents"] == 1
    assert read_pairs(context) == expected(documents, oov="close_gap")


def test_plain_readers_see_the_table(make_context, encode, spark):
    """Spark SQL and pyarrow without anything of ours, as docs/cooccurrence.md shows."""
    context = make_context()
    documents = random_documents(10)
    encode(context, documents, SIZE)
    run_stage(context, CooccurrenceStage())
    path = context.tables.path(schemas.COOCCURRENCE)
    pairs = expected(documents)
    spark.read.parquet(path).where("batch_id = 'default'").createOrReplaceTempView("x")
    found = spark.sql("SELECT row_id, sum(units) / 2520 AS weight FROM x GROUP BY row_id").collect()
    rows = Counter()
    for (i, _), units in pairs.items():
        rows[i] += units
    assert {row.row_id: row.weight for row in found} == {i: units / 2520 for i, units in rows.items()}
    condition = (ds.field("batch_id") == "default") & (ds.field("row_id") == 3)
    frame = ds.dataset(path, partitioning="hive").to_table(filter=condition).to_pandas()
    assert dict(zip(frame["col_id"], frame["units"], strict=True)) == {
        j: units for (i, j), units in pairs.items() if i == 3
    }
