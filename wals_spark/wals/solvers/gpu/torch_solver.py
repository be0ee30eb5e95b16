"""The exact half-step in batches of rows, for GPUs: padded gathers, batched products, batched Cholesky.

Rows are sorted by length and cut into batches of nearly equal length, so padding stays at a few per cent; a row
longer than `longest` is accumulated in segments. `oracles.wals` has the oracle.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch

from wals_spark.wals.solvers.cpu import Solver, refuse_singular
from wals_spark.wals.solvers.row_block import RowBlock
from wals_spark.wals.solvers.system import System

logger = logging.getLogger(__name__)

MAX_ELEMENTS = 2**31 - 1
MAX_BATCH = 65_535


@dataclass(frozen=True)
class RowBatch:
    """Rows that are solved together.

    Attributes
    ----------
    rows : int64 array of shape (B,)
        Positions among the own rows.
    longest : int
        Cells of the longest of them.
    """

    rows: np.ndarray
    longest: int


def plan_batches(lengths: np.ndarray, k: int, itemsize: int, bytes_at_once: int, longest: int) -> Iterator[RowBatch]:
    """Rows with cells, in rising order of length, cut so that a batch fits and pads little.

    A batch of B rows padded to L cells holds B (2 L k + 3 k^2) numbers; ``B k k`` stays below 2^31 and B below
    65,536, beyond which some CUDA kernels fail.

    Parameters
    ----------
    lengths : int64 array of shape (r,)
    k : int
    itemsize : int
        Bytes of a number.
    bytes_at_once : int
    longest : int
        Cells gathered at once for a row.

    Yields
    ------
    RowBatch
    """
    order = np.argsort(lengths, kind="stable")
    order = order[lengths[order] > 0]
    start = 0
    while start < len(order):
        # Padding by at most an eighth, and short rows are padded to 8 cells.
        limit = max(8, int(lengths[order[start]] * 1.125))
        stop = int(np.searchsorted(lengths[order], limit, side="right"))
        cells = min(limit, longest)
        most = max(
            1, min(bytes_at_once // (itemsize * (2 * cells * k + 3 * k * k)), MAX_ELEMENTS // (k * k), MAX_BATCH)
        )
        stop = min(stop, start + most)
        rows = order[start:stop]
        yield RowBatch(rows, int(lengths[rows[-1]]))
        start = stop


class TorchSolver(Solver):
    """See the module.

    Parameters
    ----------
    device : str
    bytes_at_once : int, optional
        Memory of a batch; None = a quarter of what is free on a GPU, 256 MiB on a CPU.
    longest : int
        Longest segment of a row.
    """

    def __init__(self, device: str, bytes_at_once: int | None = None, longest: int = 4096) -> None:
        self.device = torch.device(device)
        self.longest = longest
        if bytes_at_once is None:
            free = torch.cuda.mem_get_info()[0] if self.device.type == "cuda" else 1 << 30
            bytes_at_once = free // 4
        self.bytes_at_once = bytes_at_once
        self._resident: WeakKeyDictionary[RowBlock, tuple[torch.Tensor, ...]] = WeakKeyDictionary()

    def solve(self, block: RowBlock, system: System) -> tuple[np.ndarray, np.ndarray]:
        dtype = {"float32": torch.float32, "float64": torch.float64}[system.fixed_factors.z.dtype.name]
        systems = _PaddedSystems(self, block, system, dtype)
        lengths = np.diff(block.indptr)
        count, width = len(block), system.fixed_factors.z.shape[1]
        out = torch.zeros((count, system.ridge.shape[1]), dtype=dtype, device=self.device)
        row_loss = torch.zeros(count, dtype=torch.float64, device=self.device)
        failed = []
        for batch in plan_batches(lengths, width, system.fixed_factors.z.itemsize, self.bytes_at_once, self.longest):
            rows = torch.from_numpy(batch.rows).to(self.device)
            x, loss, info = systems.solve(rows, batch.longest)
            out[rows], row_loss[rows] = x, loss
            failed.append((batch.rows, info))
        again = np.concatenate([rows[(info != 0).cpu().numpy()] for rows, info in failed] or [np.zeros(0, np.int64)])
        x_host, loss_host = out.cpu().numpy(), row_loss.cpu().numpy()
        self.solve_again(block, system, again, x_host, loss_host)
        return x_host, loss_host

    def solve_again(
        self, block: RowBlock, system: System, rows: np.ndarray, out: np.ndarray, row_loss: np.ndarray
    ) -> None:
        """As `solve_in_float64`, for rows that failed in the factors' own precision.

        Parameters
        ----------
        block : RowBlock
        system : System
        rows : int64 array
            May be empty.
        out, row_loss : arrays of shapes (r, solved coordinates) and (r,), written
        """
        if len(rows):
            logger.warning("%d rows are nearly singular in %s, solved in float64", len(rows), out.dtype)
            self.solve_in_float64(block, system, rows, out, row_loss)

    def solve_in_float64(
        self, block: RowBlock, system: System, rows: np.ndarray, out: np.ndarray, row_loss: np.ndarray
    ) -> None:
        """Solve some rows in float64, and refuse those that fail even so.

        Parameters
        ----------
        block : RowBlock
        system : System
        rows : int64 array
        out, row_loss : arrays of shapes (r, solved coordinates) and (r,), written

        Raises
        ------
        InputError
            A system is not positive definite even so; the rows are named.
        """
        double = _PaddedSystems(self, block, system, torch.float64)
        still = []
        for row in rows:
            cells = int(block.indptr[row + 1] - block.indptr[row])
            x, loss, info = double.solve(torch.tensor([row], device=self.device), cells)
            out[row], row_loss[row] = x[0].cpu().numpy(), float(loss[0])
            still += [row] if int(info[0]) else []
        refuse_singular(block, np.array(still, np.int64))

    def resident(self, block: RowBlock) -> tuple[torch.Tensor, ...]:
        """indptr, indices, m, d of a block on the device; moved there once, and kept as long as the block is."""
        if block not in self._resident:
            self._resident[block] = tuple(
                torch.from_numpy(array).to(self.device)
                for array in (block.indptr, block.indices, block.target, block.weight)
            )
        return self._resident[block]


class _PaddedSystems:
    """A half-step on the device in one precision."""

    def __init__(self, solver: TorchSolver, block: RowBlock, system: System, dtype: torch.dtype) -> None:
        device = solver.device
        self.longest, self.dtype = solver.longest, dtype
        self.indptr, self.indices, self.m, self.d = solver.resident(block)

        def moved(array: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(np.require(array, requirements=("C", "W"))).to(device=device, dtype=dtype)

        self.z, self.h, self.gramian = (
            moved(system.fixed_factors.z),
            moved(system.fixed_factors.h),
            moved(system.fixed_factors.gramian),
        )
        self.scale = system.fixed_factors.rho * moved(block.popularity)
        self.known, self.ridge = moved(system.known), moved(system.ridge)

    def solve(self, rows: torch.Tensor, longest: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Solve the rows, the longest of which has `longest` cells; returns x, losses and LAPACK's info."""
        k = self.z.shape[1]
        free = self.ridge.shape[1]
        scale = self.scale[rows]
        a = scale[:, None, None] * self.gramian  # (B, k, k)
        rhs = torch.zeros((len(rows), k), dtype=torch.float64, device=a.device)
        constant = torch.zeros(len(rows), dtype=torch.float64, device=a.device)
        start, stop = self.indptr[rows], self.indptr[rows + 1]
        for first in range(0, longest, self.longest):
            span = torch.arange(first, min(longest, first + self.longest), device=a.device)
            position = start[:, None] + span  # (B, L)
            inside = position < stop[:, None]
            position = torch.where(inside, position, start[:, None])
            j = self.indices[position].long()
            d = torch.where(inside, self.d[position].to(self.dtype), 0)
            m = self.m[position].to(self.dtype)
            coefficient = torch.where(inside, (d + scale[:, None] * self.h[j]) * m, 0)
            z = self.z[j]  # (B, L, k)
            a = torch.baddbmm(a, (z * d[:, :, None]).transpose(1, 2), z)
            rhs += torch.matmul(coefficient[:, None, :], z)[:, 0].double()
            constant += (coefficient.double() * m.double()).sum(1)
        known = self.known[rows].double()  # (B, k - free)
        across, inner = a[:, :free, free:].double(), a[:, free:, free:].double()
        constant = constant - 2 * (rhs[:, free:] * known).sum(1) + torch.einsum("bp,bpq,bq->b", known, inner, known)
        reduced = rhs[:, :free] - (across * known[:, None, :]).sum(2)
        a = a[:, :free, :free].contiguous()
        a.diagonal(dim1=1, dim2=2).add_(self.ridge[rows])
        factor, info = torch.linalg.cholesky_ex(a)
        info = torch.where(_are_singular(a, factor, scale, self.ridge[rows, 0], stop - start), 1, info)
        x = torch.cholesky_solve(reduced.to(self.dtype)[:, :, None], factor)[:, :, 0]
        # An accurate residual needs products in float64; a batch of them at a time, they are k^2 per row.
        residual = reduced - torch.einsum("bpq,bq->bp", a.double(), x.double())
        loss = constant - ((reduced + residual) * x.double()).sum(1)
        return x, loss, info


def _are_singular(
    a: torch.Tensor, factor: torch.Tensor, scale: torch.Tensor, ridge: torch.Tensor, cells: torch.Tensor
) -> torch.Tensor:
    """Whether each A is a sum over cells alone with fewer of them than columns, or pivots that are rounding errors.

    As the compiled kernels decide it (`normal_equations`): a thousand roundings, since those of the pivots before grow
    with the condition of their block.

    Parameters
    ----------
    a, factor : tensor of shape (B, k, k)
        Systems and their Cholesky factors: ``l_cc^2`` is what is left of ``a_cc``.
    scale, ridge : tensor of shape (B,)
        Of the unobserved term and the first added diagonal; only where both are 0 is A a sum over cells alone.
    cells : int64 tensor of shape (B,)

    Returns
    -------
    bool tensor of shape (B,)
    """
    rounding = 1e3 * (1.2e-7 if a.dtype == torch.float32 else 2.3e-16)
    left = factor.diagonal(dim1=1, dim2=2) ** 2
    rounded = (left <= rounding * a.diagonal(dim1=1, dim2=2)).any(1)
    return (scale == 0) & (ridge == 0) & ((cells < a.shape[1]) | rounded)
