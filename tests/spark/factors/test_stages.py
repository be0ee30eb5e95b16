from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from wals_spark import schemas, storage
from wals_spark.errors import InputError
from wals_spark.factors.neighbours import nearest_neighbours
from wals_spark.factors.query_tokens import middle_tokens
from wals_spark.factors.stages import ExportStage, NeighboursStage
from wals_spark.factors.store import combine
from wals_spark.factors.top_k import top_k
from wals_spark.runs import Manifest
from wals_spark.stage import run_stage

pytestmark = pytest.mark.spark
SIZE, K = 240, 6


@pytest.fixture
def context(make_context):
    """A context with factors of a run `default`, without any training."""

    def make(**values):
        context = make_context(**values)
        generator = np.random.default_rng(0)
        tokens = [f"{'Ġ' if i % 3 else ''}word{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(SIZE)]
        counts = np.sort(generator.integers(0, 1000, SIZE))[::-1]
        for side in ("row", "col"):
            matrix = generator.normal(size=(SIZE, K)).astype(np.float32)
            rows = pa.table(
                {
                    "token_id": pa.array(np.arange(SIZE), pa.int32()),
                    "token": tokens,
                    "count": pa.array(counts, pa.int64()),
                    "vector": pa.array(list(matrix), pa.list_(pa.float32())),
                    "bias": pa.array(np.zeros(SIZE), pa.float32()),
                }
            )
            context.tables.replace_rows(schemas.FACTORS, rows, {"run_id": "default", "side": side})
            context.__dict__.setdefault("sides", {})[side] = matrix
        context.tokens, context.counts = tokens, counts
        context.manifests.write(
            Manifest("train", "default", "complete", "f", "default", outputs={"vocabulary_hash": "h"})
        )
        return context

    return make


def read_neighbours(context):
    return storage.read_json(context.run.path("neighbours.json"))


@pytest.mark.parametrize("how", ["u", "v", "sum", "concat"])
def test_the_distributed_search_gives_what_the_driver_gives(context, how):
    made = context()
    matrix = combine(made.sides["row"], made.sides["col"], how)
    queries = np.array([3, 50, 239])
    expected = top_k(matrix[queries], matrix, 7, cosine=True, allowed=made.counts >= 30, exclude=queries)
    found = nearest_neighbours(made.tables, "default", how, queries, 7, min_count=30)
    assert np.array_equal(found[0], expected[0])
    assert np.allclose(found[1], expected[1], atol=1e-6, equal_nan=True)


def test_an_unknown_id_is_refused_in_the_distributed_search(context):
    with pytest.raises(InputError, match=r"token ids \[999\] are not among the factors"):
        nearest_neighbours(context().tables, "default", "u", np.array([1, 999]), 3, min_count=0)


@pytest.mark.parametrize("driver_vectors", [0, 1_000_000])
def test_the_stage_writes_readable_lists(context, driver_vectors):
    made = context(neighbours__driver_vectors=driver_vectors, neighbours__count=4)
    manifest, ran = run_stage(made, NeighboursStage())
    lists = read_neighbours(made)["lists"]
    assert ran
    assert manifest.outputs["queries"] == len(lists) == 10
    first = lists[0]
    assert first["token"] == "Ġ" + first["shown"]
    cosines = [item["cosine"] for item in first["neighbours"]]
    assert len(cosines) == 4
    assert cosines == sorted(cosines, reverse=True)
    assert all(item["count"] >= 20 for entry in lists for item in entry["neighbours"])


def test_both_ways_have_the_same_fingerprint_and_lists(context):
    here = context(neighbours__driver_vectors=0)
    run_stage(here, NeighboursStage())
    there = context(neighbours__driver_vectors=1000)
    assert run_stage(there, NeighboursStage())[1] is False


def test_asked_for_words_and_exact_tokens_are_found(context):
    made = context(neighbours__tokens=("wordba", "Ġwordba", "wordaa"))
    run_stage(made, NeighboursStage())
    assert [item["token"] for item in read_neighbours(made)["lists"]] == ["Ġwordba", "Ġwordba", "wordaa"]


def test_an_unknown_word_is_refused_by_name(context):
    with pytest.raises(InputError, match="'unheardof' is not among the tokens"):
        run_stage(context(neighbours__tokens=("unheardof",)), NeighboursStage())


def test_middle_tokens_are_plain_words_of_middle_frequency(context):
    made = context()
    chosen = middle_tokens(made.tokens, made.counts, 20)
    assert len(chosen) == 10
    assert all(made.tokens[i].startswith("Ġ") for i in chosen)
    assert chosen == sorted(chosen)
    assert max(chosen) < 0.5 * SIZE


def test_export_writes_every_format_and_their_hashes(context):
    made = context(export__formats=("word2vec", "word2vec_binary", "safetensors", "npy"), export__combine="concat")
    manifest, _ = run_stage(made, ExportStage())
    assert manifest.outputs["k"] == 2 * K
    assert sorted(manifest.outputs["sha256"]) == [
        "tokens.json",
        "vectors-concat.bin",
        "vectors-concat.npy",
        "vectors-concat.safetensors",
        "vectors-concat.txt",
    ]


def test_a_removed_file_is_exported_again(context):
    made = context(export__formats=("npy",))
    run_stage(made, ExportStage())
    assert run_stage(made, ExportStage())[1] is False
    storage.remove(made.run.path("export", "vectors-u.npy"))
    assert run_stage(made, ExportStage())[1] is True


def test_factors_without_training_are_asked_for(make_context):
    with pytest.raises(InputError, match="run `wals-spark train`"):
        run_stage(make_context(), ExportStage())
