"""Lines that stand in many documents (menus, licences, footers): found by document frequency, then removed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from wals_spark.corpus.document_batch import DocumentBatch
from wals_spark.corpus.shuffle import ShuffleRecord, pack_table, unpack_table
from wals_spark.corpus.token_counter import TokenCounter
from wals_spark.corpus.words import WordEncoder

LINE = r"[^\n]+"
Hashes = npt.NDArray[np.uint64]


class LineCounter:
    """In how many documents each line stands, by a 64-bit hash of its bytes."""

    def __init__(self) -> None:
        self._hashes: list[Hashes] = []
        self._documents: list[npt.NDArray[np.int64]] = []

    def add(self, batch: DocumentBatch) -> None:
        """Count the lines of documents, each once per document."""
        index, tokens = WordEncoder(LINE, "keep"), TokenCounter()
        found = index.encode(batch)
        tokens.add(found.tokens, found.offsets, index.size)
        self._hashes.append(index.hashes.copy())
        self._documents.append(tokens.document_counts[: index.size].copy())

    def records(self, buckets: int) -> list[ShuffleRecord]:
        """The counts by bucket of the hash."""
        if not self._hashes:
            return []
        hashes, documents = _summed(np.concatenate(self._hashes), np.concatenate(self._documents))
        return [
            ShuffleRecord(bucket, "lines", _packed(hashes[rows], documents[rows]))
            for bucket in range(buckets)
            if len(rows := np.flatnonzero(hashes % np.uint64(buckets) == bucket))
        ]


def _packed(hashes: Hashes, documents: npt.NDArray[np.int64]) -> bytes:
    return pack_table(pa.table({"hash": pa.array(hashes), "documents": pa.array(documents)}))


def _summed(hashes: Hashes, documents: npt.NDArray[np.int64]) -> tuple[Hashes, npt.NDArray[np.int64]]:
    order = np.argsort(hashes, kind="stable")
    hashes = hashes[order]
    starts = np.flatnonzero(np.concatenate([[True], hashes[1:] != hashes[:-1]]))
    return hashes[starts], np.add.reduceat(documents[order], starts)


def frequent_lines(payloads: Sequence[bytes], least: int) -> Hashes:
    """Hashes of the lines that stand in at least `least` documents."""
    if not payloads:
        return np.zeros(0, np.uint64)
    table = pa.concat_tables([unpack_table(payload) for payload in payloads])
    hashes, documents = _summed(table["hash"].to_numpy(), table["documents"].to_numpy())
    return hashes[documents >= least]


def remove_lines(batch: DocumentBatch, lines: Hashes, counts: Counter[str]) -> DocumentBatch:
    """Documents without the lines of the given hashes (sorted)."""
    if not len(lines):
        return batch
    encoder = WordEncoder(LINE, "keep")
    found = encoder.encode(batch)
    place = np.minimum(np.searchsorted(lines, encoder.hashes), len(lines) - 1)
    unwanted = (lines[place] == encoder.hashes)[found.tokens]
    per_document = np.add.reduceat(np.append(unwanted, False).astype(np.int64), found.offsets[:-1])
    per_document[np.diff(found.offsets) == 0] = 0
    changed: dict[int, bytes] = {}
    for document in np.flatnonzero(per_document).tolist():
        drop = iter(unwanted[found.offsets[document] : found.offsets[document + 1]].tolist())
        kept = [line for line in batch.text(document).split(b"\n") if not line or not next(drop)]
        changed[document] = b"\n".join(kept)
    counts["boilerplate_lines"] += int(unwanted.sum())
    counts["documents_with_boilerplate"] += len(changed)
    return batch.replace_texts(changed)
