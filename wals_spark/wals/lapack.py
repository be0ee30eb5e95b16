"""SciPy's BLAS and LAPACK inside compiled loops: no Python, no global interpreter lock, no copies.

SciPy publishes the C functions behind ``scipy.linalg.cython_blas``; here they are called by address, every
argument a pointer as in Fortran. Importing this module imports numba.
"""

from __future__ import annotations

import ctypes

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import get_cython_function_address, intrinsic


@intrinsic
def call_by_address(typing_context, address, arguments):  # type: ignore[no-untyped-def]  # numba's protocol
    """``((void (*)(void *, ...)) address)(*arguments)`` for a tuple of pointers given as integers."""
    signature = types.void(types.uintp, arguments)

    def generate(context, builder, signature, values):  # type: ignore[no-untyped-def]
        pointer = ir.IntType(8).as_pointer()
        target, packed = values
        unpacked = [builder.inttoptr(value, pointer) for value in cgutils.unpack_tuple(builder, packed)]
        function = ir.FunctionType(ir.VoidType(), [pointer] * len(unpacked))
        builder.call(builder.inttoptr(target, function.as_pointer()), unpacked)
        return context.get_dummy_value()

    return signature, generate


def addresses(dtype: np.dtype) -> np.ndarray:
    """Addresses of ``syrk``, ``potrf`` and ``potrs`` for float32 or float64, as a uintp array."""
    letter = {"float32": "s", "float64": "d"}[np.dtype(dtype).name]
    names = (("cython_blas", "syrk"), ("cython_lapack", "potrf"), ("cython_lapack", "potrs"))
    found = [get_cython_function_address(f"scipy.linalg.{module}", letter + name) for module, name in names]
    return np.array([ctypes.c_void_p(address).value for address in found], np.uintp)
