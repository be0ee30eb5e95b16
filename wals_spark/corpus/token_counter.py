"""Counts of tokens and of the documents that hold them."""

from __future__ import annotations

import numpy as np

from wals_spark.compiled import compiled
from wals_spark.corpus.document_batch import Ints, Longs


@compiled()
def _count_tokens(tokens, offsets, document, counts, document_counts, last):  # type: ignore[no-untyped-def]
    """Add occurrences, and documents with an occurrence; `document` numbers the first one."""
    for index in range(len(offsets) - 1):
        for position in range(offsets[index], offsets[index + 1]):
            token = tokens[position]
            if token >= 0:
                counts[token] += 1
                if last[token] != document + index:
                    last[token] = document + index
                    document_counts[token] += 1


class TokenCounter:
    """Counts of tokens, and of the documents that hold them; ids may grow."""

    def __init__(self, size: int = 1 << 16) -> None:
        self.counts = np.zeros(size, np.int64)
        self.document_counts = np.zeros(size, np.int64)
        self._last = np.full(size, -1, np.int64)
        self._documents = 0

    def add(self, tokens: Ints, offsets: Longs, size: int) -> None:
        """Count documents ``tokens[offsets[d]:offsets[d + 1]]`` with ids below `size`; negative ids are passed over."""
        if size > len(self.counts):
            wider = max(size, 2 * len(self.counts))
            self.counts = np.concatenate([self.counts, np.zeros(wider - len(self.counts), np.int64)])
            self.document_counts = np.concatenate(
                [self.document_counts, np.zeros(wider - len(self.document_counts), np.int64)]
            )
            self._last = np.concatenate([self._last, np.full(wider - len(self._last), -1, np.int64)])
        _count_tokens(tokens, offsets, self._documents, self.counts, self.document_counts, self._last)
        self._documents += len(offsets) - 1
