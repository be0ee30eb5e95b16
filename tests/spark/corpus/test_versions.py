from __future__ import annotations

import pyarrow.parquet as pq
import pytest

from wals_spark import schemas, storage
from wals_spark.cooccurrence.stages import CooccurrenceStage
from wals_spark.corpus.stages import CorpusStage, VocabularyStage
from wals_spark.errors import InputError, TransientError
from wals_spark.runs import RunLock
from wals_spark.schemas import VOCABULARY as TABLE
from wals_spark.stage import run_stage
from wals_spark.token_shards import list_shards, read_shards

pytestmark = pytest.mark.spark


@pytest.fixture
def encode(make_context, tmp_path):
    """Encode a text as a batch; returns the manifest and the vocabulary as {token: (id, count, document_count)}."""

    def make(batch_id, text, **settings):
        source = tmp_path / f"{batch_id}.txt"
        if not source.exists() or source.read_text() != text:
            source.write_text(text)
        values = {"vocabulary__kind": "words", "vocabulary__min_count": 2, **settings}
        context = make_context(
            corpus__path=str(source),
            corpus__format="text",
            corpus__batch_id=batch_id,
            corpus__held_out_fraction=0,
            **values,
        )
        run_stage(context, CorpusStage())
        manifest, ran = run_stage(context, VocabularyStage())
        rows = [row for file in context.tables.files(TABLE) for row in pq.read_table(file.path).to_pylist()]
        table = {row["token"]: (row["token_id"], row["count"], row["document_count"]) for row in rows}
        return context, manifest, ran, table

    return make


def test_ids_never_move_and_counts_are_the_sum_of_the_batches(encode):
    _, first, _, table = encode("a", "x x x y y once\nx")
    assert table == {"x": (0, 4, 2), "y": (1, 2, 1)}
    context, second, _, table = encode("b", "z z z z y once w w\nz once")
    assert table == {"x": (0, 4, 2), "y": (1, 3, 2), "z": (2, 5, 2), "once": (3, 2, 2), "w": (4, 2, 1)}
    assert (first.outputs["version"], second.outputs["version"]) == (1, 2)
    assert (second.outputs["new_tokens"], second.outputs["size"]) == (3, 5)
    tokens = [chunk.tokens.tolist() for chunk in read_shards(s.path for s in list_shards(second.outputs["encoded"]))]
    assert tokens == [[2, 2, 2, 2, 1, 3, 4, 4, 2, 3]]
    versions = storage.read_json(storage.join(context.config.warehouse, "_encoded", "versions.json"))["versions"]
    assert [(entry["batch_id"], entry["size"], entry["first_new_id"]) for entry in versions] == [
        ("a", 2, 0),
        ("b", 5, 2),
    ]


def test_a_batch_encoded_again_replaces_its_own_counts_only(encode):
    encode("a", "x x y y")
    encode("b", "x x z z")
    _, manifest, ran, table = encode("a", "y y y y")
    assert ran
    assert table == {"x": (0, 2, 1), "y": (1, 4, 1), "z": (2, 2, 1)}
    assert manifest.outputs["version"] == 2
    assert not encode("b", "x x z z")[2]


def test_a_batch_that_is_alone_starts_afresh(encode):
    encode("a", "x x x y y")
    _, manifest, _, table = encode("a", "y y y x x")
    assert table == {"y": (0, 3, 1), "x": (1, 2, 1)}
    assert manifest.outputs["version"] == 2


def test_batches_with_another_meaning_of_words_are_refused(encode):
    encode("a", "x x y y")
    with pytest.raises(InputError, match=r"case 'keep', and 'a' with kind 'words', pattern .* case 'lower'"):
        encode("b", "x x", vocabulary__case="keep")


def test_two_batches_are_not_encoded_at_the_same_time(encode, tmp_path):
    encode("a", "x x")
    with RunLock(str(tmp_path / "warehouse" / "_encoded"), "it"), pytest.raises(TransientError, match="worked on"):
        encode("b", "x x")


def cells_of(context):
    files = context.tables.files(schemas.COOCCURRENCE, {"batch_id": context.config.corpus.batch_id})
    rows = [row for file in files for row in pq.read_table(file.path).to_pylist()]
    return {(row["row_id"], row["col_id"]): row["units"] for row in rows}


def test_subsampled_counts_of_a_batch_do_not_change_when_another_arrives(encode):
    text = "\n".join("x y x z x y w x x y z z x" for _ in range(30))
    context, *_ = encode("a", text, cooccurrence__subsample=0.05)
    manifest, _ = run_stage(context, CooccurrenceStage())
    before = cells_of(context)
    assert manifest.outputs["subsampled_by"] == {"version": 1, "tokens": 390}
    assert 0 < manifest.outputs["subsampled"] < 390
    encode("b", "x " * 5000 + "new new", cooccurrence__subsample=0.05)
    again, ran = run_stage(context, CooccurrenceStage(), force=True)
    assert (ran, cells_of(context)) == (True, before)
    assert again.outputs["subsampled_by"] == {"version": 1, "tokens": 390}


def test_a_batch_encoded_again_with_a_grown_vocabulary_is_counted_again(encode):
    """A word that was too rare in the batch has an id since another batch had it more often."""
    context, *_ = encode("a", "x x y y once x")
    run_stage(context, CooccurrenceStage())
    before = cells_of(context)
    assert not run_stage(context, CooccurrenceStage())[1]
    encode("b", "once once x")
    assert not run_stage(context, CooccurrenceStage())[1], "nothing of the batch has changed"
    run_stage(context, VocabularyStage(), force=True)
    _, ran = run_stage(context, CooccurrenceStage())
    assert ran
    assert cells_of(context) != before
