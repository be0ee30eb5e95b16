"""Programs in processes of their own that need not import torch and transformers again.

A server that has imported them, and done nothing else, is forked once per program: the process is as fresh as a new
interpreter, with no patched class, no cached model and no weights in memory, and starts in milliseconds.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PRELOADED = [
    "torch.distributed",
    "transformers.models.auto.modeling_auto",
    "transformers.models.bert.modeling_bert",
    "transformers.models.distilbert.modeling_distilbert",
    "transformers.models.roberta.modeling_roberta",
    "wals_spark.wals.engine.rank",
]


def _main(
    directory: str, program: str, is_module: bool, arguments: Sequence[str], environment: Mapping[str, str]
) -> None:
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(os.path.join(directory, name), os.O_WRONLY | os.O_CREAT, 0o600), number)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", closefd=False)
    os.environ.clear()
    os.environ.update(environment)
    if "OMP_NUM_THREADS" in environment:  # OpenMP read it when the server imported torch
        import torch

        torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    sys.argv = [program if is_module else "-c", *arguments]
    try:
        if is_module:
            runpy.run_module(program, run_name="__main__", alter_sys=True)
        else:
            exec(compile(program, "<program>", "exec"), {"__name__": "__main__"})
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


class FreshProcess:
    """What `subprocess.Popen` is for ``python -c PROGRAM`` or, with `is_module`, for ``python -m PROGRAM``."""

    def __init__(
        self, program: str, *arguments: str, is_module: bool = False, environment: Mapping[str, str] | None = None
    ) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self._directory = tempfile.TemporaryDirectory(prefix="fresh-process-")
        environment = dict(os.environ if environment is None else environment)
        self._process = context.Process(
            target=_main, args=(self._directory.name, program, is_module, arguments, environment)
        )
        self._process.start()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def communicate(self, timeout: float) -> tuple[str, str]:
        """Standard output and standard error, once it has ended."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self._process.kill()
            raise subprocess.TimeoutExpired("program", timeout)
        written = [Path(self._directory.name, name) for name in ("stdout", "stderr")]
        return tuple(path.read_text() if path.exists() else "" for path in written)  # type: ignore[return-value]


def run_module(command: Sequence[str], *, timeout: float, env: Mapping[str, str], **_: Any) -> Any:
    """As `subprocess.run` of ``python -m MODULE ARGUMENTS`` with captured text."""
    python, flag, module, *arguments = command
    assert (python, flag) == (sys.executable, "-m")
    process = FreshProcess(module, *arguments, is_module=True, environment=env)
    out, err = process.communicate(timeout)
    return subprocess.CompletedProcess(command, process.returncode or 0, out, err)
