"""The CUDA kernels: their arithmetic, barriers and copies run block by block on the processor, see cuda_on_cpu.h."""

import ctypes
import re
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wals_spark.errors import InputError
from wals_spark.wals.solvers.gpu import cuda_solver, nvrtc
from wals_spark.wals.solvers.gpu.cuda_solver import CudaSolver, Layout, cut_segments
from wals_spark.wals.solvers.row_block import RowBlock
from wals_spark.wals.solvers.system import FixedFactors, System

HEADER = Path(__file__).with_name("cuda_on_cpu.h")
KERNELS = ("coefficients", "accumulate", "solve")
BOXES: dict[type, Any] = {int: ctypes.c_int, float: ctypes.c_float}
Build = Callable[[tuple[str, ...], tuple[tuple[str, int], ...]], ctypes.CDLL]


class ModuleOnCpu:
    """Stands in for `nvrtc.Module`."""

    def __init__(self, library: ctypes.CDLL, falling: bool) -> None:
        self.library, self.falling = library, falling

    def launch(self, name: str, blocks: int, threads: int, shared: int, *arguments: torch.Tensor | int | float) -> None:
        boxes: list[Any] = [
            ctypes.c_void_p(value.data_ptr()) if isinstance(value, torch.Tensor) else BOXES[type(value)](value)
            for value in arguments
        ]
        pointers = (ctypes.c_void_p * len(boxes))(*(ctypes.addressof(box) for box in boxes))
        getattr(self.library, f"launch_{name}")(blocks, threads, shared, ctypes.c_bool(self.falling), pointers)


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Compiles the kernels for the processor."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ to compile the kernels for the processor")
    directory = tmp_path_factory.mktemp("kernels")

    @cache
    def compiled(sources: tuple[str, ...], constants: tuple[tuple[str, int], ...]) -> ctypes.CDLL:
        text = nvrtc.read_sources(sources[1:])  # without the copies, which the header has
        text = re.sub(r"extern __shared__ (\w+) (\w+)\[\];", r"\1* \2 = (\1*)dynamic_shared.data();", text)
        text = f'#include "{HEADER}"\n{text}\n' + "".join(f"LAUNCHER({name})\n" for name in KERNELS)
        stem = directory / f"kernels-{abs(hash(constants))}"
        stem.with_suffix(".cpp").write_text(text)
        options = ["-std=c++20", "-O1", "-w", "-shared", "-fPIC", *(f"-D{name}={value}" for name, value in constants)]
        subprocess.run(
            [compiler, *options, "-o", stem.with_suffix(".so"), stem.with_suffix(".cpp")], check=True, timeout=120
        )
        return ctypes.CDLL(str(stem.with_suffix(".so")))

    return compiled


@pytest.fixture(params=["rising", "falling"])
def on_cpu(request: pytest.FixtureRequest, build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets `CudaSolver` run here, the threads of a block in the order of the parameter."""
    falling = request.param == "falling"
    monkeypatch.setattr(
        nvrtc, "load_module", lambda sources, constants, device: ModuleOnCpu(build(sources, constants), falling)
    )


def problem(k: int, known: int, lengths: list[int], seed: int, columns: int = 60) -> tuple[RowBlock, System]:
    """Random rows of the given lengths."""
    generator = np.random.default_rng(seed)
    rows, nnz = len(lengths), sum(lengths)
    indices = np.concatenate([generator.permutation(columns)[:length] for length in lengths]).astype(np.int32)
    indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    m, d = generator.standard_normal(nnz).astype(np.float32), generator.random(nnz).astype(np.float32)
    g, h = generator.random(rows) + 0.5, generator.random(columns)
    block = RowBlock(np.arange(rows), indptr, indices, m, d, g)
    z = generator.standard_normal((columns, k + known)).astype(np.float32)
    gramian = (z.T * h) @ z.astype(np.float64)
    ridge = np.full((rows, k), 0.3)
    return block, System(FixedFactors(z, h, gramian, 0.1), generator.standard_normal((rows, known)), ridge)


def solution(block: RowBlock, system: System) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The rows, their losses and what rounding to float32 may move each row by, from dense float64 products."""
    free = system.ridge.shape[1]
    z = system.fixed_factors.z.astype(np.float64)
    x, loss, moved = np.zeros((len(block), free)), np.zeros(len(block)), np.zeros(len(block))
    for row in range(len(block)):
        part = slice(block.indptr[row], block.indptr[row + 1])
        if part.start == part.stop:
            continue
        weight, target = system.fixed_factors.rho * block.popularity[row] * system.fixed_factors.h, np.zeros(len(z))
        weight[block.indices[part]] += block.weight[part]
        target[block.indices[part]] = block.target[part]
        rest = target - z[:, free:] @ system.known[row]
        a = (z[:, :free].T * weight) @ z[:, :free] + np.diag(system.ridge[row])
        x[row] = np.linalg.solve(a, z[:, :free].T @ (weight * rest))
        loss[row] = weight @ (rest - z[:, :free] @ x[row]) ** 2 + system.ridge[row] @ x[row] ** 2
        moved[row] = 4 * np.finfo(np.float32).eps * np.linalg.cond(a) * np.linalg.norm(x[row])
    return x, loss, moved


LENGTHS = [17, 1, 0, 60, 8, 33, 2, 59]


@pytest.mark.parametrize(
    ("k", "known"), [(1, 0), (5, 1), (16, 0), (33, 1), (40, 3), (64, 0), (100, 0), (128, 0), (129, 1)]
)
def test_rows_and_losses_are_those_of_a_dense_solution(on_cpu: None, k: int, known: int) -> None:
    block, system = problem(k, known, LENGTHS, seed=k)
    x, loss = CudaSolver("cpu", segment=25).solve(block, system)
    expected, expected_loss, moved = solution(block, system)
    assert (np.linalg.norm(x - expected, axis=1) <= moved).all()
    np.testing.assert_allclose(loss, expected_loss, rtol=2e-5)


def test_the_widest_layout(on_cpu: None) -> None:
    block, system = problem(257, 1, [9, 31], seed=3)
    x, loss = CudaSolver("cpu", segment=25).solve(block, system)
    expected, expected_loss, moved = solution(block, system)
    assert (np.linalg.norm(x - expected, axis=1) <= moved).all()
    np.testing.assert_allclose(loss, expected_loss, rtol=2e-5)


def test_a_row_does_not_depend_on_the_memory_or_the_other_rows(on_cpu: None) -> None:
    block, system = problem(24, 0, LENGTHS, seed=1)
    whole, loss = CudaSolver("cpu", segment=25).solve(block, system)
    pieces, piece_loss = CudaSolver("cpu", bytes_at_once=1, segment=25).solve(block, system)
    np.testing.assert_array_equal(pieces, whole)
    np.testing.assert_array_equal(piece_loss, loss)


def test_rows_that_are_singular_in_float32_are_solved_in_float64(
    on_cpu: None, caplog: pytest.LogCaptureFixture
) -> None:
    block, system = problem(24, 0, [3, 40], seed=2)
    features = np.array(system.fixed_factors.z)
    features[:, 1] = features[:, 0] * (1 + 1e-7)
    gramian = (features.T.astype(np.float64) * system.fixed_factors.h) @ features
    fixed_factors = FixedFactors(features, system.fixed_factors.h, gramian, 0.1)
    tiny = System(fixed_factors, system.known, np.full_like(system.ridge, 1e-9))
    x, loss = CudaSolver("cpu").solve(block, tiny)
    assert np.isfinite(x).all()
    assert "nearly singular" in caplog.text
    np.testing.assert_allclose(loss, solution(block, tiny)[1], rtol=1e-4)


def test_rows_without_a_solution_are_refused_by_name(on_cpu: None) -> None:
    block, system = problem(24, 0, [3, 60], seed=2)
    fixed = system.fixed_factors
    open_system = System(FixedFactors(fixed.z, fixed.h, fixed.gramian * 0, 0.0), system.known, system.ridge * 0)
    with pytest.raises(InputError, match=r"1 rows have no unique solution \(ids 0\)"):
        CudaSolver("cpu").solve(block, open_system)


def test_kernels_that_disagree_with_torch_are_not_used(
    on_cpu: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    block, system = problem(24, 0, LENGTHS, seed=1)
    launch = ModuleOnCpu.launch

    def broken(self: ModuleOnCpu, name: str, *arguments: Any) -> None:
        launch(self, name, *arguments)
        if name == "accumulate":
            arguments[-2][:, 0] *= 1.5

    monkeypatch.setattr(ModuleOnCpu, "launch", broken)
    x, loss = CudaSolver("cpu", segment=25).solve(block, system)
    expected, expected_loss, moved = solution(block, system)
    assert "differ from those of torch" in caplog.text
    assert (np.linalg.norm(x - expected, axis=1) <= moved).all()
    np.testing.assert_allclose(loss, expected_loss, rtol=2e-5)


def test_segments_cover_every_cell_once_and_long_rows_come_first() -> None:
    indptr = np.array([0, 3, 3, 5000, 5001, 9097])
    found = cut_segments(indptr, 2048, torch.device("cpu"))
    assert found.rows.tolist() == [2, 4, 0, 3]
    assert found.first.tolist() == [0, 3, 5, 6, 7]
    assert found.length.tolist() == [1666, 1666, 1665, 2048, 2048, 3, 1]
    covered = [
        cell for start, length in zip(found.start, found.length, strict=True) for cell in range(start, start + length)
    ]
    assert sorted(covered) == list(range(9097))


@pytest.mark.parametrize("free", [1, 8, 64, 100, 128, 192, 256])
def test_a_block_fits_a_multiprocessor(free: int) -> None:
    layout = Layout(free, 0)
    assert layout.fits
    assert layout.groups * layout.tiles <= 1024
    assert layout.groups * layout.stage_bytes <= 227 << 10


def test_factors_that_are_too_wide_do_not_fit() -> None:
    assert Layout(272, 0).fits
    assert not Layout(273, 0).fits


def test_the_sources_are_packaged() -> None:
    text = nvrtc.read_sources(cuda_solver.SOURCES)
    assert all(f" {name}(" in text for name in KERNELS)


@pytest.mark.parametrize("capability", [(8, 0), (9, 0)])
@pytest.mark.parametrize(("free", "known"), [(64, 0), (129, 1), (272, 0)])
def test_the_kernels_compile_for_gpus(capability: tuple[int, int], free: int, known: int) -> None:
    pytest.importorskip("cuda.bindings.nvrtc", reason="CUDA's Python is not installed")
    image = nvrtc.compile_sources(cuda_solver.SOURCES, dict(Layout(free, known).constants), capability)
    assert image[:4] == b"\x7fELF"
    assert all(name.encode() in image for name in KERNELS)


def test_a_compiler_error_carries_its_message() -> None:
    pytest.importorskip("cuda.bindings.nvrtc", reason="CUDA's Python is not installed")
    with pytest.raises(nvrtc.CudaError, match="identifier"):
        nvrtc.compile_sources(cuda_solver.SOURCES, {"WIDTH": 64}, (9, 0))
