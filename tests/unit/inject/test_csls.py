from __future__ import annotations

import numpy as np

from wals_spark.inject import csls


def test_csls_finds_the_own_row_and_not_under_permutation():
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((500, 20)).astype(np.float32)
    noisy = rows + 0.3 * generator.standard_normal((500, 20)).astype(np.float32)
    queries = csls.stratified_queries(np.arange(500) // 50, 1, 200)
    assert len(queries) == 200
    nothing = np.zeros((1, 20), np.float32), np.zeros(500, int)
    assert csls.csls_hits(noisy[queries], rows, queries, *nothing).mean() > 0.95
    assert csls.csls_hits(noisy[::-1][queries], rows, queries, *nothing).mean() < 0.05


def test_csls_is_its_definition():
    generator = np.random.default_rng(3)
    x, y = generator.standard_normal((2, 30, 4)).astype(np.float32)
    queries = np.arange(30)
    unit = [m / np.linalg.norm(m, axis=1, keepdims=True) for m in (x, y)]
    expected = []
    for i in range(30):
        cosines = [float(unit[0][i] @ unit[1][j]) for j in range(30)]
        hub = [np.mean(sorted(float(unit[0][m] @ unit[1][j]) for m in range(30))[-10:]) for j in range(30)]
        own = np.mean(sorted(cosines)[-10:])
        expected.append(int(np.argmax([2 * c - own - h for c, h in zip(cosines, hub, strict=True)])) == i)
    assert csls.csls_hits(x, y, queries, np.zeros((1, 4), np.float32), np.zeros(30, int)).tolist() == expected
