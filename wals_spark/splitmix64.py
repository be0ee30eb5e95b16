"""SplitMix64: a bijection of 64-bit words whose output bits all depend on all input bits, and its random sequence.

z_n = seed + n gamma mod 2^64,   output_n = mix64(z_n),   n = 1, 2, ...

References
----------
.. [1] Guy L. Steele Jr., Doug Lea, Christine H. Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]
WordsT = TypeVar("WordsT", Words, np.uint64)

GOLDEN_GAMMA = 0x9E3779B97F4A7C15
"""The increment of the sequence: 2^64 over the golden ratio, odd."""

_FIRST_MULTIPLIER = np.uint64(0xBF58476D1CE4E5B9)
_SECOND_MULTIPLIER = np.uint64(0x94D049BB133111EB)


def mix64(x: WordsT) -> WordsT:
    """The finaliser of SplitMix64 [1]_, without the increment.

    Compiled code applies `wals_spark.compiled.compiled` to this function itself.

    Parameters
    ----------
    x : uint64 array
        Any shape; in compiled code a uint64.

    Returns
    -------
    uint64 array
        Of the shape of `x`.
    """
    x = (x ^ (x >> np.uint64(30))) * _FIRST_MULTIPLIER
    x = (x ^ (x >> np.uint64(27))) * _SECOND_MULTIPLIER
    return x ^ (x >> np.uint64(31))


def splitmix64(seed: int, count: int) -> Words:
    """The first outputs of the generator that starts at a seed.

    Parameters
    ----------
    seed : int
        Taken modulo 2^64.
    count : int

    Returns
    -------
    uint64 array of shape (count,)
    """
    steps = np.arange(1, count + 1, dtype=np.uint64)
    return mix64(np.uint64(seed & 0xFFFFFFFFFFFFFFFF) + steps * np.uint64(GOLDEN_GAMMA))


def hash_words(*words: int | Words) -> Words:
    """A stateless hash of a row of 64-bit words, ``x_0 = 0, x_i = mix64((x_{i-1} XOR w_i) + i gamma)``.

    Parameters
    ----------
    *words : int or uint64 array
        Taken modulo 2^64; arrays broadcast, numbers count as arrays of shape (1,).

    Returns
    -------
    uint64 array
        x of the last word, of the shape that the words broadcast to.
    """
    x = np.zeros(1, np.uint64)
    for place, word in enumerate(words, 1):
        w = np.array([word & 0xFFFFFFFFFFFFFFFF], np.uint64) if isinstance(word, int) else word
        x = mix64((x ^ w) + np.uint64(place * GOLDEN_GAMMA & 0xFFFFFFFFFFFFFFFF))
    return x
