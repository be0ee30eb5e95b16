"""Instructions for the registers of the machine at hand, which numba's own loops do not reach.

Addresses stand for lines of `LINE_BYTES`, L numbers each. A block of `TALL` lines of a product stays in registers
while all rows pass by. Importing this module imports numba.
"""

from __future__ import annotations

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from wals_spark.wals.solvers.cache_lines import LINE_BYTES

# Sixteen vector registers of 32 bytes hold 6 x 64 bytes and the operands; AVX-512 has 32 of 64 bytes.
TALL = 12 if llvm.get_host_cpu_features().get("avx512f", False) else 6
SHORT = 4
REGISTER_BYTES = 32


def _splat(builder, value, vector):  # type: ignore[no-untyped-def]  # llvmlite's builders have no types
    """A vector of equal numbers."""
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), vector.count), [0] * vector.count)
    return builder.shuffle_vector(first, undefined, zeros)


def _line(number):  # type: ignore[no-untyped-def]
    """Size in bytes of a number, and the vector type of a line of them."""
    size = 4 if isinstance(number, ir.FloatType) else 8
    return size, ir.VectorType(number, LINE_BYTES // size)


def _block_product(height, parts=1):  # type: ignore[no-untyped-def]
    """An intrinsic for blocks of `height` lines, or of the first ``1 / parts`` of them."""

    @intrinsic
    def block(typing_context, left, panel_bytes, p, right, count, source, target, sign):  # type: ignore[no-untyped-def]
        """``target[r, :] = source[r, :] + sign * sum_t left[t, p + r] * right[t, :]``.

        `left` is the address of a panel matrix whose panels are `panel_bytes` apart, `right`, `source` and `target`
        addresses of lines in one panel.
        """
        if not isinstance(sign, types.Float):
            return None
        word, address = types.intp, types.uintp
        signature = types.void(address, word, word, address, word, address, address, sign)

        def generate(context, builder, signature, values):  # type: ignore[no-untyped-def]
            left, panel_bytes, p, right, count, source, target, sign = values
            number, word = sign.type, count.type
            size, line = _line(number)
            vector = ir.VectorType(number, line.count // parts)
            contract = ("contract",)

            def pointer(address, kind):  # type: ignore[no-untyped-def]
                return builder.inttoptr(address, kind.as_pointer())

            def integer(value):  # type: ignore[no-untyped-def]
                return ir.Constant(word, value)

            columns = []
            for r in range(height):
                column = builder.add(p, integer(r))
                panel = builder.udiv(column, integer(line.count))
                lane = builder.urem(column, integer(line.count))
                place = builder.add(builder.mul(panel, panel_bytes), builder.mul(lane, integer(size)))
                columns.append(builder.add(left, place))
            entry = builder.block
            loop, done = builder.append_basic_block("rows"), builder.append_basic_block("done")
            zero = ir.Constant(vector, [0.0] * vector.count)
            end = builder.mul(count, integer(LINE_BYTES))
            builder.cbranch(builder.icmp_signed(">", count, integer(0)), loop, done)
            builder.position_at_end(loop)
            offset = builder.phi(word)
            sums = [builder.phi(vector) for _ in range(height)]
            row = builder.load(pointer(builder.add(right, offset), vector), align=size)
            updated = []
            for column, total in zip(columns, sums, strict=True):
                scalar = builder.load(pointer(builder.add(column, offset), number), align=size)
                product = builder.fmul(_splat(builder, scalar, vector), row, flags=contract)
                updated.append(builder.fadd(total, product, flags=contract))
            following = builder.add(offset, integer(LINE_BYTES))
            offset.add_incoming(integer(0), entry)
            offset.add_incoming(following, loop)
            for total, new in zip(sums, updated, strict=True):
                total.add_incoming(zero, entry)
                total.add_incoming(new, loop)
            builder.cbranch(builder.icmp_signed("<", following, end), loop, done)
            builder.position_at_end(done)
            results = [builder.phi(vector) for _ in range(height)]
            for result, new in zip(results, updated, strict=True):
                result.add_incoming(zero, entry)
                result.add_incoming(new, loop)
            factor = _splat(builder, sign, vector)
            for r, result in enumerate(results):
                at = integer(r * LINE_BYTES)
                old = builder.load(pointer(builder.add(source, at), vector), align=size)
                new = builder.fadd(old, builder.fmul(factor, result, flags=contract), flags=contract)
                builder.store(new, pointer(builder.add(target, at), vector), align=size)
            return context.get_dummy_value()

        return signature, generate

    return block


tall_block = _block_product(TALL)
short_block = _block_product(SHORT)
tall_half_block = _block_product(2 * TALL, 2)
short_half_block = _block_product(SHORT, 2)


@intrinsic
def add_line(typing_context, target, source, factor):  # type: ignore[no-untyped-def]
    """``target[:] += factor * source[:]`` for lines at two addresses.

    Parameters
    ----------
    typing_context : numba typing context
    target, source : int
        Addresses.
    factor : float
        Its dtype is that of the lines.

    Returns
    -------
    signature and code generator, as numba's `intrinsic` asks
    """
    if not isinstance(factor, types.Float):
        return None

    def generate(context, builder, signature, values):  # type: ignore[no-untyped-def]
        target, source, factor = values
        size, vector = _line(factor.type)
        place = builder.inttoptr(target, vector.as_pointer())
        line = builder.load(builder.inttoptr(source, vector.as_pointer()), align=size)
        product = builder.fmul(_splat(builder, factor, vector), line, flags=("contract",))
        builder.store(builder.fadd(builder.load(place, align=size), product, flags=("contract",)), place, align=size)
        return context.get_dummy_value()

    return types.void(types.uintp, types.uintp, factor), generate


@intrinsic
def scale_line(typing_context, target, source, factor):  # type: ignore[no-untyped-def]
    """``target[:] = factor * source[:]`` for lines at two addresses.

    Parameters
    ----------
    typing_context : numba typing context
    target, source : int
        Addresses.
    factor : float
        Its dtype is that of the lines.

    Returns
    -------
    signature and code generator, as numba's `intrinsic` asks
    """
    if not isinstance(factor, types.Float):
        return None

    def generate(context, builder, signature, values):  # type: ignore[no-untyped-def]
        target, source, factor = values
        size, vector = _line(factor.type)
        line = builder.load(builder.inttoptr(source, vector.as_pointer()), align=size)
        builder.store(
            builder.fmul(_splat(builder, factor, vector), line),
            builder.inttoptr(target, vector.as_pointer()),
            align=size,
        )
        return context.get_dummy_value()

    return types.void(types.uintp, types.uintp, factor), generate


@intrinsic
def transpose_square(typing_context, source, source_bytes, columns, rows, target, like):  # type: ignore[no-untyped-def]
    """``target[c, r] = columns[c] rows[r] source[r, c]`` for r and c below W, W numbers being `REGISTER_BYTES`.

    Parameters
    ----------
    typing_context : numba typing context
    source : int
        Address of W rows.
    source_bytes : int
        Bytes from a row to the next.
    columns, rows : int
        Addresses of W numbers each.
    target : int
        Address of lines.
    like : float
        Any number of the dtype.

    Returns
    -------
    signature and code generator, as numba's `intrinsic` asks
    """
    if not isinstance(like, types.Float):
        return None
    word, address = types.intp, types.uintp
    signature = types.void(address, word, address, address, address, like)

    def generate(context, builder, signature, values):  # type: ignore[no-untyped-def]
        source, source_bytes, columns, rows, target, like = values
        size, word = _line(like.type)[0], source_bytes.type
        side = REGISTER_BYTES // size
        vector = ir.VectorType(like.type, side)

        def load(address):  # type: ignore[no-untyped-def]
            return builder.load(builder.inttoptr(address, vector.as_pointer()), align=size)

        def at(address, count, each):  # type: ignore[no-untyped-def]
            return builder.add(address, builder.mul(ir.Constant(word, count), each))

        def mixed(first, second, mask):  # type: ignore[no-untyped-def]
            return builder.shuffle_vector(first, second, ir.Constant(ir.VectorType(ir.IntType(32), side), mask))

        scale = load(columns)
        swapped = [builder.fmul(load(at(source, r, source_bytes)), scale) for r in range(side)]
        # Blocks of width x width change places across the diagonal, for 1, 2, ...
        width = 1
        while width < side:
            own, other = [], []
            for c in range(side):
                moved = bool(c & width)
                own.append(side + c - width if moved else c)
                other.append(side + c if moved else c + width)
            for r in (r for r in range(side) if not r & width):
                pair = swapped[r], swapped[r + width]
                swapped[r], swapped[r + width] = mixed(*pair, own), mixed(*pair, other)
            width *= 2
        weight = load(rows)
        for c, row in enumerate(swapped):
            place = builder.add(target, ir.Constant(word, c * LINE_BYTES))
            builder.store(builder.fmul(row, weight), builder.inttoptr(place, vector.as_pointer()), align=size)
        return context.get_dummy_value()

    return signature, generate


def _rows_of_a_panel(down, across):  # type: ignore[no-untyped-def]
    """An intrinsic that passes over the lines of a panel once."""

    @intrinsic
    def rows(typing_context, panel, start, stop, x, target, line, sums, like, wide):  # type: ignore[no-untyped-def]
        """Products of the lines ``A[t, :]``, start <= t < stop, of a panel at an address with vectors at addresses.

        ::

            target[:]  -= sum_t x[t] A[t, :]                                      if `down`
            sums[t, :] += A[t, :] line[:], folded to `REGISTER_BYTES` of numbers  if `across`

        `like` has the dtype of A, `wide` that of the vectors, the same or float64; `target` and `line` have L numbers.
        """
        if not (isinstance(like, types.Float) and isinstance(wide, types.Float)):
            return None
        word, address = types.intp, types.uintp
        signature = types.void(address, word, word, address, address, address, address, like, wide)

        def generate(context, builder, signature, values):  # type: ignore[no-untyped-def]
            panel, start, stop, x, target, line, sums, like, wide = values
            size, narrow = _line(like.type)
            word, each = start.type, 4 if isinstance(wide.type, ir.FloatType) else 8
            vector, folded = ir.VectorType(wide.type, narrow.count), ir.VectorType(wide.type, REGISTER_BYTES // each)
            contract = ("contract",)

            def pointer(address, kind, t=None, stride=0):  # type: ignore[no-untyped-def]
                if t is not None:
                    address = builder.add(address, builder.mul(t, ir.Constant(word, stride)))
                return builder.inttoptr(address, kind.as_pointer())

            def fold(values):  # type: ignore[no-untyped-def]
                while values.type.count > folded.count:
                    half = values.type.count // 2
                    kind = ir.VectorType(ir.IntType(32), half)
                    low, high = (
                        builder.shuffle_vector(values, values, ir.Constant(kind, list(range(at, at + half))))
                        for at in (0, half)
                    )
                    values = builder.fadd(low, high, flags=contract)
                return values

            begin = builder.load(pointer(target, vector), align=each) if down else ir.Constant(vector, ir.Undefined)
            own = builder.load(pointer(line, vector), align=each) if across else None
            entry = builder.block
            loop, done = builder.append_basic_block("rows"), builder.append_basic_block("done")
            builder.cbranch(builder.icmp_signed("<", start, stop), loop, done)
            builder.position_at_end(loop)
            t, running = builder.phi(word), builder.phi(vector)
            entries = builder.load(pointer(panel, narrow, t, LINE_BYTES), align=size)
            if vector != narrow:
                entries = builder.fpext(entries, vector)
            left = running
            if down:
                number = builder.fneg(builder.load(pointer(x, wide.type, t, each), align=each))
                product = builder.fmul(entries, _splat(builder, number, vector), flags=contract)
                left = builder.fadd(running, product, flags=contract)
            if across:
                place = pointer(sums, folded, t, REGISTER_BYTES)
                product = fold(builder.fmul(entries, own, flags=contract))
                builder.store(builder.fadd(builder.load(place, align=each), product, flags=contract), place, align=each)
            following = builder.add(t, ir.Constant(word, 1))
            for phi, old, new in ((t, start, following), (running, begin, left)):
                phi.add_incoming(old, entry)
                phi.add_incoming(new, loop)
            builder.cbranch(builder.icmp_signed("<", following, stop), loop, done)
            builder.position_at_end(done)
            if down:
                result = builder.phi(vector)
                result.add_incoming(begin, entry)
                result.add_incoming(left, loop)
                builder.store(result, pointer(target, vector), align=each)
            return context.get_dummy_value()

        return signature, generate

    return rows


rows_down = _rows_of_a_panel(down=True, across=False)
rows_across = _rows_of_a_panel(down=False, across=True)
rows_both = _rows_of_a_panel(down=True, across=True)
