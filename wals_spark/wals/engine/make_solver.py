"""The solver that a task asks for."""

from __future__ import annotations

from wals_spark.wals.engine.task import RankTask
from wals_spark.wals.solvers.cpu import BlockSolver, ConjugateGradientSolver, CpuSolver, Solver
from wals_spark.wals.solvers.nonnegative import NonnegativeSolver


def make_solver(task: RankTask) -> Solver:
    """The solver for the device of the task; factors without negative numbers are solved on processors."""
    if task.nonnegative:
        return NonnegativeSolver(task.threads)
    if task.device == "cuda":
        from wals_spark.wals.solvers.gpu import nvrtc
        from wals_spark.wals.solvers.gpu.cuda_solver import CudaSolver
        from wals_spark.wals.solvers.gpu.torch_solver import TorchSolver

        return CudaSolver("cuda") if nvrtc.available() else TorchSolver("cuda")
    if task.config.solver == "cg":
        return ConjugateGradientSolver(task.threads, task.config.cg_steps)
    if task.config.solver == "block":
        return BlockSolver(task.threads, task.config.block_size)
    return CpuSolver(task.threads, woodbury=task.config.solver == "auto")
