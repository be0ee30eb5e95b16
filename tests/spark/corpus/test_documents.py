from __future__ import annotations

import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wals_spark import storage
from wals_spark.corpus.stages import CorpusStage, VocabularyStage
from wals_spark.schemas import DOCUMENTS, METRICS
from wals_spark.stage import run_stage
from wals_spark.token_shards import list_shards, read_shards

pytestmark = pytest.mark.spark

MENU = "Home | About | Contact"


def write(root, texts, files=3):
    root.mkdir()
    for part in range(files):
        rows = list(texts.items())[part::files]
        table = pa.table({"id": [name for name, _ in rows], "text": [text for _, text in rows]})
        pq.write_table(table, root / f"{part}.parquet", row_group_size=4)
    return root


def stored(context):
    files = context.tables.files(DOCUMENTS, {"batch_id": context.config.corpus.batch_id})
    return {r["doc_id"]: r["text"] for f in files for r in pq.read_table(f.path, partitioning=None).to_pylist()}


def settings(root, **more):
    return {"corpus__path": str(root), "corpus__id_column": "id", "corpus__held_out_fraction": 0, **more}


def listing_order(root):
    return [row["id"] for path in sorted(root.iterdir()) for row in pq.read_table(path).to_pylist()]


@pytest.fixture
def with_copies(tmp_path):
    """20 texts, 10 exact copies, 5 that differ in one word of 300."""
    rng = random.Random(1)
    vocabulary = [f"w{n}" for n in range(3000)]
    originals = [" ".join(rng.choices(vocabulary, k=300)) for _ in range(20)]
    texts = {f"o{n}": text for n, text in enumerate(originals)}
    texts |= {f"copy{n}": originals[n] for n in range(10)}
    texts |= {f"near{n}": originals[10 + n].replace(originals[10 + n].split()[7], "other", 1) for n in range(5)}
    names = list(texts)
    rng.shuffle(names)
    return write(tmp_path / "copies", {name: texts[name] for name in names})


def family(name):
    """Documents with the same text, up to a word, share a family."""
    number = int("".join(filter(str.isdigit, name)))
    return number + 10 if name.startswith("near") else number


@pytest.mark.parametrize(("mode", "dropped"), [("exact", 10), ("near", 15)])
def test_the_first_of_equal_or_similar_texts_stays_whatever_the_tasks(make_context, with_copies, mode, dropped):
    first: dict[object, str] = {}
    for name in listing_order(with_copies):
        key = family(name) if mode == "near" or not name.startswith("near") else name
        first.setdefault(key, name)
    for tasks in (1, 4):
        context = make_context(
            **settings(
                with_copies, corpus__partitions=tasks, corpus__batch_id=f"b{tasks}", corpus__duplicate_texts=mode
            )
        )
        manifest, _ = run_stage(context, CorpusStage())
        assert set(stored(context)) == set(first.values())
        assert manifest.outputs["dropped"] == {"duplicate_texts": dropped}
        assert storage.list_files(storage.join(context.config.warehouse, "_scratch")) == []


def test_boilerplate_and_length_filters_are_counted(make_context, tmp_path):
    texts = {f"d{n}": f"{MENU}\ntext number {n}\n{MENU}" for n in range(10)}
    texts |= {"menu": f"{MENU}\n{MENU}", "short": "x", "long": "y" * 500}
    context = make_context(
        **settings(
            write(tmp_path / "web", texts),
            corpus__boilerplate_documents=5,
            corpus__min_characters=5,
            corpus__max_characters=400,
            corpus__partitions=3,
        )
    )
    manifest, _ = run_stage(context, CorpusStage())
    assert stored(context) == {f"d{n}": f"text number {n}" for n in range(10)}
    assert manifest.outputs["dropped"] == {"empty": 1, "too_long": 1, "too_short": 1}
    files = context.tables.files(METRICS, {"run_id": "default", "stage": "corpus"})
    numbers = {row["name"]: row["value"] for f in files for row in pq.read_table(f.path).to_pylist()}
    assert numbers["boilerplate_lines"] == 22
    assert numbers["too_short"] == numbers["too_long"] == numbers["empty"] == 1


@pytest.mark.delta
def test_a_delta_warehouse_holds_the_same_documents_and_vocabulary(make_context, tmp_path):
    texts = {f"d{n}": f"some words and {n % 3} more words" for n in range(30)}
    context = make_context(
        table_format="delta",
        vocabulary__kind="words",
        **settings(write(tmp_path / "source", texts), corpus__duplicate_texts="keep"),
    )
    run_stage(context, CorpusStage())
    manifest, _ = run_stage(context, VocabularyStage())
    assert {row.doc_id: row.text for row in context.tables.read(DOCUMENTS).collect()} == texts
    assert manifest.outputs["tokens"] == 30 * 5
    assert (
        sum(len(chunk.tokens) for chunk in read_shards(s.path for s in list_shards(manifest.outputs["encoded"]))) == 150
    )
    assert not run_stage(context, CorpusStage())[1]
    assert not run_stage(context, VocabularyStage())[1]


@pytest.mark.slow
def test_one_document_of_a_hundred_megabytes(make_context, tmp_path):
    root = tmp_path / "huge"
    root.mkdir()
    line = "the quick brown fox jumps over the lazy dog " * 23 + "\n"
    (root / "huge.txt").write_text(line * (100_000_000 // len(line)))
    context = make_context(
        corpus__path=str(root), corpus__held_out_fraction=0, vocabulary__kind="words", vocabulary__pattern="[a-z]+"
    )
    run_stage(context, CorpusStage())
    manifest, _ = run_stage(context, VocabularyStage())
    tokens = 9 * 23 * (100_000_000 // len(line))
    assert manifest.outputs["tokens"] == tokens
    shards = list_shards(manifest.outputs["encoded"])
    assert max(shards[0].batches) <= 1 << 20
    assert sum(len(c.tokens) - c.overlap for c in read_shards([shards[0].path], context=10)) == tokens
