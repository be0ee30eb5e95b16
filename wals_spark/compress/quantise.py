r"""Controls that every factorisation has to beat: fewer bits for the same matrix.

``integers``: e_ij ~ s_i q_ij, q_ij an integer of b bits in -2^(b-1)+1 .. 2^(b-1)-1, s_i = max_j |e_ij| / (2^(b-1) - 1);
b = 8 is INT8. ``product``: columns in M groups, every row's part of a group replaced by the nearest of 256 centroids
(k-means): M bytes per row. ``halves``: float16.
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
class Quantised:
    """A quantised matrix, expanded again.

    Attributes
    ----------
    name : str
    values : float32 (V, d)
    bytes : int
        What it would take stored, scales or centroids (4 bytes a number) included.
    parameters : int
        Numbers and codes stored.
    """

    name: str
    values: np.ndarray
    bytes: int
    parameters: int


def integers(E: np.ndarray, bits: int) -> Quantised:
    """Symmetric integers of `bits` bits (2 to 8) with a scale per row."""
    top = 2 ** (bits - 1) - 1
    scale = np.abs(E).max(axis=1, keepdims=True) / top
    scale[scale == 0] = 1.0
    values = (np.rint(E / scale) * scale).astype(np.float32)
    return Quantised(f"INT{bits}", values, -(-E.size * bits // 8) + SCALE_BYTES * len(E), E.size + len(E))


def halves(E: np.ndarray) -> Quantised:
    """float16."""
    return Quantised("float16", E.astype(np.float16).astype(np.float32), 2 * E.size, E.size)


def product(E: np.ndarray, groups: int, seed: int = 0) -> Quantised:
    """Product quantisation with `groups` groups of columns, the first of which may be one column wider.

    k-means on a sample of `SAMPLE_ROWS` rows, `ITERATIONS` steps from random rows; an empty centroid stays put.
    """
    V, d = E.shape
    generator = np.random.default_rng([seed, 3])
    sample = generator.permutation(V)[:SAMPLE_ROWS]
    values = np.empty((V, d), np.float32)
    for columns in np.array_split(np.arange(d), groups):
        part = np.ascontiguousarray(E[:, columns], np.float32)
        centroids = _kmeans(part[sample], generator)
        values[:, columns] = centroids[nearest(part, centroids)]
    size = min(CENTROIDS, V)
    return Quantised(f"PQ {groups} x 8 bit", values, V * groups + SCALE_BYTES * size * d, V * groups + size * d)


def _kmeans(rows: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    centroids = rows[generator.permutation(len(rows))[:CENTROIDS]].copy()
    for _ in range(ITERATIONS):
        code = nearest(rows, centroids)
        counts = np.bincount(code, minlength=len(centroids))
        sums = np.stack([np.bincount(code, column, len(centroids)) for column in rows.T], axis=1)
        filled = counts > 0
        centroids[filled] = sums[filled] / counts[filled, None]
    return centroids


def nearest(rows: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """The nearest centroid of every row, int64 (n,): argmax of x.c - |c|^2 / 2."""
    import torch

    codes = np.empty(len(rows), np.int64)
    half = torch.from_numpy((centroids**2).sum(axis=1) / 2)
    turned = torch.from_numpy(np.ascontiguousarray(centroids.T))
    for start in range(0, len(rows), CHUNK_ROWS):
        part = torch.from_numpy(rows[start : start + CHUNK_ROWS])
        codes[start : start + CHUNK_ROWS] = (part @ turned - half).argmax(dim=1).numpy()
    return codes


def controls(E: np.ndarray, budget: int, seed: int = 0) -> Iterator[Quantised]:
    """Of each kind the finest that fits into `budget` bytes; a kind whose coarsest does not fit is left out."""
    V, d = E.shape
    groups = min(d, (budget - SCALE_BYTES * min(CENTROIDS, V) * d) // V)
    if groups >= 1:
        yield product(E, groups, seed)
    bits = min(8, (budget - SCALE_BYTES * V) * 8 // E.size)
    if bits >= 2:
        yield integers(E, int(bits))
    if 2 * E.size <= budget:
        yield halves(E)
