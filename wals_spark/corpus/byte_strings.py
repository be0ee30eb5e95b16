"""A dictionary of byte strings for compiled loops: open addressing by FNV-1a hashes.

References
----------
.. [1] G. Fowler, L. C. Noll, K.-P. Vo and D. Eastlake, "The FNV non-cryptographic hash algorithm", IETF draft
   draft-eastlake-fnv.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from wals_spark.compiled import compiled
from wals_spark.corpus.document_batch import Bytes, Ints, Longs
from wals_spark.splitmix64 import GOLDEN_GAMMA

FNV_BASIS = 14695981039346656037
FNV_PRIME = 1099511628211
FULL = 4
"""What a kernel returns where the dictionary must grow first."""


class StringTable(NamedTuple):
    """The arrays of a `ByteStringDictionary`, as compiled loops take them.

    Attributes
    ----------
    slots : int32 array, a power of two long
        The string of each slot; -1 = empty.
    hashes : uint64 array
        By string.
    starts : int64 array
        String i is ``heap[starts[i]:starts[i + 1]]``.
    heap : uint8 array
    basis : uint64
        Where the hash of every string begins.
    mask : uint64
        Bits of the hash that count.
    """

    slots: Ints
    hashes: npt.NDArray[np.uint64]
    starts: Longs
    heap: Bytes
    basis: np.uint64
    mask: np.uint64


@compiled(inline="always")
def slot_of(hashed, size):  # type: ignore[no-untyped-def]  # numba infers the types
    """The slot where the search for a hash begins, in a table of `size` slots, a power of two."""
    mixed = hashed ^ (hashed >> np.uint64(32))
    return np.int64(mixed & np.uint64(size - 1))


@compiled()
def _fill_slots(slots, hashes):  # type: ignore[no-untyped-def]
    """Enter strings into an empty table by their hashes."""
    for word in range(len(hashes)):
        at = slot_of(hashes[word], len(slots))
        while slots[at] >= 0:
            at = (at + 1) & (len(slots) - 1)
        slots[at] = word


@compiled()
def find_string(key, used, length, slots, hashes, starts, heap):  # type: ignore[no-untyped-def]
    """The string with the bytes ``heap[used:used + length]``.

    Parameters
    ----------
    key : uint64
        Hash of the bytes.
    used, length : int
    slots : int32 array
        This array and the next ones are those of a `StringTable`, passed one by one: to take them out of it costs a
        count of references each.
    hashes : uint64 array
    starts : int64 array
    heap : uint8 array

    Returns
    -------
    int
        Number of the string, or ``~slot`` where it is to be entered.
    """
    at = slot_of(key, len(slots))
    while slots[at] >= 0:
        word = slots[at]
        origin = starts[word]
        if hashes[word] == key and starts[word + 1] - origin == length:
            same = 0
            while same < length and heap[origin + same] == heap[used + same]:
                same += 1
            if same == length:
                return np.int64(word)
        at = (at + 1) & (len(slots) - 1)
    return ~at


@compiled()
def _intern(data, offsets, first, table, count, ids):  # type: ignore[no-untyped-def]
    """Look up the byte strings ``data[offsets[i]:offsets[i + 1]]`` from `first` on.

    Returns the first one not done, the number of strings known, and `FULL` or 0.
    """
    slots, hashes, starts, heap = table.slots, table.hashes, table.starts, table.heap
    basis, mask, prime = table.basis, table.mask, np.uint64(FNV_PRIME)
    for index in range(first, len(offsets) - 1):
        used, length = starts[count], offsets[index + 1] - offsets[index]
        if used + length > len(heap):
            return index, count, FULL
        hashed = basis
        for step in range(length):
            value = data[offsets[index] + step]
            heap[used + step] = value
            hashed = (hashed ^ np.uint64(value)) * prime
        key = hashed & mask
        word = find_string(key, used, length, slots, hashes, starts, heap)
        if word < 0:
            if count + 2 > len(starts) or 2 * count + 2 > len(slots):
                return index, count, FULL
            slots[~word] = count
            hashes[count] = key
            starts[count + 1] = used + length
            word = count
            count += 1
        ids[index] = word
    return len(offsets) - 1, count, 0


class ByteStringDictionary:
    """A growing dictionary of byte strings: local ids in the order of first appearance.

    Parameters
    ----------
    seed : int
        Of the hash. Another one is tried where two words share a hash.
    hash_bits : int
        Fewer than 64 make collisions likely: for tests.
    """

    def __init__(self, seed: int = 0, hash_bits: int = 64) -> None:
        self.table = StringTable(
            np.full(1 << 16, -1, np.int32),
            np.zeros(1 << 15, np.uint64),
            np.zeros((1 << 15) + 1, np.int64),
            np.zeros(1 << 18, np.uint8),
            np.uint64(FNV_BASIS ^ (seed * GOLDEN_GAMMA & (1 << 64) - 1)),
            np.uint64((1 << hash_bits) - 1),
        )
        self.size = 0

    @property
    def hashes(self) -> npt.NDArray[np.uint64]:
        """The hash of each string, by local id."""
        return self.table.hashes[: self.size]

    @property
    def starts(self) -> Longs:
        """String i is ``heap[starts[i]:starts[i + 1]]``."""
        return self.table.starts[: self.size + 1]

    @property
    def heap(self) -> Bytes:
        """The strings' bytes."""
        return self.table.heap[: int(self.table.starts[self.size])]

    def words(self, first: int = 0) -> list[str]:
        """The strings as text, by local id, from `first` on."""
        starts = self.starts[first:].tolist()
        text = self.heap[starts[0] :].tobytes()
        return [text[low - starts[0] : high - starts[0]].decode() for low, high in itertools.pairwise(starts)]

    def intern(self, strings: list[bytes]) -> Ints:
        """Local ids of byte strings."""
        offsets = np.zeros(len(strings) + 1, np.int64)
        np.cumsum([len(string) for string in strings], out=offsets[1:])
        data = np.frombuffer(b"".join(strings) or b"\0", np.uint8)
        ids = np.empty(len(strings), np.int32)
        done = 0
        while done < len(strings):
            done, self.size, state = _intern(data, offsets, done, self.table, self.size, ids)
            if state == FULL:
                self.grow()
        return ids

    def grow(self) -> None:
        """Double the capacity."""
        old = self.table
        hashes = np.concatenate([old.hashes, np.zeros_like(old.hashes)])
        starts = np.concatenate([old.starts, np.zeros(len(old.hashes), np.int64)])
        heap = np.concatenate([old.heap, np.zeros_like(old.heap)])
        slots = np.full(2 * len(old.slots), -1, np.int32)
        self.table = old._replace(slots=slots, hashes=hashes, starts=starts, heap=heap)
        _fill_slots(slots, self.hashes)
