"""Code points of UTF-8 bytes, for compiled loops."""

from __future__ import annotations

import numpy as np

from wals_spark.compiled import compiled


@compiled(inline="always")
def decode_utf8(data, at):  # type: ignore[no-untyped-def]  # numba infers the types
    """Code point and width of a character beyond ASCII, in valid UTF-8."""
    lead = np.int64(data[at])
    code = np.int64(data[at + 1] & 0x3F)
    if lead < 0xE0:
        return (lead & 0x1F) << 6 | code, 2
    code = code << 6 | np.int64(data[at + 2] & 0x3F)
    if lead < 0xF0:
        return (lead & 0x0F) << 12 | code, 3
    return (lead & 0x07) << 18 | code << 6 | np.int64(data[at + 3] & 0x3F), 4


@compiled(inline="always")
def code_point(data, at):  # type: ignore[no-untyped-def]
    """Code point and width of the character at byte `at`, in valid UTF-8."""
    if data[at] < 0x80:
        return np.int64(data[at]), 1
    return decode_utf8(data, at)
