r"""Quantisation as the control of every factorisation: fewer bits for the same matrix.

- `quantise_integers`: e_ij ~ s_i q_ij with q_ij an integer of b bits in -2^(b-1)+1 .. 2^(b-1)-1 and
  s_i = max_j |e_ij| / (2^(b-1) - 1); b = 8 is INT8.
- `product_quantise`: columns in M groups, every row's part of a group replaced by the nearest of 256 centroids
  (k-means), M bytes per row.
- `quantise_float16`: float16.

References
----------
H. Jégou, M. Douze, C. Schmid, "Product quantization for nearest neighbor search", IEEE Transactions on Pattern Analysis
and Machine Intelligence 33(1), 2011.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

CENTROIDS = 256
ITERATIONS = 8
SAMPLE_ROWS = 8192
CHUNK_ROWS = 8192
SCALE_BYTES = 4


@dataclass(frozen=True)
class QuantisedEmbedding:
    """A quantised matrix, expanded again.

    Attributes
    ----------
    name : str
    values : float32 array of shape (V, d)
    bytes : int
        Of the codes as stored, scales or centroids (4 bytes a number) included.
    parameters : int
        Numbers and codes stored.
    """

    name: str
    values: np.ndarray
    bytes: int
    parameters: int


def quantise_integers(E: np.ndarray, bits: int) -> QuantisedEmbedding:
    """Symmetric integers of `bits` bits (2 to 8) with a scale per row."""
    top = 2 ** (bits - 1) - 1
    scale = np.abs(E).max(axis=1, keepdims=True) / top
    scale[scale == 0] = 1.0
    values = (np.rint(E / scale) * scale).astype(np.float32)
    return QuantisedEmbedding(f"INT{bits}", values, -(-E.size * bits // 8) + SCALE_BYTES * len(E), E.size + len(E))


def quantise_float16(E: np.ndarray) -> QuantisedEmbedding:
    """Entries rounded to float16."""
    return QuantisedEmbedding("float16", E.astype(np.float16).astype(np.float32), 2 * E.size, E.size)


def product_quantise(E: np.ndarray, groups: int, seed: int = 0) -> QuantisedEmbedding:
    """Product quantisation with `groups` groups of columns, the first of which may be one column wider.

    k-means on a sample of `SAMPLE_ROWS` rows, `ITERATIONS` steps from random rows; an empty centroid stays where it is.
    """
    V, d = E.shape
    generator = np.random.default_rng([seed, 3])
    sample = generator.permutation(V)[:SAMPLE_ROWS]
    values = np.empty((V, d), np.float32)
    for columns in np.array_split(np.arange(d), groups):
        part = np.ascontiguousarray(E[:, columns], np.float32)
        centroids = _kmeans(part[sample], generator)
        values[:, columns] = centroids[nearest_centroids(part, centroids)]
    size = min(CENTROIDS, V)
    return QuantisedEmbedding(
        f"PQ {groups} x 8 bit", values, V * groups + SCALE_BYTES * size * d, V * groups + size * d
    )


def _kmeans(rows: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    centroids = rows[generator.permutation(len(rows))[:CENTROIDS]].copy()
    for _ in range(ITERATIONS):
        code = nearest_centroids(rows, centroids)
        counts = np.bincount(code, minlength=len(centroids))
        sums = np.stack([np.bincount(code, column, len(centroids)) for column in rows.T], axis=1)
        filled = counts > 0
        centroids[filled] = sums[filled] / counts[filled, None]
    return centroids


def nearest_centroids(rows: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """The nearest centroid of every row, int64 (n,): argmax of x.c - |c|^2 / 2."""
    import torch

    codes = np.empty(len(rows), np.int64)
    half = torch.from_numpy((centroids**2).sum(axis=1) / 2)
    transposed = torch.from_numpy(np.ascontiguousarray(centroids.T))
    for start in range(0, len(rows), CHUNK_ROWS):
        part = torch.from_numpy(rows[start : start + CHUNK_ROWS])
        codes[start : start + CHUNK_ROWS] = (part @ transposed - half).argmax(dim=1).numpy()
    return codes


def controls(E: np.ndarray, budget: int, seed: int = 0) -> Iterator[QuantisedEmbedding]:
    """Of each kind of quantisation the finest that fits into `budget` bytes, if any."""
    V, d = E.shape
    groups = min(d, (budget - SCALE_BYTES * min(CENTROIDS, V) * d) // V)
    if groups >= 1:
        yield product_quantise(E, groups, seed)
    bits = min(8, (budget - SCALE_BYTES * V) * 8 // E.size)
    if bits >= 2:
        yield quantise_integers(E, int(bits))
    if 2 * E.size <= budget:
        yield quantise_float16(E)
