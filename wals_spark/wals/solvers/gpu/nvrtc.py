"""CUDA C++ compiled at run time and launched on torch's stream; needs the driver and NVRTC, no compiler."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import torch

from wals_spark.errors import WalsSparkError

C_TYPES = {int: ctypes.c_int, float: ctypes.c_float}


class CudaError(WalsSparkError):
    """The CUDA driver or compiler refused; the message is theirs."""


def available() -> bool:
    """Whether the kernels can be compiled and run here: a GPU with asynchronous copies (8.0), and CUDA's Python."""
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0):
        return False
    try:
        from cuda.bindings import driver, nvrtc  # noqa: F401
    except ImportError:
        return False
    return True


def _checked(result: tuple[Any, ...]) -> Any:
    code, *values = result
    if int(code) != 0:
        raise CudaError(f"CUDA: {code!r}")
    return values[0] if len(values) == 1 else values


class Module:
    """The kernels of some source files for one choice of their constants.

    Parameters
    ----------
    sources : sequence of str
        Files beside this one, compiled as one.
    constants : dict
        What they take as preprocessor constants.

    Raises
    ------
    CudaError
        With the compiler's messages.
    """

    def __init__(self, sources: Sequence[str], constants: Mapping[str, int]) -> None:
        from cuda.bindings import driver

        torch.cuda.current_stream().synchronize()  # torch's context is the current one from here on
        image = compile_sources(sources, constants, torch.cuda.get_device_capability())
        self._driver = driver
        self._module = _checked(driver.cuModuleLoadData(image))
        self._functions: dict[str, Any] = {}

    def launch(self, name: str, blocks: int, threads: int, shared: int, *arguments: torch.Tensor | int | float) -> None:
        """Start a kernel on torch's current stream.

        Parameters
        ----------
        name : str
        blocks, threads : int
        shared : int
            Bytes of dynamic shared memory of a block.
        *arguments : tensor (its address), int (int32) or float (float32)
        """
        if name not in self._functions:
            function = _checked(self._driver.cuModuleGetFunction(self._module, name.encode()))
            attribute = self._driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            _checked(self._driver.cuFuncSetAttribute(function, attribute, shared))
            self._functions[name] = function
        values: list[int | float] = []
        types: list[type] = []
        for argument in arguments:
            if isinstance(argument, torch.Tensor):
                values.append(argument.data_ptr())
                types.append(ctypes.c_void_p)
            else:
                values.append(argument)
                types.append(C_TYPES[type(argument)])
        stream = torch.cuda.current_stream().cuda_stream
        _checked(
            self._driver.cuLaunchKernel(
                self._functions[name], blocks, 1, 1, threads, 1, 1, shared, stream, (tuple(values), tuple(types)), 0
            )
        )


def read_sources(names: Sequence[str]) -> str:
    """The text of source files beside this one, joined."""
    return "".join(files("wals_spark.wals.solvers.gpu").joinpath(name).read_text(encoding="utf-8") for name in names)


def compile_sources(sources: Sequence[str], constants: Mapping[str, int], capability: tuple[int, int]) -> bytes:
    """Machine code for GPUs of a compute capability; needs no GPU."""
    from cuda.bindings import nvrtc

    architecture = f"--gpu-architecture=sm_{capability[0]}{capability[1]}"
    options = [architecture, *(f"-D{name}={value}" for name, value in constants.items())]
    text = read_sources(sources).encode()
    program = _checked(nvrtc.nvrtcCreateProgram(text, sources[-1].encode(), 0, [], []))
    (code,) = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
    if int(code) != 0:
        log = b" " * _checked(nvrtc.nvrtcGetProgramLogSize(program))
        _checked(nvrtc.nvrtcGetProgramLog(program, log))
        raise CudaError(f"{sources[-1]} with {dict(constants)}: {log.decode(errors='replace').strip()}")
    image = b" " * _checked(nvrtc.nvrtcGetCUBINSize(program))
    _checked(nvrtc.nvrtcGetCUBIN(program, image))
    _checked(nvrtc.nvrtcDestroyProgram(program))
    return image


@cache
def load_module(sources: tuple[str, ...], constants: tuple[tuple[str, int], ...], device: torch.device) -> Module:
    """The kernels of some source files, compiled once per process, choice of constants and device."""
    with torch.cuda.device(device):
        return Module(sources, dict(constants))
