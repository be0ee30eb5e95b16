"""Documents with the text of an earlier one: the same bytes, or similar by MinHash."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa

from wals_spark import storage
from wals_spark.config import CorpusConfig
from wals_spark.corpus.duplicate_ids import find_duplicates, pack_ids, write_drop_lists
from wals_spark.corpus.minhash import PERMUTATIONS, band_keys, minhash_signatures, similar_to_earlier
from wals_spark.corpus.shuffle import ShuffleRecord, pack_table, unpack_table
from wals_spark.corpus.words import WordEncoder
from wals_spark.corpus.writing import WrittenFiles, read_document_file
from wals_spark.heartbeat import Heartbeat

WORD = r"\w+"
"""Of the shingles of near-duplicates."""
ROW_BITS = 40


def pack_text_keys(
    written: dict[int, WrittenFiles], directory: str, work: str, config: CorpusConfig, reducers: int, task: int
) -> Iterator[ShuffleRecord]:
    """Digests of the texts of a task, or the bands of their signatures, by bucket.

    Parameters
    ----------
    written : mapping of int to WrittenFiles
        By task.
    directory : str
        Of the written files.
    work : str
        Where signatures and the heartbeat go.
    config : CorpusConfig
    reducers : int
        Number of buckets.
    task : int
        Number of this task.

    Yields
    ------
    ShuffleRecord
    """
    parts: list[Any] = []
    encoder = WordEncoder(WORD, "lower")
    heartbeat = Heartbeat(work, str(task))
    read = Counter[str]()
    for entry in written[task].files if task in written else ():
        for batch in read_document_file(storage.join(directory, entry["name"])):
            if config.duplicate_texts == "near":
                parts.append(minhash_signatures(batch, encoder))
            else:
                texts = (batch.text(place) for place in range(len(batch)))
                parts += [blake2b(text, digest_size=16).hexdigest() for text in texts]
            read.update(bytes=len(batch.data), documents=len(batch))
            heartbeat.beat(bytes=read["bytes"], documents=read["documents"])
    if not parts:
        return
    if config.duplicate_texts == "exact":
        yield from pack_ids(parts, task, reducers)
        return
    found = np.concatenate(parts)
    storage.write_bytes(storage.join(work, f"signatures-{task:05d}"), found.astype("<u4").tobytes())
    keys = band_keys(found)
    rows = np.broadcast_to(np.arange(len(found))[:, None], keys.shape)
    bucket_of = keys % np.uint64(reducers)
    for bucket in range(reducers):
        chosen = bucket_of == bucket
        columns = {"key": keys[chosen], "row": rows[chosen], "task": np.full(int(chosen.sum()), task)}
        yield ShuffleRecord(bucket, "bands", pack_table(pa.table(columns)))


def merge_text_keys(work: str, config: CorpusConfig, records: Iterator[ShuffleRecord]) -> Iterator[ShuffleRecord]:
    """Write drop lists of texts that come again; yields the tasks that have some."""
    payloads = [record.payload for record in records]
    if config.duplicate_texts == "exact":
        yield ShuffleRecord(0, "tasks", json.dumps(sorted(find_duplicates(payloads, work).tasks)).encode())
    elif payloads:
        table = pa.concat_tables([unpack_table(payload) for payload in payloads])
        positions = table["task"].to_numpy() << ROW_BITS | table["row"].to_numpy()
        fetch = SignatureFiles(work)
        keys = table["key"].to_numpy()
        again = similar_to_earlier(keys, positions, fetch, config.near_duplicate_similarity)
        write_drop_lists(work, again >> ROW_BITS, again & (1 << ROW_BITS) - 1, f"{int(keys.min()):016x}")
        yield ShuffleRecord(0, "tasks", json.dumps(np.unique(again >> ROW_BITS).tolist()).encode())


class SignatureFiles:
    """Signatures of documents by position, from the files of the tasks; the last ones used stay open."""

    def __init__(self, work: str) -> None:
        self.work = work
        self._load = lru_cache(maxsize=64)(self._read)

    def _read(self, task: int) -> Any:
        path = storage.join(self.work, f"signatures-{task:05d}")
        if storage.is_local(path):
            return np.memmap(storage.local_path(path), "<u4", "r").reshape(-1, PERMUTATIONS)
        return np.frombuffer(storage.read_bytes(path), "<u4").reshape(-1, PERMUTATIONS)

    def __call__(self, positions: Any) -> Any:
        """Signatures, uint32 of shape (len(positions), `PERMUTATIONS`)."""
        return np.stack([self._load(int(at) >> ROW_BITS)[int(at) & (1 << ROW_BITS) - 1] for at in positions])
