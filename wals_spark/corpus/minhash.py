"""MinHash: estimates of how much two texts share, without comparing all pairs.

J(A, B) = |A n B| / |A u B| over the sets of `SHINGLE` consecutive words of two documents. For a random order of
all shingles the first one of A and of B is the same with probability J, so the share of `PERMUTATIONS` orders
in which they agree estimates J, with standard deviation sqrt(J (1 - J) / 128) <= 0.044. Documents that agree in
all rows of one of `BANDS` bands of the signature are candidates: a pair of similarity s is one with probability
1 - (1 - s^8)^16, that is 0.02 at 0.43, 0.95 at 0.8 and 0.9999 at 0.9.

References
----------
.. [1] A. Z. Broder, "On the resemblance and containment of documents", Compression and Complexity of Sequences, 1997.
.. [2] P. Indyk and R. Motwani, "Approximate nearest neighbors: towards removing the curse of dimensionality", STOC,
   1998.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from wals_spark.compiled import compiled
from wals_spark.corpus.byte_strings import FNV_BASIS, FNV_PRIME
from wals_spark.corpus.document_batch import DocumentBatch
from wals_spark.corpus.words import WordEncoder
from wals_spark.splitmix64 import splitmix64

SHINGLE = 5
PERMUTATIONS = 128
BANDS = 16
PAIRS_PER_GROUP = 64
"""In a larger group of candidates, every document is compared with the first ones only, this many."""

Signatures = npt.NDArray[np.uint32]
Hashes = npt.NDArray[np.uint64]

MULTIPLIERS = splitmix64(1, PERMUTATIONS) | np.uint64(1)
ADDENDS = splitmix64(2, PERMUTATIONS)


def minhash_signatures(batch: DocumentBatch, encoder: WordEncoder) -> Signatures:
    """Signatures of documents, uint32 of shape (documents, `PERMUTATIONS`).

    Parameters
    ----------
    encoder : WordEncoder
        Gives the words; its dictionary grows. A document without words counts as one shingle, its bytes.
    """
    found = encoder.encode(batch)
    out = np.empty((len(batch), PERMUTATIONS), np.uint32)
    _minhash(found.tokens, found.offsets, encoder.hashes, batch.data, batch.offsets, MULTIPLIERS, ADDENDS, out)
    return out


@compiled()
def _minhash(tokens, offsets, hashes, data, bounds, multipliers, addends, out):  # type: ignore[no-untyped-def]
    for document in range(len(offsets) - 1):
        low, high = offsets[document], offsets[document + 1]
        out[document, :] = 0xFFFFFFFF
        last = max(low, high - SHINGLE)
        for start in range(low, last + 1):
            shingle = np.uint64(FNV_BASIS)
            if high > low:
                for at in range(start, min(start + SHINGLE, high)):
                    shingle = (shingle ^ hashes[tokens[at]]) * np.uint64(FNV_PRIME)
                    shingle ^= shingle >> np.uint64(29)
            else:
                for at in range(bounds[document], bounds[document + 1]):
                    shingle = (shingle ^ np.uint64(data[at])) * np.uint64(FNV_PRIME)
            for order in range(len(multipliers)):
                value = np.uint32((multipliers[order] * shingle + addends[order]) >> np.uint64(32))
                out[document, order] = min(out[document, order], value)


def band_keys(found: Signatures) -> Hashes:
    """A hash of each band of each signature, uint64 of shape (documents, `BANDS`); each band hashes differently."""
    rows = found.reshape(len(found), BANDS, PERMUTATIONS // BANDS).astype(np.uint64)
    keys = np.broadcast_to(splitmix64(3, BANDS), rows.shape[:2]).copy()
    for row in range(rows.shape[2]):
        keys = (keys ^ rows[:, :, row]) * np.uint64(FNV_PRIME)
        keys ^= keys >> np.uint64(32)
    return keys


def similar_to_earlier(
    keys: Hashes, positions: npt.NDArray[np.int64], fetch: Any, similarity: float
) -> npt.NDArray[np.int64]:
    """Documents that are similar to an earlier one, ``|signature = signature'| / 128 >= similarity``.

    Parameters
    ----------
    keys : uint64 array of shape (n,)
        Band keys; equal ones make their documents candidates.
    positions : int64 array of shape (n,)
        Document of each key; the order of documents is that of positions.
    fetch : callable
        Positions -> signatures, uint32 of shape (len(positions), `PERMUTATIONS`).
    similarity : float
        Least estimated J.

    Returns
    -------
    int64 array of shape (m,)
        Positions of these documents, ascending.
    """
    order = np.lexsort((positions, keys))
    keys, positions = keys[order], positions[order]
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    sizes = np.diff(np.append(starts, len(keys)))
    found: set[int] = set()
    for start, size in zip(starts[sizes > 1].tolist(), sizes[sizes > 1].tolist(), strict=True):
        group = np.unique(positions[start : start + size])
        values = fetch(group)
        for place in range(1, len(group)):
            if int(group[place]) in found:
                continue
            earlier = values[: min(place, PAIRS_PER_GROUP)]
            if (earlier == values[place]).mean(axis=1).max() >= similarity:
                found.add(int(group[place]))
    return np.array(sorted(found), np.int64)
