r"""The Hessian of the softmax loss at some rows, as an operator: its product with a direction, never a matrix.

::

    (H V)_v = sum_t p_tv (v_v . x_t - sum_u p_tu v_u . x_t) x_t

At vocabularies of thousands of rows nearly all of the sum lies in few cells (t, v). `CellHessian` sums the cells with
p_tv of at least `SMALLEST_CELL` exactly, and takes the others' part as that of a separable weight, as unobserved cells
have it in WALS: (rest_v G) v_v with G = sum_t x_t x_t^T / n and rest_v = sum_t p_tv over the other cells.
`DenseHessian` is the formula itself, in matrix products, for GPUs and small cases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

import numpy as np

from wals_spark.inject.fit.cell_kernels import CellChunk, add_rows, cell_chunk, curvature_weights

if TYPE_CHECKING:
    import torch

    from wals_spark.inject.fit.softmax_loss import SoftmaxLoss

SMALLEST_CELL = 1e-3


class Hessian(Protocol):
    """The Hessian of this rank's part of the loss."""

    def multiply(self, V: torch.Tensor) -> torch.Tensor:
        """H V, of the shape of V, (A, d + 1)."""
        ...


class DenseHessian:
    """The Hessian by matrix products over all rows.

    Parameters
    ----------
    loss : SoftmaxLoss
    D : float32 tensor of shape (A, d + 1)
        Where it is taken.
    """

    def __init__(self, loss: SoftmaxLoss, D: torch.Tensor) -> None:
        self._loss, self._D = loss, D

    def multiply(self, V: torch.Tensor) -> torch.Tensor:
        """H V."""
        import torch

        found = torch.zeros_like(V)
        for x, p in self._loss.probabilities(self._D):
            u = x @ V.T  # (c, A)
            u -= (p * u).sum(1, keepdim=True)
            found.addmm_((p * u).T, x)
        return found


class CellHessian:
    """The Hessian by its large cells, the others by one separable weight.

    An evaluation of the loss visits `add`; `finish` is called once after it.

    Parameters
    ----------
    loss : SoftmaxLoss
    gram : float32 tensor of shape (d + 1, d + 1)
        G.
    threads : int
    """

    def __init__(self, loss: SoftmaxLoss, gram: torch.Tensor, threads: int = 1) -> None:
        self._loss, self._gram, self._threads = loss, gram, threads
        self._cells: list[tuple[slice, CellChunk]] = []
        self._rest: torch.Tensor | None = None

    def add(self, part: slice, p: torch.Tensor) -> None:
        """Keep the large ones of p_tv (c, A) at a chunk of positions."""
        row, column = (p >= SMALLEST_CELL).nonzero(as_tuple=True)
        self._cells.append((part, cell_chunk(row.numpy(), column.numpy(), p[row, column].numpy(), len(p))))

    def finish(self, mass: torch.Tensor) -> None:
        """Take what is left of sum_t p_tv (A,) as the separable weight."""
        import torch

        kept = np.zeros(len(mass))
        for _, chunk in self._cells:
            kept += np.bincount(chunk.column, weights=chunk.p, minlength=len(mass))
        self._rest = (mass.double() - torch.from_numpy(kept)).clamp_min(0).float()

    @property
    def cells(self) -> int:
        """Cells that are summed exactly."""
        return sum(len(chunk.column) for _, chunk in self._cells)

    def multiply(self, V: torch.Tensor) -> torch.Tensor:
        """H V."""
        import torch

        assert self._rest is not None, "finish first"
        W = V.contiguous().numpy()
        found = np.zeros_like(W)
        with ThreadPoolExecutor(self._threads) as pool:
            for part, chunk in self._cells:
                x = self._loss.features(part).numpy()
                weights = np.empty(len(chunk.column), np.float32)
                _in_ranges(pool, self._threads, chunk.indptr, curvature_weights, (x, W, chunk, weights))
                _in_ranges(pool, self._threads, chunk.row_ptr, add_rows, (x, weights, chunk, found))
        return torch.from_numpy(found).add_((V * self._rest[:, None]) @ self._gram)


def _in_ranges(
    pool: ThreadPoolExecutor,
    threads: int,
    ends: np.ndarray,
    kernel: Callable[..., None],
    arguments: Sequence[object],
) -> None:
    """Run a kernel over ranges of about equal numbers of cells, whose cumulated numbers are `ends`."""
    for _ in pool.map(lambda bounds: kernel(*arguments, *bounds), _ranges(ends, threads)):
        pass


def _ranges(ends: np.ndarray, parts: int) -> Iterator[tuple[int, int]]:
    bounds = np.searchsorted(ends, np.linspace(0, ends[-1], parts + 1))
    bounds[0], bounds[-1] = 0, len(ends) - 1
    yield from ((int(low), int(high)) for low, high in pairwise(bounds) if high > low)
