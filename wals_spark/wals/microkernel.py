"""The inner product of the half-step, written for the registers of the machine at hand.

BLAS packs its operands before it multiplies, which for a few hundred rows of 64 to 128 numbers costs more than it
saves. Gathered rows already lie as the product needs them, so a block of `BLOCK_ROWS` x 64 bytes of the result is held
in registers while all gathered rows pass by. Importing this module imports numba.
"""

from __future__ import annotations

import llvmlite.binding as llvm
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

LINE_BYTES = 64
# Sixteen vector registers of 32 bytes hold 4 x 64 bytes and the operands; AVX-512 has 32 of 64 bytes.
BLOCK_ROWS = 8 if llvm.get_host_cpu_features().get("avx512f", False) else 4


@intrinsic
def _update_block(typing_context, left, right, stride, count, target, target_stride, sign):  # type: ignore[no-untyped-def]
    """``target[r, :] += sign * sum_t left[t, r] * right[t, :]`` for one block; addresses and strides in bytes."""
    if not isinstance(sign, types.Float):
        return None
    arguments = (types.uintp, types.uintp, types.intp, types.intp, types.uintp, types.intp, sign)
    signature = types.void(*arguments)

    def generate(context, builder, signature, values):  # type: ignore[no-untyped-def]
        left, right, stride, count, target, target_stride, sign = values
        number = sign.type
        size = 4 if isinstance(number, ir.FloatType) else 8
        lanes = LINE_BYTES // size
        vector = ir.VectorType(number, lanes)
        word = count.type
        contract = ("contract",)

        def splat(value):  # type: ignore[no-untyped-def]
            undefined = ir.Constant(vector, ir.Undefined)
            first = builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
            zeros = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
            return builder.shuffle_vector(first, undefined, zeros)

        def pointer(address, kind):  # type: ignore[no-untyped-def]
            return builder.inttoptr(address, kind.as_pointer())

        entry = builder.block
        loop = builder.append_basic_block("rows")
        done = builder.append_basic_block("done")
        zero = ir.Constant(vector, [0.0] * lanes)
        builder.cbranch(builder.icmp_signed(">", count, ir.Constant(word, 0)), loop, done)
        builder.position_at_end(loop)
        t = builder.phi(word)
        sums = [builder.phi(vector) for _ in range(BLOCK_ROWS)]
        offset = builder.mul(t, stride)
        row = builder.load(pointer(builder.add(right, offset), vector), align=size)
        at_left = builder.add(left, offset)
        updated = []
        for r, total in enumerate(sums):
            address = builder.add(at_left, ir.Constant(word, r * size))
            scalar = builder.load(pointer(address, number), align=size)
            product = builder.fmul(splat(scalar), row, flags=contract)
            updated.append(builder.fadd(total, product, flags=contract))
        following = builder.add(t, ir.Constant(word, 1))
        t.add_incoming(ir.Constant(word, 0), entry)
        t.add_incoming(following, loop)
        for total, new in zip(sums, updated, strict=True):
            total.add_incoming(zero, entry)
            total.add_incoming(new, loop)
        builder.cbranch(builder.icmp_signed("<", following, count), loop, done)
        builder.position_at_end(done)
        results = [builder.phi(vector) for _ in range(BLOCK_ROWS)]
        for result, new in zip(results, updated, strict=True):
            result.add_incoming(zero, entry)
            result.add_incoming(new, loop)
        factor = splat(sign)
        for r, result in enumerate(results):
            address = builder.add(target, builder.mul(target_stride, ir.Constant(word, r)))
            place = pointer(address, vector)
            old = builder.load(place, align=size)
            builder.store(
                builder.fadd(old, builder.fmul(factor, result, flags=contract), flags=contract), place, align=size
            )
        return context.get_dummy_value()

    return signature, generate


@njit(cache=True, nogil=True)
def rank_update(gathered, first, count, target, sign):  # type: ignore[no-untyped-def]  # numba infers the types
    """``target += sign Z^T Z`` on and right of the diagonal, Z being rows first .. first + count - 1 of `gathered`.

    Parameters
    ----------
    gathered : C-contiguous array of shape (rows, w)
        w is a multiple of 64 bytes; what is beyond the real width must be zero.
    first, count : int
    target : C-contiguous array of shape (w, w)
        Entries left of the diagonal are undefined afterwards.
    sign : 1 or -1 in the dtype of `gathered`
    """
    width = gathered.shape[1]
    size = gathered.itemsize
    lanes = LINE_BYTES // size
    stride = gathered.strides[0]
    base = gathered.ctypes.data + first * stride
    out = target.ctypes.data
    for q in range(0, width, lanes):
        for p in range(0, min(q + lanes, width), BLOCK_ROWS):
            _update_block(
                base + p * size, base + q * size, stride, count, out + p * target.strides[0] + q * size,
                target.strides[0], sign,
            )  # fmt: skip
