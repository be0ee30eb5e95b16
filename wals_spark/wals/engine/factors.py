"""The factors of both sides over the ranks: every row on every rank, or each on its owner alone.

::

    replicated   every rank has U and V whole; solved rows go to everyone         4 k (m + n) bytes per rank
    sharded      a rank has the rows it solves; a block of rows fetches the       4 k (m + n) / ranks, and two blocks'
                 rows of the fixed side that its cells name, each once            distinct rows

Both give the same factors, to rounding in the sums over all rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from wals_spark.cluster.process_group import Group
from wals_spark.matrix.array_file import read_ahead
from wals_spark.wals.engine.collectives import SUM_CHUNKS, all_gather_chunks, all_gather_rows, sum_ranges
from wals_spark.wals.partition.side import SIDES, Side, SideBlock
from wals_spark.wals.solvers import cache_lines
from wals_spark.wals.solvers.system import FixedFactors

Part = Callable[[np.ndarray, np.ndarray], np.ndarray]
BATCH_BYTES = 1 << 26


@dataclass(frozen=True)
class FactorLayout:
    """What a row of factors is made of, on its own side and seen from the other.

    A row is ``[u_i]``, or ``[u_i, b_i]`` with biases. Seen from the other side it becomes ``[u_i, 1, b_i]``: its
    last coordinate meets a known 1, and the one before it b_j, which is solved for (free) or known too (fixed).
    """

    k: int
    bias: str

    @property
    def width(self) -> int:
        """Numbers of a row."""
        return self.k + int(self.bias != "none")

    @property
    def unknowns(self) -> int:
        """Numbers of a row that are solved for."""
        return self.k + int(self.bias == "free")

    def features(self, x: np.ndarray) -> np.ndarray:
        """z_j of some rows; shape (rows, k), or (rows, k + 2) with biases."""
        if self.bias == "none":
            return x
        return np.hstack([x[:, : self.k], np.ones((len(x), 1), x.dtype), x[:, self.k :]])

    def known(self, x: np.ndarray) -> np.ndarray:
        """Values of the known coordinates of some rows; shape (rows, 0), (rows, 1) for free, (rows, 2) for fixed."""
        ones = np.ones((len(x), 0 if self.bias == "none" else 1))
        return np.hstack([x[:, self.k :].astype(np.float64), ones]) if self.bias == "fixed" else ones

    def ridge(self, lambdas: np.ndarray) -> np.ndarray:
        """The added diagonal: lambda_i for factors, nothing for a bias; shape (rows, free), not to be written."""
        if self.bias != "free":
            return np.broadcast_to(lambdas[:, None], (len(lambdas), self.k))
        ridge = np.repeat(lambdas[:, None], self.unknowns, axis=1)
        ridge[:, self.k :] = 0.0
        return ridge


class FactorStore(ABC):
    """Factors of both sides.

    Parameters
    ----------
    group : Group
    sides : mapping of "row" and "col" to Side
    layout : FactorLayout
    dtype : dtype

    Attributes
    ----------
    arrays : dict of side to array of shape (local rows, width)
        The rows that this rank has, see `local_ids`.
    """

    def __init__(self, group: Group, sides: Mapping[str, Side], layout: FactorLayout, dtype: np.dtype) -> None:
        self.group, self.sides, self.layout = group, sides, layout
        self.arrays = {
            side: cache_lines.aligned_zeros(len(self.local_ids(side)), layout.width, dtype) for side in SIDES
        }

    @abstractmethod
    def local_ids(self, side: str) -> np.ndarray:
        """Ids of the rows that this rank has, rising."""

    @abstractmethod
    def own_rows(self, side: str) -> np.ndarray:
        """The rows that this rank solves; shape (r, width)."""

    @abstractmethod
    def set_own_rows(self, side: str, solved: np.ndarray) -> None:
        """Replace them, on every rank that has them."""

    @abstractmethod
    def rows_to_write(self, side: str) -> tuple[np.ndarray, np.ndarray]:
        """Ids and rows that this rank writes: those of all ranks are all rows, once."""

    @abstractmethod
    def blocks(
        self, side: str, fixed: str, gramian: np.ndarray, rho: float
    ) -> Iterator[tuple[SideBlock, FixedFactors]]:
        """The own rows of a side in blocks, each with the factors of the rows of `fixed` that its indices name.

        Parameters
        ----------
        side, fixed : {"row", "col"}
        gramian : float64 array of shape (K, K)
            Of the fixed side.
        rho : float

        Yields
        ------
        block : SideBlock
        factors : FixedFactors
        """

    @abstractmethod
    def map_chunks(self, side: str, shape: tuple[int, ...], part: Part, threads: int = 1) -> list[np.ndarray]:
        """``part(rows, ids)`` of chunks that together are all rows of a side, on every rank.

        Parameters
        ----------
        side : {"row", "col"}
        shape : tuple of int
            Of what `part` returns, as float64.
        part : callable
            Of rows of factors and their ids.
        threads : int

        Returns
        -------
        list of float64 array
        """

    def gramian(self, side: str, threads: int = 1, device: str = "cpu") -> np.ndarray:
        """``G = sum_j h_j z_j z_j^T`` in float64, its products on the device; shape (K, K)."""
        h, features = self.sides[side].popularity, self.layout.features
        width = features(self.arrays[side][:0]).shape[1]

        def part(x: np.ndarray, ids: np.ndarray) -> np.ndarray:
            if device == "cuda":
                return _gramian_on_gpu(features(x), h[ids])
            wide = features(x.astype(np.float64))
            return (wide.T * h[ids]) @ wide

        return self._chunked_sum(side, (width, width), part, threads)

    def regularization(self, side: str) -> float:
        """``sum_i lambda_i |u_i|^2`` in float64."""
        lambdas = self.sides[side].ridge

        def part(x: np.ndarray, ids: np.ndarray) -> np.ndarray:
            return lambdas[ids] @ (x[:, : self.layout.k].astype(np.float64) ** 2).sum(1)

        return float(self._chunked_sum(side, (), part))

    def _chunked_sum(self, side: str, shape: tuple[int, ...], part: Part, threads: int = 1) -> np.ndarray:
        """The parts of all rows, added; `part` never sees more than `BATCH_BYTES` of float64."""
        at_once = max(1, BATCH_BYTES // (8 * self.layout.width))

        def chunked(x: np.ndarray, ids: np.ndarray) -> np.ndarray:
            chunks = [slice(start, start + at_once) for start in range(0, len(x), at_once)]
            return sum((part(x[chunk], ids[chunk]) for chunk in chunks), np.zeros(shape))

        return np.sum(self.map_chunks(side, shape, chunked, threads), axis=0)


def _gramian_on_gpu(z: np.ndarray, h: np.ndarray) -> np.ndarray:
    import torch

    wide = torch.from_numpy(z).to("cuda").double()
    return ((wide.T * torch.from_numpy(h).to("cuda")) @ wide).cpu().numpy()


class ReplicatedFactors(FactorStore):
    """Every rank has every row."""

    def local_ids(self, side: str) -> np.ndarray:
        return np.arange(self.sides[side].size)

    def own_rows(self, side: str) -> np.ndarray:
        return self.arrays[side][self.sides[side].ids]

    def set_own_rows(self, side: str, solved: np.ndarray) -> None:
        all_gather_rows(self.group, self.sides[side].owner, self.sides[side].ids, solved, self.arrays[side])

    def rows_to_write(self, side: str) -> tuple[np.ndarray, np.ndarray]:
        x = self.arrays[side]
        ids = slice(len(x) * self.group.rank // self.group.size, len(x) * (self.group.rank + 1) // self.group.size)
        return np.arange(ids.start, ids.stop), x[ids]

    def blocks(
        self, side: str, fixed: str, gramian: np.ndarray, rho: float
    ) -> Iterator[tuple[SideBlock, FixedFactors]]:
        z = self.layout.features(self.arrays[fixed])
        factors = FixedFactors(z, self.sides[fixed].popularity, gramian, rho)
        for block in self.sides[side].blocks:
            yield block, factors

    def map_chunks(self, side: str, shape: tuple[int, ...], part: Part, threads: int = 1) -> list[np.ndarray]:
        x = self.arrays[side]

        def chunk(where: slice) -> np.ndarray:
            return part(x[where], np.arange(where.start, where.stop))

        own = sum_ranges(len(x))[self.group.rank :: self.group.size]
        return all_gather_chunks(self.group, own, shape, chunk, threads)[:SUM_CHUNKS]


class ShardedFactors(FactorStore):
    """Every rank has the rows that it solves, and fetches ghost rows a block at a time."""

    def local_ids(self, side: str) -> np.ndarray:
        return self.sides[side].ids

    def own_rows(self, side: str) -> np.ndarray:
        return self.arrays[side]

    def set_own_rows(self, side: str, solved: np.ndarray) -> None:
        self.arrays[side][:] = solved

    def rows_to_write(self, side: str) -> tuple[np.ndarray, np.ndarray]:
        return self.sides[side].ids, self.arrays[side]

    def blocks(
        self, side: str, fixed: str, gramian: np.ndarray, rho: float
    ) -> Iterator[tuple[SideBlock, FixedFactors]]:
        return read_ahead(self._fetched(side, fixed, gramian, rho))

    def _fetched(
        self, side: str, fixed: str, gramian: np.ndarray, rho: float
    ) -> Iterator[tuple[SideBlock, FixedFactors]]:
        x, weights = self.arrays[fixed], self.sides[fixed].popularity
        for block in self.sides[side].blocks:
            halo = block.halo
            assert halo is not None
            received = self.group.all_to_all(halo.split(x))
            fetched = cache_lines.aligned_zeros(len(halo.ghost_ids), x.shape[1], x.dtype)
            np.concatenate(received, out=fetched)
            z = self.layout.features(fetched)
            yield block, FixedFactors(z, weights[halo.ghost_ids], gramian, rho)

    def map_chunks(self, side: str, shape: tuple[int, ...], part: Part, threads: int = 1) -> list[np.ndarray]:
        x, ids = self.arrays[side], self.sides[side].ids

        def chunk(where: slice) -> np.ndarray:
            return part(x[where], ids[where])

        return all_gather_chunks(self.group, sum_ranges(len(x), self.group.size), shape, chunk, threads)
