r"""Rows of numbers in fewer bits: half precision, or 8-bit integers with one scale per row.

8 bits: q_ij = round(x_ij / s_i), to nearest with ties to even, and s_i = max_j |x_ij| / 127 as float32, rounded up. The
codes are symmetric, -127 to 127, and |x_ij - s_i q_ij| <= s_i / 2 for every entry. Half precision rounds to nearest
with ties to even; its range ends at 65,504.

References
----------
.. [1] B. Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
   CVPR 2018, https://arxiv.org/abs/1712.05877 (here symmetric, without a zero point, and one scale per row).
"""

from __future__ import annotations

from typing import Any

import numpy as np

LARGEST_CODE = 127
PACK_DTYPES: dict[str, np.dtype[Any]] = {"fp32": np.dtype("<f4"), "fp16": np.dtype("<f2"), "int8": np.dtype("i1")}
"""Names of the formats and how their entries are stored."""
_ABOVE = 1 + 2.0**-20
"""Scales are rounded up to float32."""


def quantise_rows(rows: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Store finite `rows` as `dtype`.

    Parameters
    ----------
    rows : float64 array of shape (n, d)
    dtype : str
        ``fp32``, ``fp16`` or ``int8``.

    Returns
    -------
    stored : float32, float16 or int8 array of shape (n, d)
        Infinite where an entry is beyond the range of ``fp16`` or ``fp32``.
    scales : float32 array of shape (n,) or None
        Of ``int8``: s_i, and 1 for a row of zeros. None for the others.
    """
    if dtype != "int8":
        with np.errstate(over="ignore"):
            return rows.astype(PACK_DTYPES[dtype]), None
    largest = np.abs(rows).max(axis=1, initial=0.0)
    scales = (largest / LARGEST_CODE).astype(np.float32)
    short = scales.astype(np.float64) * LARGEST_CODE < largest
    scales = np.where(short, np.nextafter(scales, np.float32(np.inf)), scales)
    scales[largest == 0] = 1
    codes = np.rint(rows / scales[:, None].astype(np.float64))
    return codes.astype(np.int8), scales


def rounding_bounds(rows: np.ndarray, dtype: str) -> np.ndarray:
    """The Euclidean length of what `quantise_rows` can lose of each row, at most: float64 (n,)."""
    width = np.sqrt(rows.shape[1])
    if dtype == "int8":
        return np.asarray(_ABOVE * width * np.abs(rows).max(axis=1, initial=0.0) / (2 * LARGEST_CODE))
    relative, least = {"fp16": (2.0**-11, 2.0**-25), "fp32": (2.0**-24, 2.0**-150)}[dtype]
    return np.asarray(relative * np.linalg.norm(rows, axis=1) + least * width)


def dequantise_rows(stored: np.ndarray, scales: np.ndarray | None) -> np.ndarray:
    """The numbers that `stored` rows stand for, s_i q_ij: float64 (n, d), exact."""
    wide = stored.astype(np.float64)
    return wide if scales is None else wide * scales[:, None].astype(np.float64)
