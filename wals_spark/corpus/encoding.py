"""The vocabulary stage: documents -> encoded shards and the table ``vocabulary``, in one pass over the text."""

from __future__ import annotations

import json
import logging
import os
import posixpath
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from wals_spark import storage, token_shards
from wals_spark.config import Config, VocabularyConfig, fingerprint
from wals_spark.corpus import versions
from wals_spark.corpus.document_batch import DocumentBatch, TokenizedDocuments
from wals_spark.corpus.shuffle import ShuffleRecord, pack_table, run_shuffle, unpack_table
from wals_spark.corpus.subword_encoder import SubwordEncoder
from wals_spark.corpus.token_counter import TokenCounter
from wals_spark.corpus.vocabulary import (
    HashCollisionError,
    WordVocabulary,
    assign_ids,
    merge_counts,
    pack_counts,
    vocabulary_rows,
)
from wals_spark.corpus.words import WordEncoder
from wals_spark.errors import InputError
from wals_spark.heartbeat import Heartbeat, text_progress
from wals_spark.runs import RunLock
from wals_spark.schemas import DOCUMENTS, VOCABULARY
from wals_spark.stage import Context, Metric, Outcome
from wals_spark.stage_outputs import EncodedFacts, VocabularyOutputs
from wals_spark.tables import DataFile
from wals_spark.tables.vocabulary import write_counts_at_encoding
from wals_spark.token_shards import ShardWriter, TokenShard
from wals_spark.tokenizer import LoadedTokenizer, load_tokenizer, vocabulary_hash

logger = logging.getLogger(__name__)

HASH_SEEDS = 8
NEW_EXAMPLES = 10
HASH_BITS = 64
"""Of the words' hashes; tests make it small to force collisions."""
TASK_BYTES = (1 << 20, 64 << 20)
"""Least and most compressed bytes of documents a task is planned for; between them, two tasks per slot."""


def check_vocabulary(config: Config) -> None:
    """Raise where the tokenizer is missing or is none."""
    section = config.vocabulary
    if section.kind == "tokenizer":
        _tokenizer(section)


def _tokenizer(section: VocabularyConfig) -> LoadedTokenizer:
    if section.tokenizer is None:
        raise InputError(
            "vocabulary.kind is tokenizer and vocabulary.tokenizer is not set: give a tokenizer.json, a directory "
            "holding one or a hub name, or set vocabulary.kind=words"
        )
    return load_tokenizer(section.tokenizer)


def tokenizer_identity(config: Config) -> Any:
    """Hash of the tokenizer's tokens and of all its rules."""
    if config.vocabulary.kind == "words":
        return None
    loaded = _tokenizer(config.vocabulary)
    return {"vocabulary_hash": loaded.hash, "rules": fingerprint(json.loads(loaded.tokenizer.to_str()))}


def run_vocabulary(context: Context, text_bytes: float) -> Outcome:
    """Encode and count the documents of the batch that are not held out, about `text_bytes` bytes of text."""
    directory = versions.encoded_directory(context)
    # Ids are given once and for all: two batches must not do so at the same time.
    with RunLock(directory, f"the vocabulary of {context.manifests.warehouse}"):
        return _run(context, directory, text_bytes)


def _run(context: Context, directory: str, text_bytes: float) -> Outcome:
    config = context.config
    others = versions.other_batches(context)
    settings = _settings(config)
    known = versions.known_tokens(context, others, settings)
    target = storage.join(directory, config.corpus.batch_id)
    with context.scratch(f"vocabulary.{config.corpus.batch_id}") as scratch:
        tasks = plan_encoding_tasks(context)
        staging = storage.join(scratch, "encoded")
        job = EncodingJob(tasks, staging, scratch, min(len(tasks), context.spark.sparkContext.defaultParallelism))
        with text_progress("vocabulary", scratch, text_bytes):
            made = (
                _encode_words(context, job, known)
                if config.vocabulary.kind == "words"
                else _encode_subwords(context, job)
            )
        size = len(made.tokens)
        totals = versions.summed_counts(context, others, size) + np.stack([made.counts, made.document_counts])
        versions.write_counts(staging, made.counts, made.document_counts)
        write_counts_at_encoding(staging, totals[0])
        token_shards.write_listing(staging, made.shards)
        _remove_temporary(staging)
        storage.remove(target)
        storage.move(staging, target)
    rows = vocabulary_rows(made.tokens, totals[0], totals[1], made.special_ids)
    context.tables.replace_rows(VOCABULARY, rows, {})
    version = versions.record_version(context, others, settings, size, made.facts["vocabulary_hash"], len(known))
    tokens = sum(shard.tokens for shard in made.shards)
    inside = int(made.counts.sum())
    outputs: VocabularyOutputs = {
        "kind": config.vocabulary.kind,
        "size": size,
        "version": version.version,
        "new_tokens": size - len(known) if config.vocabulary.kind == "words" else 0,
        "tokens": tokens,
        "oov": tokens - inside,
        "documents": sum(shard.documents for shard in made.shards),
        **made.facts,
        "content": versions.content_hash(made.counts, made.document_counts, totals),
        "encoded": target,
        "shards": len(made.shards),
        "paths": [target, context.tables.path(VOCABULARY)],
    }
    names = ("size", "version", "new_tokens", "tokens", "documents", "oov", "text_bytes", "shards")
    figures: Mapping[str, Any] = outputs
    metrics = [Metric(name, float(figures[name])) for name in names]
    lines = [
        f"{tokens:,} tokens of {outputs['documents']:,} documents, vocabulary of {size:,} (version {version.version}), "
        f"{inside / max(tokens, 1):.2%} of the tokens in it"
    ]
    if known and outputs["new_tokens"]:
        examples = ", ".join(made.tokens[len(known) : len(known) + NEW_EXAMPLES])
        lines.append(
            f"{outputs['new_tokens']:,} new words with ids from {len(known):,} on, the most frequent: {examples}"
        )
    return Outcome(outputs, metrics, lines)


def _settings(config: Config) -> dict[str, Any]:
    """What a token is: batches that differ here cannot share a vocabulary."""
    section = config.vocabulary
    if section.kind == "words":
        return {"kind": section.kind, "pattern": section.pattern, "case": section.case}
    return {"kind": section.kind, **tokenizer_identity(config)}


def plan_encoding_tasks(context: Context) -> list[list[str]]:
    """Files of documents of every task."""
    files = context.tables.files(DOCUMENTS, {"batch_id": context.config.corpus.batch_id})
    low, high = TASK_BYTES
    slots = context.spark.sparkContext.defaultParallelism
    total = sum(file.bytes for file in files)
    target = min(max(total // (2 * slots), low), high)
    return _pack(files, max(1, round(total / target)))


def _pack(files: list[DataFile], tasks: int) -> list[list[str]]:
    """Largest file first into the least filled task; the order in a task is that of the names."""
    loads = [0] * min(tasks, len(files))
    packed: list[list[str]] = [[] for _ in loads]
    for file in sorted(files, key=lambda file: (-file.bytes, file.path)):
        lightest = int(np.argmin(loads))
        loads[lightest] += file.bytes
        packed[lightest].append(file.path)
    return sorted(sorted(paths) for paths in packed)


def _remove_temporary(directory: str) -> None:
    for info in storage.list_files(directory):
        if info.path.endswith(".tmp"):
            storage.remove(storage.join(directory, posixpath.basename(info.path)))


def read_documents(paths: list[str]) -> Iterator[DocumentBatch]:
    """The documents of files that are not held out, a row group at a time."""
    for location in paths:
        fs, path = storage.filesystem(location)
        with pq.ParquetFile(path, filesystem=fs) as source:
            for group in range(source.num_row_groups):
                table = source.read_row_group(group, columns=["doc_id", "text", "held_out"])
                for part in table.to_batches():
                    held_out = part["held_out"].to_numpy(zero_copy_only=False).astype(bool)
                    batch = DocumentBatch.from_arrow(part["doc_id"].to_pylist(), part["text"], location)
                    yield batch.select(~held_out)


@dataclass(frozen=True)
class EncodingJob:
    """What every task must know.

    Attributes
    ----------
    tasks : list of list of str
        Files of documents of each task.
    directory : str
        Where the shards go.
    scratch : str
        For progress, and for what reducers must read.
    reducers : int
    """

    tasks: list[list[str]]
    directory: str
    scratch: str
    reducers: int


def _encode_task(
    job: EncodingJob,
    task: int,
    counter: TokenCounter,
    encode: Callable[[DocumentBatch], TokenizedDocuments],
    size: Callable[[], int],
) -> tuple[TokenShard, int]:
    """Write the shard of a task; returns it and the bytes of text read."""
    writer = ShardWriter(storage.join(job.directory, f"part-{task:05d}.arrow"))
    heartbeat = Heartbeat(job.scratch, str(task))
    text_bytes = tokens = 0
    try:
        with storage.explained(f"cannot write encoded documents to {job.directory}"):
            for batch in read_documents(job.tasks[task]):
                found = encode(batch)
                counter.add(found.tokens, found.offsets, size())
                writer.write(batch.ids, found.tokens, found.offsets, found.breaks, found.break_offsets)
                text_bytes += len(batch.data)
                tokens += len(found.tokens)
                heartbeat.beat(bytes=text_bytes, documents=writer.documents, tokens=tokens)
            return writer.close(), text_bytes
    except BaseException:
        writer.abort()
        raise


def _written(shard: TokenShard, text_bytes: int, task: int, reducers: int) -> ShuffleRecord:
    facts = {"path": shard.path, "documents": shard.documents, "batches": shard.batches, "text_bytes": text_bytes}
    return ShuffleRecord(task % reducers, "shard", json.dumps({"task": task, **facts}).encode())


def _shards(records: list[ShuffleRecord]) -> tuple[list[TokenShard], int]:
    """The shards in order, and the bytes of text they were made from."""
    found = sorted(
        (json.loads(record.payload) for record in records if record.kind == "shard"), key=lambda entry: entry["task"]
    )
    shards = [TokenShard(entry["path"], entry["documents"], tuple(entry["batches"])) for entry in found]
    return shards, sum(entry["text_bytes"] for entry in found)


def _require_documents(shards: list[TokenShard]) -> None:
    if not any(shard.documents for shard in shards):
        raise InputError("the batch has no documents to count: all are held out; lower corpus.held_out_fraction")


@dataclass(frozen=True)
class EncodedBatch:
    """A batch as encoded: the vocabulary after it, its counts, its shards, and facts for the manifest."""

    tokens: Sequence[str]
    counts: npt.NDArray[np.int64]
    document_counts: npt.NDArray[np.int64]
    shards: list[TokenShard]
    facts: EncodedFacts
    special_ids: frozenset[int] = frozenset()


def _encode_words(context: Context, job: EncodingJob, known: list[str]) -> EncodedBatch:
    section = context.config.vocabulary
    known_path = storage.join(job.scratch, "known") if known else None
    if known_path is not None:
        storage.write_bytes(known_path, pack_table(pa.table({"token": pa.array(known, pa.large_string())})))
    for seed in range(HASH_SEEDS):
        produce = partial(_words_task, job, section, seed, HASH_BITS)
        merge = partial(_merge_words, section.min_count, known_path)
        records = run_shuffle(context.spark, len(job.tasks), produce, merge, job.reducers)
        collisions = [record.payload.decode() for record in records if record.kind == "collision"]
        if not collisions:
            break
        logger.info("the words %s share a hash; counting again with another one", collisions[0])
    else:
        raise InputError(f"the words {collisions[0]} share a hash with each of {HASH_SEEDS} seeds")
    shards, text_bytes = _shards(records)
    _require_documents(shards)
    kept = [unpack_table(record.payload) for record in records if record.kind == "kept"]
    distinct = sum(record.bucket for record in records if record.kind == "distinct")
    ranked: WordVocabulary = assign_ids(pa.concat_tables(kept), known, section.min_count, section.max_vocabulary)
    if not ranked.tokens:
        raise InputError(
            f"no word matching {section.pattern!r} occurs {section.min_count} times "
            f"({distinct:,} words occur at all); lower vocabulary.min_count or change vocabulary.pattern"
        )
    token_shards.write_vocabulary(job.directory, ranked.hashes, ranked.hashed_ids)
    facts: EncodedFacts = {
        "vocabulary_hash": vocabulary_hash(ranked.tokens),
        "distinct": distinct,
        "text_bytes": text_bytes,
    }
    return EncodedBatch(ranked.tokens, ranked.counts, ranked.document_counts, shards, facts)


def _words_task(
    job: EncodingJob, section: VocabularyConfig, seed: int, hash_bits: int, task: int
) -> Iterator[ShuffleRecord]:
    encoder = WordEncoder(section.pattern, section.case, seed, hash_bits)
    counter = TokenCounter()
    shard, text_bytes = _encode_task(job, task, counter, encoder.encode, lambda: encoder.size)
    token_shards.write_local_words(shard.path, encoder.hashes)
    yield from pack_counts(encoder, counter, job.reducers)
    yield _written(shard, text_bytes, task, job.reducers)


def _merge_words(min_count: int, known_path: str | None, records: Iterator[ShuffleRecord]) -> Iterator[ShuffleRecord]:
    payloads = []
    for record in records:
        if record.kind == "shard":
            yield record
        else:
            payloads.append(record.payload)
    known = unpack_table(storage.read_bytes(known_path))["token"].combine_chunks() if known_path else None
    try:
        merged = merge_counts(payloads, min_count, known)
    except HashCollisionError as error:
        yield ShuffleRecord(0, "collision", str(error).encode())
        return
    yield ShuffleRecord(merged.distinct, "distinct", b"")
    yield ShuffleRecord(0, "kept", pack_table(merged.table))


def _encode_subwords(context: Context, job: EncodingJob) -> EncodedBatch:
    loaded = _tokenizer(context.config.vocabulary)
    size = len(loaded.tokens)
    produce = partial(_subwords_task, job, loaded.tokenizer.to_str(), loaded.special_ids, size)
    records = run_shuffle(context.spark, len(job.tasks), produce, partial(_merge_subwords, size), job.reducers)
    shards, text_bytes = _shards(records)
    _require_documents(shards)
    totals = np.zeros((2, size), np.int64)
    for record in records:
        if record.kind == "counts":
            totals += np.frombuffer(record.payload, "<i8").reshape(2, size)
    facts: EncodedFacts = {"vocabulary_hash": loaded.hash, "text_bytes": text_bytes}
    return EncodedBatch(loaded.tokens, totals[0], totals[1], shards, facts, loaded.special_ids)


def _subwords_task(
    job: EncodingJob, serialized: str, special_ids: frozenset[int], size: int, task: int
) -> Iterator[ShuffleRecord]:
    # Spark already runs a task per core; it must be set before tokenizers starts its threads.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    encoder = SubwordEncoder(serialized, special_ids, size)
    counter = TokenCounter(size)
    shard, text_bytes = _encode_task(job, task, counter, encoder.encode, lambda: size)
    counts = np.stack([counter.counts[:size], counter.document_counts[:size]])
    yield ShuffleRecord(task % job.reducers, "counts", counts.tobytes())
    yield _written(shard, text_bytes, task, job.reducers)


def _merge_subwords(size: int, records: Iterator[ShuffleRecord]) -> Iterator[ShuffleRecord]:
    totals = np.zeros((2, size), np.int64)
    for record in records:
        if record.kind == "shard":
            yield record
        else:
            totals += np.frombuffer(record.payload, "<i8").reshape(2, size)
    yield ShuffleRecord(0, "counts", totals.tobytes())
