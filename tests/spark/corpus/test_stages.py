from __future__ import annotations

import gzip
import json
import re
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from wals_spark import storage
from wals_spark.corpus import documents, encoding
from wals_spark.corpus.stages import CorpusStage, VocabularyStage
from wals_spark.errors import InputError
from wals_spark.schemas import DOCUMENTS, METRICS
from wals_spark.schemas import VOCABULARY as VOCABULARY_TABLE
from wals_spark.stage import run_stage
from wals_spark.token_shards import SPECIAL, list_shards, read_shards

pytestmark = pytest.mark.spark

TEXTS = {f"doc-{n}": f"The cat number {n % 7} sat on the mat {n % 3}. " * (n % 5 + 1) for n in range(60)}


@pytest.fixture
def small_tasks(monkeypatch):
    """Many tasks, as in a large corpus."""
    monkeypatch.setattr(documents, "TASK_BYTES", (400, 400))
    monkeypatch.setattr(encoding, "TASK_BYTES", (400, 400))


@pytest.fixture
def source(tmp_path):
    root = tmp_path / "source"
    root.mkdir()
    pq.write_table(
        pa.table({"doc_id": list(TEXTS), "text": list(TEXTS.values())}), root / "a.parquet", row_group_size=7
    )
    return root


def run_both(context):
    return run_stage(context, CorpusStage())[0], run_stage(context, VocabularyStage())[0]


def stored(context):
    """doc_id -> (text, held_out) of the documents table."""
    files = context.tables.files(DOCUMENTS, {"batch_id": context.config.corpus.batch_id})
    tables = [pq.read_table(file.path, partitioning=None) for file in files]
    rows = [row for table in tables for row in table.to_pylist()]
    assert len({row["doc_id"] for row in rows}) == len(rows)
    return {row["doc_id"]: (row["text"], row["held_out"]) for row in rows}


def encoded_words(context, manifest):
    """doc key -> words of the encoded shards, None for out of vocabulary."""
    rows = vocabulary(context)
    found = {}
    for chunk in read_shards(shard.path for shard in list_shards(manifest.outputs["encoded"])):
        for index, key in enumerate(chunk.keys.tolist()):
            tokens = chunk.tokens[chunk.offsets[index] : chunk.offsets[index + 1]]
            found[key] = [rows[token]["token"] if token >= 0 else None for token in tokens]
    return found


def vocabulary(context):
    rows = [row for file in context.tables.files(VOCABULARY_TABLE) for row in pq.read_table(file.path).to_pylist()]
    rows.sort(key=lambda row: row["token_id"])
    assert [row["token_id"] for row in rows] == list(range(len(rows)))
    return rows


def metrics(context, stage):
    files = context.tables.files(METRICS, {"run_id": context.config.run_id, "stage": stage})
    return {row["name"]: row["value"] for file in files for row in pq.read_table(file.path).to_pylist()}


def words_of(text):
    return re.findall("[a-z]+", text.lower())


def test_documents_hold_the_source_and_what_is_held_out_by_hash(make_context, source, small_tasks):
    context = make_context(corpus__path=str(source), corpus__id_column="doc_id", corpus__held_out_fraction=0.3)
    manifest, ran = run_stage(context, CorpusStage())
    found = stored(context)
    assert {name: text for name, (text, _) in found.items()} == TEXTS
    held_out = {name for name, (_, held) in found.items() if held}
    assert held_out == {name for name in TEXTS if documents.is_held_out([name], 0.3, 1)[0]}
    assert ran
    assert manifest.outputs["documents"] == 60
    assert manifest.outputs["held_out"] == len(held_out) == 15
    assert len(context.tables.files(DOCUMENTS, {"batch_id": "default"})) > 4


def test_a_second_run_does_nothing_and_a_changed_file_runs_again(make_context, source):
    context = make_context(corpus__path=str(source), corpus__id_column="doc_id")
    assert run_stage(context, CorpusStage())[1]
    assert not run_stage(context, CorpusStage())[1]
    pq.write_table(pa.table({"doc_id": ["x"], "text": ["y"]}), source / "b.parquet")
    assert run_stage(context, CorpusStage())[0].outputs["documents"] == 61


def test_all_formats_in_one_corpus(make_context, tmp_path):
    root = tmp_path / "mixed"
    root.mkdir()
    (root / "a.txt").write_text("a file")
    (root / "b.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a line"}\n{"text": "  "}\n'))
    pq.write_table(pa.table({"text": ["a row"]}), root / "c.parquet")
    context = make_context(corpus__path=str(root), corpus__held_out_fraction=0)
    manifest, _ = run_stage(context, CorpusStage())
    assert {name: text for name, (text, _) in stored(context).items()} == {
        "a.txt": "a file",
        "b.jsonl.gz:0": "a line",
        "c.parquet:0": "a row",
    }
    assert manifest.outputs["dropped"] == {"empty": 1}
    assert metrics(context, "corpus")["empty"] == 1


@pytest.fixture
def with_duplicates(tmp_path):
    root = tmp_path / "duplicates"
    root.mkdir()
    for part in range(3):
        ids = [f"id-{(n * 3) % 40}" for n in range(part * 20, part * 20 + 20)]
        texts = [f"text {part} {n}" for n in range(20)]
        pq.write_table(pa.table({"id": ids, "text": texts}), root / f"{part}.parquet", row_group_size=6)
    return root


def test_duplicate_ids_across_files_are_refused_by_name_and_number(make_context, with_duplicates, small_tasks):
    context = make_context(corpus__path=str(with_duplicates), corpus__id_column="id")
    with pytest.raises(InputError, match=r"20 documents have an id that another .*'id-\d+', 'id-\d+'.*keep_first"):
        run_stage(context, CorpusStage())
    assert context.tables.values(DOCUMENTS) == []


def test_the_first_of_duplicate_ids_is_kept_whatever_the_tasks(make_context, with_duplicates):
    expected = {}
    for file in sorted(with_duplicates.iterdir()):
        for row in pq.read_table(file).to_pylist():
            expected.setdefault(row["id"], row["text"])
    for tasks in (1, 3, 9):
        context = make_context(
            corpus__path=str(with_duplicates),
            corpus__id_column="id",
            corpus__duplicate_ids="keep_first",
            corpus__partitions=tasks,
            corpus__batch_id=f"b{tasks}",
        )
        manifest, _ = run_stage(context, CorpusStage())
        assert {name: text for name, (text, _) in stored(context).items()} == expected
        assert manifest.outputs["documents"] == 40
        assert manifest.outputs["dropped"] == {"duplicate_ids": 20}


def test_an_empty_corpus_is_refused(make_context, tmp_path):
    root = tmp_path / "blank"
    root.mkdir()
    (root / "a.txt").write_text(" \n")
    context = make_context(corpus__path=str(root))
    with pytest.raises(InputError, match=r"the corpus is empty: 1 files with 1 documents \(1 empty\)"):
        run_stage(context, CorpusStage())


def test_bytes_that_are_not_utf8_are_counted_or_refused_from_the_task(make_context, tmp_path):
    root = tmp_path / "latin"
    root.mkdir()
    (root / "a.txt").write_bytes("schön\nfine\n".encode("latin-1"))
    refused = make_context(corpus__path=str(root), corpus__format="text")
    with pytest.raises(InputError, match=r"document 'a.txt:0' is not UTF-8 at its byte 3"):
        run_stage(refused, CorpusStage())
    context = make_context(
        corpus__path=str(root), corpus__format="text", corpus__encoding_errors="skip", corpus__held_out_fraction=0
    )
    manifest, _ = run_stage(context, CorpusStage())
    assert manifest.outputs["dropped"] == {"not_utf8_skipped": 1}
    assert list(stored(context)) == ["a.txt:6"]


def test_words_are_counted_and_encoded_exactly(make_context, source, small_tasks):
    context = make_context(
        corpus__path=str(source),
        corpus__id_column="doc_id",
        corpus__held_out_fraction=0.2,
        vocabulary__kind="words",
        vocabulary__pattern="[a-z]+",
        vocabulary__min_count=100,
    )
    _, manifest = run_both(context)
    kept = {name: text for name, (text, held) in stored(context).items() if not held}
    counts = Counter(word for text in kept.values() for word in words_of(text))
    frequent = {word: n for word, n in counts.items() if n >= 100}
    rows = vocabulary(context)
    assert [row["token"] for row in rows] == sorted(frequent, key=lambda word: (-frequent[word], word))
    assert {row["token"]: row["count"] for row in rows} == frequent
    holders = Counter(word for text in kept.values() for word in set(words_of(text)))
    assert {row["token"]: row["document_count"] for row in rows} == {word: holders[word] for word in frequent}
    from wals_spark.token_shards import document_key

    expected = {
        document_key(name): [word if word in frequent else None for word in words_of(text)]
        for name, text in kept.items()
    }
    assert encoded_words(context, manifest) == expected
    assert manifest.outputs["tokens"] == sum(counts.values())
    assert manifest.outputs["oov"] == sum(counts.values()) - sum(frequent.values())
    assert manifest.outputs["documents"] == len(kept)
    assert manifest.outputs["shards"] > 2


def test_words_that_share_a_hash_are_counted_again_with_another_seed(make_context, source, monkeypatch):
    settings = {
        "corpus__path": str(source),
        "corpus__id_column": "doc_id",
        "vocabulary__kind": "words",
        "vocabulary__pattern": r"\w+",
        "vocabulary__min_count": 1,
    }
    context = make_context(**settings)
    _, manifest = run_both(context)
    whole, rows = encoded_words(context, manifest), vocabulary(context)
    # 15 words and 64 values of the hash: some seed collides, and some does not.
    monkeypatch.setattr(encoding, "HASH_BITS", 6)
    monkeypatch.setattr(encoding, "HASH_SEEDS", 200)
    again, _ = run_stage(context, VocabularyStage(), force=True)
    assert encoded_words(context, again) == whole
    assert vocabulary(context) == rows


def test_hashes_that_always_collide_are_refused(make_context, source, monkeypatch):
    monkeypatch.setattr(encoding, "HASH_BITS", 2)
    monkeypatch.setattr(encoding, "HASH_SEEDS", 2)
    context = make_context(corpus__path=str(source), corpus__id_column="doc_id", vocabulary__kind="words")
    run_stage(context, CorpusStage())
    with pytest.raises(InputError, match="share a hash with each of 2 seeds"):
        run_stage(context, VocabularyStage())


def test_a_count_that_no_word_reaches_is_refused(make_context, source):
    context = make_context(
        corpus__path=str(source), corpus__id_column="doc_id", vocabulary__kind="words", vocabulary__min_count=10_000
    )
    run_stage(context, CorpusStage())
    with pytest.raises(InputError, match=r"occurs 10000 times \(\d+ words occur at all\)"):
        run_stage(context, VocabularyStage())
    left = storage.list_files(storage.join(context.config.warehouse, "_encoded"))
    assert [storage.posixpath.basename(info.path) for info in left] == ["_lock"]


@pytest.fixture
def tokenizer_file(tmp_path):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS.values(), trainer)
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def test_subwords_are_counted_and_encoded_as_the_tokenizer_does(make_context, source, tokenizer_file, small_tasks):
    context = make_context(
        corpus__path=str(source),
        corpus__id_column="doc_id",
        corpus__held_out_fraction=0.2,
        vocabulary__tokenizer=str(tokenizer_file),
    )
    _, manifest = run_both(context)
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    kept = {name: text for name, (text, held) in stored(context).items() if not held}
    from wals_spark.token_shards import document_key

    expected = {document_key(name): tokenizer.encode(text).tokens for name, text in kept.items()}
    assert encoded_words(context, manifest) == expected
    counts = Counter(token for tokens in expected.values() for token in tokens)
    rows = vocabulary(context)
    assert len(rows) == manifest.outputs["size"] == tokenizer.get_vocab_size()
    assert {row["token"]: row["count"] for row in rows if row["count"]} == dict(counts)
    assert [row["token"] for row in rows if row["is_special"]] == ["<s>", "</s>"]
    assert manifest.outputs["oov"] == 0


def test_special_tokens_in_the_text_are_neither_counted_nor_lost(make_context, tmp_path, tokenizer_file):
    root = tmp_path / "special"
    root.mkdir()
    (root / "a.txt").write_text("the cat</s>the mat")
    context = make_context(
        corpus__path=str(root), corpus__held_out_fraction=0, vocabulary__tokenizer=str(tokenizer_file)
    )
    _, manifest = run_both(context)
    (chunk,) = read_shards(shard.path for shard in list_shards(manifest.outputs["encoded"]))
    assert np.count_nonzero(chunk.tokens == SPECIAL) == 1
    assert vocabulary(context)[1]["count"] == 0
    assert manifest.outputs["oov"] == 1


def test_a_missing_tokenizer_is_found_before_anything_runs(make_config):
    with pytest.raises(InputError, match=r"vocabulary\.tokenizer is not set"):
        VocabularyStage().check(make_config())
    with pytest.raises(InputError, match="there is no tokenizer at"):
        VocabularyStage().check(make_config(vocabulary__tokenizer="./absent.json"))


def test_a_changed_tokenizer_runs_the_vocabulary_again(make_context, source, tokenizer_file):
    context = make_context(
        corpus__path=str(source), corpus__id_column="doc_id", vocabulary__tokenizer=str(tokenizer_file)
    )
    run_both(context)
    assert not run_stage(context, VocabularyStage())[1]
    content = json.loads(tokenizer_file.read_text())
    content["model"]["merges"].pop()
    tokenizer_file.write_text(json.dumps(content))
    assert run_stage(context, VocabularyStage())[1]


def test_everything_held_out_is_refused(make_context, tmp_path):
    root = tmp_path / "one"
    root.mkdir()
    (root / "a.txt").write_text("a a a a a a")
    context = make_context(corpus__path=str(root), corpus__held_out_fraction=0.999999, vocabulary__kind="words")
    run_stage(context, CorpusStage())
    with pytest.raises(InputError, match="all are held out"):
        run_stage(context, VocabularyStage())


def test_enwiki_figures(make_context, data):
    context = make_context(
        corpus__path=str(data / "corpora" / "enwiki" / "part-0.parquet"),
        corpus__id_column="doc_id",
        vocabulary__kind="words",
        vocabulary__pattern="[a-z]+",
        corpus__held_out_fraction=0,
        corpus__normalize=False,
    )
    _, manifest = run_both(context)
    texts = pq.read_table(data / "corpora" / "enwiki" / "part-0.parquet", columns=["text"])["text"].to_pylist()
    counts = Counter(word for text in texts for word in words_of(text))
    assert manifest.outputs["tokens"] == sum(counts.values())
    assert manifest.outputs["size"] == sum(n >= 5 for n in counts.values())
    assert {row["token"]: row["count"] for row in vocabulary(context)} == {w: n for w, n in counts.items() if n >= 5}
