"""SplitMix64 against the outputs of its authors' reference implementation."""

from __future__ import annotations

import numpy as np
import pytest

from wals_spark.compiled import compiled
from wals_spark.splitmix64 import GOLDEN_GAMMA, hash_words, mix64, splitmix64

PUBLISHED = {
    0: [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F],
    1234567: [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821],
}


@pytest.mark.parametrize("seed", PUBLISHED)
def test_published_outputs(seed):
    assert splitmix64(seed, len(PUBLISHED[seed])).tolist() == PUBLISHED[seed]


def test_seeds_are_taken_modulo_2_to_the_64():
    assert splitmix64(-1, 4).tolist() == splitmix64(2**64 - 1, 4).tolist()


def test_the_compiled_finaliser_is_the_same():
    compiled_mix64 = compiled(nogil=True)(mix64)
    words = np.arange(1, 6, dtype=np.uint64) * np.uint64(GOLDEN_GAMMA)
    assert [int(compiled_mix64(word)) for word in words] == mix64(words).tolist()


def test_the_finaliser_keeps_words_apart():
    assert len(np.unique(mix64(np.arange(10_000, dtype=np.uint64)))) == 10_000


def test_a_hash_of_words_chains_the_generator():
    """Of one word it is output number 1 of the generator that the word seeds."""
    assert hash_words(1234567).tolist() == [PUBLISHED[1234567][0]]
    second = (hash_words(7) ^ np.uint64(9)) + np.uint64(2 * GOLDEN_GAMMA & (2**64 - 1))
    assert hash_words(7, 9).tolist() == mix64(second).tolist()


def test_a_hash_of_words_broadcasts_and_depends_on_their_order():
    grid = hash_words(3, np.arange(50, dtype=np.uint64)[:, None], np.arange(60, dtype=np.uint64)[None, :])
    assert grid.shape == (50, 60)
    assert len(np.unique(grid)) == 3000
    assert grid[4, 9] == hash_words(3, 4, 9)[0] != hash_words(3, 9, 4)[0]
