"""Compiled loops of the counting; `wals_spark.cooccurrence.window` and `.merge` hold the interfaces.

Counting is a sparse product by rows: the positions of every token are listed (a counting sort), and the
row of token i is summed into a dense accumulator over the windows around its positions. No pair is ever
written down or sorted. What makes it fast: the accumulator fits the second-level cache, positions are
prefetched, the list of touched columns is kept without a branch, and a bitmap of two levels puts them
in order.

Indices are unsigned so that no code for negative ones is made. Importing this module imports numba.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np import arrayobj

from wals_spark.compiled import compiled
from wals_spark.splitmix64 import GOLDEN_GAMMA, mix64

HOLD, REMOVE, BREAK = 0, 1, 2
"""What a marker does: keep a place that never counts, vanish, or end the window."""

AHEAD = 4
"""Positions between a prefetch and its use; the position list is padded by as many."""
MAXIMUM_ENTRY = 15
"""Bytes of a column difference (5) and a count (10) at most."""
ROW_HEADER = 14
"""Bytes of a packed row's header at most: row difference (5), entries (5), payload bytes (4)."""

U = np.uint64
_I32 = ir.IntType(32)
_BYTE_POINTER = ir.IntType(8).as_pointer()
_loop = compiled(nogil=True, boundscheck=False, error_model="numpy")
_mix64 = _loop(mix64)


@intrinsic
def _trailing_zeros(typing_context, value):
    def generate(context, builder, signature, arguments):
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.uint64(types.uint64), generate


@intrinsic
def _prefetch(typing_context, array, index):
    def generate(context, builder, signature, arguments):
        data = arrayobj.make_array(array)(context, builder, arguments[0]).data
        pointer = builder.bitcast(builder.gep(data, [arguments[1]]), _BYTE_POINTER)
        kind = ir.FunctionType(ir.VoidType(), [_BYTE_POINTER, _I32, _I32, _I32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        read, keep, data_cache = (ir.Constant(_I32, number) for number in (0, 3, 1))
        builder.call(function, [pointer, read, keep, data_cache])
        return context.get_dummy_value()

    return types.void(array, types.uint64), generate


@_loop
def clean(tokens, offsets, keys, first, actions, size, thresholds, seed, dropped, out, bounds):
    """Apply markers, out-of-vocabulary rule and subsampling to a chunk.

    Parameters
    ----------
    tokens : int32 array of shape (n,)
    offsets : int64 array of shape (documents + 1,)
    keys : uint64 array of shape (documents,)
    first : int
        Position of ``tokens[0]`` in document 0.
    actions : int64 array of shape (5,)
        What the marker -a does, at index a; index 0 unused.
    size : int
        V.
    thresholds : uint64 array of shape (V,) or (0,)
        See `semantics.keep_thresholds`; empty = no subsampling.
    dropped : int
        What an occurrence that was subsampled away does: `HOLD` or `REMOVE`.
    out : uint32 array of shape (n,)
        Receives the ids; V where something holds a place.
    bounds : int64 array of shape (1 + documents + breaks,)
        Receives the starts of the segments and the end of the last; an end may repeat.

    Returns
    -------
    (ids written, bounds written, kept, subsampled, bad index or -1)
    """
    n = U(0)
    s = 0
    kept = 0
    subsampled = 0
    bounds[0] = 0
    for d in range(len(keys)):
        position = U(first) if d == 0 else U(0)
        salt = _mix64(keys[d] ^ _mix64(U(seed) + U(GOLDEN_GAMMA)))
        for i in range(offsets[d], offsets[d + 1]):
            t = tokens[i]
            if t >= 0:
                if t >= size:
                    return n, s, kept, subsampled, i
                if len(thresholds) > 0:
                    threshold = thresholds[t]
                    always = threshold == U(0xFFFFFFFFFFFFFFFF)
                    if not always and _mix64(salt + position * U(GOLDEN_GAMMA)) >= threshold:
                        subsampled += 1
                        if dropped == HOLD:
                            out[n] = size
                            n += U(1)
                        position += U(1)
                        continue
                out[n] = t
                n += U(1)
                kept += 1
                position += U(1)
            else:
                if t < -4:
                    return n, s, kept, subsampled, i
                if t in (-1, -4):
                    position += U(1)
                action = actions[-t]
                if action == HOLD:
                    out[n] = size
                    n += U(1)
                elif action == BREAK:
                    s += 1
                    bounds[s] = n
        s += 1
        bounds[s] = n
    return n, s + 1, kept, subsampled, -1


@_loop
def start_positions(ids, wanted, start):
    """Where the list of every wanted token starts; returns the length of all lists.

    Parameters
    ----------
    ids : uint32 array of shape (n,)
    wanted : uint8 array of shape (V + 1,)
    start : int64 array of shape (V + 2,), zeros
        Receives the first list index of every token.
    """
    for i in range(len(ids)):
        t = U(ids[U(i)])
        start[t + U(1)] += wanted[t]
    for v in range(len(start) - 1):
        start[v + 1] += start[v]
    return start[len(start) - 1]


@_loop
def list_positions(ids, bounds, owned, wanted, window_left, window_right, start, positions, reach):
    """List the positions of every wanted token with the part of its window that counts.

    Parameters
    ----------
    ids : uint32 array of shape (n,)
        0 .. V, V holding places.
    bounds, owned : int64 arrays of shape (segments + 1,), (segments,)
        Segment s is ``ids[bounds[s]:bounds[s + 1]]``; a pair counts where its later token is at or after ``owned[s]``.
    wanted, start : arrays
        Of `start_positions`.
    positions, reach : uint32 arrays, longer than all lists by AHEAD
        Receive positions by token, and ``left | right << 8 | first_right << 16``: columns at distances 1 .. left
        to the left and first_right .. right to the right.
    """
    total = start[len(start) - 1]
    for s in range(len(owned)):
        low, high, own = bounds[s], bounds[s + 1], owned[s]
        for i in range(low, high):
            t = U(ids[U(i)])
            if not wanted[t]:
                continue
            k = U(start[t])
            start[t] += 1
            positions[k] = i
            right = min(window_right, high - 1 - i)
            if i >= own:
                reach[k] = U(min(window_left, i - low)) | (U(right) << U(8)) | (U(1) << U(16))
            else:
                ahead = min(own - i, 256)
                reach[k] = (U(right) << U(8)) | (U(ahead) << U(16))
    for v in range(len(start) - 1, 0, -1):
        start[v] = start[v - 1]
    start[0] = 0
    for k in range(total, len(positions)):
        positions[k] = 0
        reach[k] = 0


@_loop
def _accumulate(ids, low, high, positions, reach, left, right, accumulator, touched, n):
    """Add the windows of ``positions[low:high]`` to the accumulator; returns the number of touched columns."""
    span = U(len(left) - 1)
    forward = U(len(right) - 1)
    for k in range(low, high):
        ahead = U(positions[U(k + AHEAD)])
        _prefetch(ids, ahead - span)
        _prefetch(ids, ahead + forward)
        p = U(positions[U(k)])
        r = U(reach[U(k)])
        for d in range(U(1), (r & U(255)) + U(1)):
            c = U(ids[p - U(d)])
            a = accumulator[c]
            touched[n] = c
            n += U(a == 0)
            accumulator[c] = a + left[U(d)]
        for d in range(r >> U(16), ((r >> U(8)) & U(255)) + U(1)):
            c = U(ids[p + U(d)])
            a = accumulator[c]
            touched[n] = c
            n += U(a == 0)
            accumulator[c] = a + right[U(d)]
    return n


@_loop
def _mark(touched, n, words, summary):
    """Set the bits of the touched columns in a bitmap of two levels."""
    for q in range(n):
        c = U(touched[U(q)])
        words[c >> U(6)] |= U(1) << (c & U(63))
        summary[c >> U(12)] |= U(1) << ((c >> U(6)) & U(63))


@_loop
def _put(buffer, at, value):
    """Append an unsigned number, 7 bits per byte, low bits first."""
    x = U(value)
    while x >= U(128):
        buffer[at] = (x & U(127)) | U(128)
        x >>= U(7)
        at += U(1)
    buffer[at] = x
    return at + U(1)


@_loop
def _get(buffer, at):
    """Read what `_put` wrote: (value, next place)."""
    byte = U(buffer[at])
    at += U(1)
    x = byte & U(127)
    shift = U(7)
    while byte >= U(128):
        byte = U(buffer[at])
        at += U(1)
        x |= (byte & U(127)) << shift
        shift += U(7)
    return x, at


@_loop
def _put_fixed(buffer, at, value):
    x = U(value)
    for b in range(4):
        buffer[at + U(b)] = (x >> U(8 * b)) & U(255)


@_loop
def _get_fixed(buffer, at):
    x = U(0)
    for b in range(4):
        x |= U(buffer[at + U(b)]) << U(8 * b)
    return x


@_loop
def _pack_accumulated(touched, n, skip, accumulator, words, summary, buffer, at):
    """Append (column difference, units) of all touched columns in order, and clear them: (place, entries)."""
    _mark(touched, n, words, summary)
    previous = U(0)
    entries = U(0)
    for s in range(len(summary)):
        m = summary[U(s)]
        if m == U(0):
            continue
        summary[U(s)] = U(0)
        while m != U(0):
            w = (U(s) << U(6)) + U(_trailing_zeros(m))
            m &= m - U(1)
            x = words[w]
            words[w] = U(0)
            while x != U(0):
                c = (w << U(6)) + U(_trailing_zeros(x))
                x &= x - U(1)
                if c != skip:
                    at = _put(buffer, at, c - previous)
                    at = _put(buffer, at, accumulator[c])
                    previous = c
                    entries += U(1)
                accumulator[c] = 0
    return at, entries


@_loop
def _count_row(
    row,
    low,
    high,
    heavy,
    ids,
    positions,
    reach,
    left32,
    right32,
    left64,
    right64,
    self_units,
    owners,
    narrow,
    wide,
    touched,
):
    """Sum a row into one of the accumulators; returns the number of touched columns."""
    n = U(0)
    if low == high:
        return n
    size = U(len(narrow) - 1)
    narrow[size] = 1
    wide[size] = 1
    if self_units > 0 and owners[row] > 0:
        touched[0] = row
        n = U(1)
        if heavy:
            wide[row] = owners[row] * self_units
        else:
            narrow[row] = owners[row] * self_units
    if heavy:
        return _accumulate(ids, low, high, positions, reach, left64, right64, wide, touched, n)
    return _accumulate(ids, low, high, positions, reach, left32, right32, narrow, touched, n)


@_loop
def count_rows(
    rows,
    index,
    pending,
    ids,
    start,
    positions,
    reach,
    left32,
    right32,
    left64,
    right64,
    self_units,
    owners,
    drop_diagonal,
    light,
    narrow,
    wide,
    touched,
    words,
    summary,
    buffer,
):
    """Count rows ``rows[index:]`` and pack them until the buffer is full.

    Parameters
    ----------
    rows : uint32 array
        Token ids, ascending.
    index, pending : int
        Where to go on; `pending` columns of row ``rows[index]`` are in the accumulator already.
    owners : int64 array of shape (V,) or (0,)
        Occurrences that belong to this chunk; read where `self_units` > 0.
    light : int
        Rows with at most so many positions cannot exceed 32 bits.
    narrow, wide : uint32 and int64 arrays of shape (V + 1,), zeros
        Accumulators; index V takes what held a place, is never 0 and so never touched.

    Returns
    -------
    (next index, pending, bytes used, rows packed, entries packed)
        `pending` > 0: the buffer has no room for the next row, which needs ``MAXIMUM_ENTRY pending + ROW_HEADER``.
    """
    size = U(len(narrow) - 1)
    at = U(0)
    packed = 0
    total = 0
    previous = U(0)
    room = U(len(buffer))
    n = U(pending)
    while index < len(rows):
        row = U(rows[index])
        low, high = start[row], start[row + U(1)]
        heavy = high - low > light
        if n == U(0):
            n = _count_row(
                row, low, high, heavy, ids, positions, reach, left32, right32, left64, right64,
                self_units, owners, narrow, wide, touched,
            )  # fmt: skip
            if n == U(0):
                index += 1
                continue
        if at + n * U(MAXIMUM_ENTRY) + U(ROW_HEADER) > room:
            return index, n, at, packed, total
        skip = row if drop_diagonal else size + U(1)
        head = at
        at = _put(buffer, at, row - previous)
        length_at = at
        at += U(4)
        if heavy:
            end, entries = _pack_accumulated(touched, n, skip, wide, words, summary, buffer, at)
        else:
            end, entries = _pack_accumulated(touched, n, skip, narrow, words, summary, buffer, at)
        n = U(0)
        index += 1
        if entries == U(0):
            at = head
            continue
        _put_fixed(buffer, length_at, end - at)
        at = end
        previous = row
        packed += 1
        total += entries
    return index, n, at, packed, total


@_loop
def index_rows(buffer, low, high, rows, places, lengths, n):
    """List the packed rows in ``buffer[low:high]``: id, place of the payload, its bytes; returns the new count."""
    at = U(low)
    previous = U(0)
    while at < U(high):
        difference, at = _get(buffer, at)
        row = previous + difference
        length = _get_fixed(buffer, at)
        at += U(4)
        rows[n] = row
        places[n] = at
        lengths[n] = length
        n += 1
        previous = row
        at += length
    return n


@_loop
def _order_accumulated(skip, accumulator, words, summary, out_cols, out_units, written):
    """Write the marked columns in order with their units, and clear both; returns the new number of cells."""
    for s in range(len(summary)):
        m = summary[U(s)]
        if m == U(0):
            continue
        summary[U(s)] = U(0)
        while m != U(0):
            w = (U(s) << U(6)) + U(_trailing_zeros(m))
            m &= m - U(1)
            x = words[w]
            words[w] = U(0)
            while x != U(0):
                c = (w << U(6)) + U(_trailing_zeros(x))
                x &= x - U(1)
                if c != skip:
                    out_cols[written] = c
                    out_units[written] = accumulator[c]
                    written += U(1)
                accumulator[c] = 0
    return written


@_loop
def _finish_row(
    row, first, written, halve_diagonal, minimum, limit, out_rows, out_cols, out_units, row_units, col_units, pruned
):
    """Halve the self pair, prune, and add to the marginals; returns the new number of cells, or -1 for an overflow."""
    kept = first
    total = np.int64(0)
    for k in range(first, written):
        units = out_units[U(k)]
        c = U(out_cols[U(k)])
        if halve_diagonal and c == U(row):
            units //= 2
        if units < minimum:
            pruned[0] += 1
            pruned[1] = pruned[1] + units if pruned[1] <= limit - units else limit
            continue
        if units > limit - total:
            return np.int64(-1)
        total += units
        if len(col_units) > 0:
            if col_units[c] > limit - units:
                return np.int64(-1)
            col_units[c] += units
        out_rows[kept] = row
        out_cols[kept] = c
        out_units[kept] = units
        kept += U(1)
    row_units[U(row)] = total
    return np.int64(kept)


@_loop
def merge_rows(
    order,
    index,
    rows,
    places,
    lengths,
    buffer,
    halve_diagonal,
    minimum,
    limit,
    wide,
    touched,
    words,
    summary,
    out_rows,
    out_cols,
    out_units,
    row_units,
    col_units,
    pruned,
):
    """Sum packed rows with equal ids and unpack them in order until the output is full.

    Parameters
    ----------
    order : int64 array
        Indices of the packed rows by row id.
    index : int
        Where to go on in `order`.
    rows, places, lengths : arrays
        Of `index_rows`.
    halve_diagonal : bool
        Count self pairs from one end only.
    minimum : int
        Cells with fewer units are dropped and added to `pruned`.
    limit : int
        A sum above it is an overflow.
    row_units, col_units : int64 arrays of shape (V,)
        Receive the sums of what is kept; `col_units` may be of shape (0,).
    pruned : int64 array of shape (2,)
        Receives cells and units dropped. Its units saturate at the largest int64.

    Returns
    -------
    (next index, cells written, state)
        state: 0 done, 1 output full, 2 overflow.
    """
    written = U(0)
    room = U(len(out_rows))
    while index < len(order):
        row = rows[order[index]]
        stop = index + 1
        while stop < len(order) and rows[order[stop]] == row:
            stop += 1
        bound = U(0)
        for q in range(index, stop):
            bound += U(lengths[order[q]]) >> U(1)
        bound = min(bound, U(len(wide)))
        if written + bound > room:
            return index, written, 1
        n = U(0)
        first = written
        if stop == index + 1:
            at = U(places[order[index]])
            end = at + U(lengths[order[index]])
            c = U(0)
            while at < end:
                difference, at = _get(buffer, at)
                units, at = _get(buffer, at)
                c += difference
                out_cols[written] = c
                out_units[written] = units
                written += U(1)
        else:
            for q in range(index, stop):
                at = U(places[order[q]])
                end = at + U(lengths[order[q]])
                c = U(0)
                while at < end:
                    difference, at = _get(buffer, at)
                    units, at = _get(buffer, at)
                    c += difference
                    a = wide[c]
                    if a > limit - np.int64(units):
                        return index, written, 2
                    touched[n] = c
                    n += U(a == 0)
                    wide[c] = a + np.int64(units)
            _mark(touched, n, words, summary)
            written = _order_accumulated(U(len(wide)), wide, words, summary, out_cols, out_units, written)
        kept = _finish_row(
            row,
            first,
            written,
            halve_diagonal,
            minimum,
            limit,
            out_rows,
            out_cols,
            out_units,
            row_units,
            col_units,
            pruned,
        )
        if kept < 0:
            return index, written, 2
        written = U(kept)
        index = stop
    return index, written, 0


@_loop
def count_cells(
    rows,
    index,
    pending,
    ids,
    start,
    positions,
    reach,
    left32,
    right32,
    left64,
    right64,
    self_units,
    owners,
    light,
    narrow,
    wide,
    touched,
    words,
    summary,
    drop_diagonal,
    halve_diagonal,
    minimum,
    limit,
    out_rows,
    out_cols,
    out_units,
    row_units,
    col_units,
    pruned,
):
    """Count rows ``rows[index:]`` into sorted cells until the output is full: `count_rows` and `merge_rows` in one.

    For when all tokens are here, so that a row is complete.

    Returns
    -------
    (next index, pending, cells written, state)
        state: 0 done, 1 output full, 2 overflow.
    """
    size = U(len(narrow) - 1)
    written = U(0)
    room = U(len(out_rows))
    n = U(pending)
    while index < len(rows):
        row = U(rows[index])
        low, high = start[row], start[row + U(1)]
        heavy = high - low > light
        if n == U(0):
            n = _count_row(
                row, low, high, heavy, ids, positions, reach, left32, right32, left64, right64,
                self_units, owners, narrow, wide, touched,
            )  # fmt: skip
            if n == U(0):
                index += 1
                continue
        if written + n > room:
            return index, n, written, 1
        skip = row if drop_diagonal else size + U(1)
        _mark(touched, n, words, summary)
        n = U(0)
        first = written
        if heavy:
            written = _order_accumulated(skip, wide, words, summary, out_cols, out_units, written)
        else:
            written = _order_accumulated(skip, narrow, words, summary, out_cols, out_units, written)
        kept = _finish_row(
            row,
            first,
            written,
            halve_diagonal,
            minimum,
            limit,
            out_rows,
            out_cols,
            out_units,
            row_units,
            col_units,
            pruned,
        )
        if kept < 0:
            return index, n, written, 2
        written = U(kept)
        index += 1
    return index, n, written, 0


@_loop
def pack_rows(rows, cols, units, index, buffer):
    """Pack sorted cells from ``index`` on, whole rows only: (next index, bytes used, rows packed)."""
    at = U(0)
    packed = 0
    previous = U(0)
    room = U(len(buffer))
    n = len(rows)
    while index < n:
        row = rows[index]
        stop = index
        while stop < n and rows[stop] == row:
            stop += 1
        if at + U(stop - index) * U(MAXIMUM_ENTRY) + U(ROW_HEADER) > room:
            return index, at, packed
        at = _put(buffer, at, U(row) - previous)
        length_at = at
        at += U(4)
        payload = at
        c = U(0)
        for k in range(index, stop):
            at = _put(buffer, at, U(cols[k]) - c)
            at = _put(buffer, at, U(units[k]))
            c = U(cols[k])
        _put_fixed(buffer, length_at, at - payload)
        previous = U(row)
        packed += 1
        index = stop
    return index, at, packed
