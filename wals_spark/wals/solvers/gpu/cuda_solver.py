"""The exact half-step on a GPU in float32: our own kernels (`half_step.cu`), compiled for the width at run time.

Rows are cut into segments of at most `SEGMENT` cells, so that a long row is shared by many blocks. `accumulate` keeps
the lower triangle of a segment's normal equations in registers while its rows of z stream through shared memory;
`solve` adds a row's segments, factorises and solves in registers too. Nothing of k x k passes through memory but the
segments' sums, once. The first half-step of a width is checked against torch on a few rows. What the kernels cannot
do (float64, very wide factors, old GPUs, rows that are singular in float32) is done by
`wals_spark.wals.solvers.gpu.torch_solver`. `oracles.wals` has the oracle.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch

from wals_spark.wals.solvers.gpu import nvrtc
from wals_spark.wals.solvers.gpu.torch_solver import TorchSolver
from wals_spark.wals.solvers.row_block import RowBlock
from wals_spark.wals.solvers.system import System

logger = logging.getLogger(__name__)

SOURCES = ("async_copy.cu", "half_step.cu")
TILE = 8
MAX_TILE_ROWS = 34
MIN_TILE_ROWS = 3
SEGMENT = 2048
DEPTH = 8
SHARED_BYTES = 224 << 10
STAGES = 3
WARP = 32
CHECKED_ROWS = 16
CHECK_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Layout:
    """How the coordinates of z are laid out for the kernels.

    Attributes
    ----------
    free, known : int
        Coordinates that are solved, and that have a given value.
    """

    free: int
    known: int

    @property
    def free_tiles(self) -> int:
        """8 x 8 tiles across the free coordinates."""
        return max(MIN_TILE_ROWS, -(-self.free // TILE))

    @property
    def tile_rows(self) -> int:
        """Tiles across all coordinates."""
        return self.free_tiles + (1 if self.known else 0)

    @property
    def tiles(self) -> int:
        """Tiles of a lower triangle: threads per segment."""
        return self.tile_rows * (self.tile_rows + 1) // 2

    @property
    def width(self) -> int:
        """Padded coordinates."""
        return self.tile_rows * TILE

    @property
    def groups(self) -> int:
        """Segments per block: as many as fill its warps best, while two blocks fit a multiprocessor."""

        def waste(count: int) -> float:
            return whole_warps(count * self.tiles) / (count * self.tiles)

        small = [
            count
            for count in range(1, 9)
            if count * self.tiles <= 256 and count * self.stage_bytes <= SHARED_BYTES // 2
        ]
        return min(small, key=waste, default=1)

    @property
    def stage_bytes(self) -> int:
        """Shared memory of a segment in `accumulate`."""
        return 4 * (STAGES + 2) * DEPTH * self.width

    @property
    def fits(self) -> bool:
        """Whether the kernels can do it."""
        return self.tile_rows <= MAX_TILE_ROWS and self.known <= TILE

    @property
    def constants(self) -> tuple[tuple[str, int], ...]:
        """What `half_step.cu` is compiled with."""
        warps, solving = (whole_warps(count) // WARP for count in (self.groups * self.tiles, self.tiles))
        return (
            ("WIDTH", self.width),
            ("FREE", self.free),
            ("FREE_TILES", self.free_tiles),
            ("TILE_ROWS", self.tile_rows),
            ("GROUPS", self.groups),
            ("DEPTH", DEPTH),
            # 16 warps of 128 registers fill a multiprocessor's registers, 12 of 168 likewise.
            ("BLOCKS", max(1, 16 // warps)),
            ("SOLVE_BLOCKS", max(1, 12 // solving)),
        )

    def positions(self) -> np.ndarray:
        """Position of each coordinate; shape (free + known,)."""
        return np.concatenate([np.arange(self.free), self.free_tiles * TILE + np.arange(self.known)])


@dataclass(frozen=True)
class Segments:
    """Rows with cells, in falling order of length, and their pieces; on the device.

    Attributes
    ----------
    rows : int32 tensor of shape (q,)
        Number of each among the own rows.
    first : int64 array of shape (q + 1,), on the host
        First segment of each row.
    row, start, length : int32, int64, int32 tensors of shape (s,)
        Own row, first cell and cells of each segment.
    """

    rows: torch.Tensor
    first: np.ndarray
    row: torch.Tensor
    start: torch.Tensor
    length: torch.Tensor


@dataclass(frozen=True)
class DeviceHalfStep:
    """A half-step on the device; letters as in `System`, coordinates in the kernels' positions.

    Attributes
    ----------
    layout : Layout
    segments : Segments
    indices, m, d : tensors of shape (nnz,)
    z : float32 tensor of shape (n, width)
    h : float32 tensor of shape (n,)
    gramian : float32 tensor of shape (width, width)
    scale : float32 tensor of shape (r,)
        rho g_i.
    known : float64 tensor of shape (r, 8)
    ridge : float32 tensor of shape (r, free)
    """

    layout: Layout
    segments: Segments
    indices: torch.Tensor
    m: torch.Tensor
    d: torch.Tensor
    z: torch.Tensor
    h: torch.Tensor
    gramian: torch.Tensor
    scale: torch.Tensor
    known: torch.Tensor
    ridge: torch.Tensor


def whole_warps(threads: int) -> int:
    """Threads rounded up to whole warps."""
    return -(-threads // WARP) * WARP


def cut_segments(indptr: np.ndarray, segment: int, device: torch.device) -> Segments:
    """Cut every row into equal pieces of at most `segment` cells.

    Parameters
    ----------
    indptr : int64 array of shape (r + 1,)
    segment : int
    device : torch.device

    Returns
    -------
    Segments
    """
    lengths = np.diff(indptr)
    rows = np.argsort(-lengths, kind="stable")
    rows = rows[lengths[rows] > 0]
    pieces = -(-lengths[rows] // segment)
    first = np.concatenate([[0], np.cumsum(pieces)])
    size = -(-lengths[rows] // pieces)
    row = np.repeat(np.arange(len(rows)), pieces)
    offset = (np.arange(first[-1]) - first[row]) * size[row]
    length = np.minimum(size[row], lengths[rows][row] - offset)

    def moved(array: np.ndarray, dtype: type) -> torch.Tensor:
        return torch.from_numpy(array.astype(dtype)).to(device)

    return Segments(
        moved(rows, np.int32), first, moved(rows[row], np.int32), moved(indptr[rows][row] + offset, np.int64),
        moved(length, np.int32),
    )  # fmt: skip


class CudaSolver(TorchSolver):
    """See the module; parameters as those of `TorchSolver`."""

    def __init__(self, device: str, bytes_at_once: int | None = None, segment: int = SEGMENT) -> None:
        super().__init__(device, bytes_at_once)
        self.segment = segment
        self._cut: WeakKeyDictionary[RowBlock, Segments] = WeakKeyDictionary()
        self._trusted: dict[Layout, bool] = {}

    def solve(self, block: RowBlock, system: System) -> tuple[np.ndarray, np.ndarray]:
        layout = Layout(system.ridge.shape[1], system.known.shape[1])
        if system.fixed_factors.z.dtype != np.float32 or not layout.fits or self._trusted.get(layout) is False:
            return super().solve(block, system)
        if (system.fixed_factors.rho * block.popularity[system.ridge[:, 0] == 0] == 0).any():
            return super().solve(block, system)  # sums over cells alone may be singular, which torch_solver looks for
        x, row_loss, failed = self.solve_prepared(self.prepare(block, system))
        out, losses = x.cpu().numpy(), row_loss.cpu().numpy()
        self.solve_again(block, system, np.flatnonzero(failed.cpu().numpy()), out, losses)
        if layout not in self._trusted:
            self._trusted[layout] = self._agrees(block, system, losses)
            if not self._trusted[layout]:
                return super().solve(block, system)
        return out, losses

    def _agrees(self, block: RowBlock, system: System, losses: np.ndarray) -> bool:
        """Whether the losses of some rows, of all lengths, are those that torch finds in float64."""
        rows = self.segments(block).rows.cpu().numpy()
        some = rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), CHECKED_ROWS)).astype(np.int64))]
        expected, out = np.array(losses), np.zeros((len(losses), system.ridge.shape[1]))
        self.solve_in_float64(block, system, some, out, expected)
        if np.allclose(losses[some], expected[some], rtol=CHECK_TOLERANCE, atol=0):
            return True
        worst = some[np.argmax(np.abs(losses[some] - expected[some]))]
        logger.error(
            "the losses of our CUDA kernels differ from those of torch (row %d: %r, expected %r); using torch's from "
            "here on, which are slower; please report this with the GPU's name",
            block.ids[worst],
            losses[worst],
            expected[worst],
        )
        return False

    def segments(self, block: RowBlock) -> Segments:
        """Those of a block; cut once, and kept as long as the block is."""
        if block not in self._cut:
            self._cut[block] = cut_segments(block.indptr, self.segment, self.device)
        return self._cut[block]

    def prepare(self, block: RowBlock, system: System) -> DeviceHalfStep:
        """Move what a half-step needs to the device."""
        layout = Layout(system.ridge.shape[1], system.known.shape[1])
        positions = torch.from_numpy(layout.positions()).to(self.device)

        def moved(array: np.ndarray, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.from_numpy(np.require(array, requirements=("C", "W"))).to(device=self.device, dtype=dtype)

        z = torch.zeros((len(system.fixed_factors.z), layout.width), device=self.device)
        z[:, positions] = moved(system.fixed_factors.z)
        gramian = torch.zeros((layout.width, layout.width), device=self.device)
        gramian[positions[:, None], positions] = moved(system.fixed_factors.gramian)
        known = torch.zeros((len(block), TILE), dtype=torch.float64, device=self.device)
        known[:, : layout.known] = moved(system.known, torch.float64)
        _, indices, m, d = self.resident(block)
        return DeviceHalfStep(
            layout, self.segments(block), indices, m, d, z, moved(system.fixed_factors.h), gramian,
            moved(system.fixed_factors.rho * block.popularity), known, moved(system.ridge),
        )  # fmt: skip

    def solve_prepared(self, p: DeviceHalfStep) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Run the kernels on as many rows at a time as fit the memory.

        Returns
        -------
        x : float32 tensor of shape (r, free)
        row_loss : float64 tensor of shape (r,)
        failed : int32 tensor of shape (r,)
            Not 0 where the factorisation met a pivot that is not positive.
        """
        layout, segments, device = p.layout, p.segments, self.device
        kernels = nvrtc.load_module(SOURCES, layout.constants, device)
        x = torch.zeros((len(p.scale), layout.free), device=device)
        row_loss = torch.zeros(len(p.scale), dtype=torch.float64, device=device)
        failed = torch.zeros(len(p.scale), dtype=torch.int32, device=device)
        coefficient = torch.empty_like(p.d)
        first = segments.first
        most = max(1, self.bytes_at_once // (4 * layout.tiles * TILE * TILE))
        begin = 0
        while begin < len(first) - 1:
            end = max(begin + 1, int(np.searchsorted(first, first[begin] + most, side="right")) - 1)
            part = slice(int(first[begin]), int(first[end]))
            count = part.stop - part.start
            row, start, length = segments.row[part], segments.start[part], segments.length[part]
            a = torch.empty((count, TILE * TILE // 4, layout.tiles, 4), device=device)
            b = torch.empty((count, layout.width), dtype=torch.float64, device=device)
            constant = torch.empty(count, dtype=torch.float64, device=device)
            bounds = torch.from_numpy(first[begin : end + 1] - first[begin]).to(device)
            kernels.launch(
                "coefficients", -(-count // 8), 8 * WARP, 0,
                count, row, start, length, p.indices, p.m, p.d, p.h, p.scale, coefficient, constant,
            )  # fmt: skip
            kernels.launch(
                "accumulate", -(-count // layout.groups), whole_warps(layout.groups * layout.tiles),
                layout.groups * layout.stage_bytes,
                count, start, length, p.indices, p.d, coefficient, p.z, a, b,
            )  # fmt: skip
            kernels.launch(
                "solve", end - begin, whole_warps(layout.tiles), 8 * TILE * layout.free_tiles**2,
                bounds, segments.rows[begin:end], a, b, constant, p.gramian, p.scale, p.known, p.ridge,
                x, row_loss, failed,
            )  # fmt: skip
            begin = end
        return x, row_loss, failed
