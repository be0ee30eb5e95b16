"""Unsigned numbers in bytes: 7 bits per byte, low bits first, the high bit set on all bytes but the last."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from wals_spark.cooccurrence.kernels.intrinsics import U, loop


@loop
def append_varint(buffer, at, value):
    """Append an unsigned number; returns the next place."""
    x = U(value)
    while x >= U(128):
        buffer[at] = (x & U(127)) | U(128)
        x >>= U(7)
        at += U(1)
    buffer[at] = x
    return at + U(1)


@loop
def read_varint(buffer, at):
    """Read what `append_varint` wrote: (value, next place)."""
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


@loop
def write_uint32(buffer, at, value):
    """Write a number into 4 bytes, low byte first."""
    x = U(value)
    for b in range(4):
        buffer[at + U(b)] = (x >> U(8 * b)) & U(255)


@loop
def read_uint32(buffer, at):
    """Read what `write_uint32` wrote."""
    x = U(0)
    for b in range(4):
        x |= U(buffer[at + U(b)]) << U(8 * b)
    return x
