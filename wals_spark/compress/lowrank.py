r"""A low-rank embedding whose expansion is the same to the last bit wherever it is computed.

::

    e_i ~ mu + a_i B        A: coordinates (V, r), B: basis (r, d), mu: mean (d,)

In the tied head mu adds h.mu to every logit alike, so it changes no probability. Coordinates, basis and mean are stored
on grids of powers of two, coarse enough that every product and every partial sum is an integer multiple of one power of
two below 2^53: float64 adds them without rounding, in any order, by any BLAS, on any device. So the dense matrix
in one file and the factors in another can be proven equal bit by bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wals_spark.checkpoints.raw_tensor import ITEM_BYTES, RawTensor, from_values
from wals_spark.errors import InputError

COORDINATE_BITS = 20
BASIS_BITS = 20
"""Products take 40 bits; up to 4,096 of them, with their sign, stay below 2^53."""
CHUNK_ROWS = 4096


@dataclass(frozen=True)
class LowRankEmbedding:
    """Factors of an embedding as they are stored.

    Attributes
    ----------
    coordinates : float64 array of shape (V, r)
        A.
    basis : float64 array of shape (r, d)
        B.
    mean : float64 array of shape (d,)
        mu.
    dtype : str
        Their dtype on disk, in safetensors' spelling; every number is representable in it.
    """

    coordinates: np.ndarray
    basis: np.ndarray
    mean: np.ndarray
    dtype: str

    @property
    def rank(self) -> int:
        """The rank r."""
        return len(self.basis)

    @property
    def parameters(self) -> int:
        """Numbers stored: (V + d) r + d."""
        return parameter_count(*self.shape, self.rank)

    @property
    def bytes(self) -> int:
        """Of the three tensors."""
        return self.parameters * ITEM_BYTES[self.dtype]

    @property
    def shape(self) -> tuple[int, int]:
        """(V, d), of the expanded matrix."""
        return len(self.coordinates), self.basis.shape[1]

    def expand(self) -> RawTensor:
        """The matrix mu + A B, exact, rounded to float32 and from there to `dtype`."""
        rows = np.empty(self.shape, np.float64 if self.dtype == "F64" else np.float32)
        for start in range(0, len(rows), CHUNK_ROWS):
            part = slice(start, start + CHUNK_ROWS)
            rows[part] = self.coordinates[part] @ self.basis + self.mean  # (chunk, d)
        return from_values(rows, self.dtype)

    def tensors(self) -> dict[str, RawTensor]:
        """The three tensors as they are stored."""
        return {name: from_values(getattr(self, name), self.dtype) for name in ("coordinates", "basis", "mean")}


def parameter_count(V: int, d: int, r: int) -> int:
    """Numbers in a factorised V x d embedding of rank r: (V + d) r + d."""
    return (V + d) * r + d


def from_tensors(coordinates: RawTensor, basis: RawTensor, mean: RawTensor) -> LowRankEmbedding:
    """The inverse of `LowRankEmbedding.tensors`.

    Raises
    ------
    InputError
        Shapes that do not fit each other, or tensors without plain floating-point numbers.
    """
    A, B, mu = coordinates.shape, basis.shape, mean.shape
    if len(A) != 2 or len(B) != 2 or A[1] != B[0] or mu != B[1:] or 0 in (*A, *B):
        raise InputError(f"factors of shapes {A}, {B} and {mu}: expected (V, r), (r, d) and (d,)")
    wide = [tensor.values().astype(np.float64) for tensor in (coordinates, basis, mean)]
    return LowRankEmbedding(wide[0], wide[1], wide[2], coordinates.dtype)


def round_to_grids(coordinates: np.ndarray, basis: np.ndarray, mean: np.ndarray, dtype: str) -> LowRankEmbedding:
    """Factors rounded to the grids of the module and to a dtype.

    Parameters
    ----------
    coordinates : float64 array of shape (V, r)
    basis : float64 array of shape (r, d)
    mean : float64 array of shape (d,)
    dtype : {"F32", "F16", "BF16", "F64"}
        Of the factors on disk.

    Returns
    -------
    LowRankEmbedding
    """
    basis_step = _step(basis, BASIS_BITS)
    # The grid of products must also hold the mean within 2^51 steps.
    finest = np.ldexp(1.0, _exponent(mean) - 51) / basis_step
    coordinate_step = max(_step(coordinates, COORDINATE_BITS), finest)
    grid = coordinate_step * basis_step

    def rounded(values: np.ndarray, step: float) -> np.ndarray:
        on_grid = np.rint(values / step) * step
        # A float of fewer bits than the grid lies on the grid again, a multiple of a larger power of two.
        return np.asarray(from_values(on_grid, dtype).values(), np.float64)

    return LowRankEmbedding(
        rounded(coordinates, coordinate_step), rounded(basis, basis_step), rounded(mean, grid), dtype
    )


def _exponent(values: np.ndarray) -> int:
    """The least e with ``|values| < 2^e``; -126 for zeros."""
    largest = float(np.abs(values).max(initial=0.0))
    return int(np.frexp(largest)[1]) if largest > 0 else -126


def _step(values: np.ndarray, bits: int) -> float:
    """The step of a grid with `bits` bits for the largest of some values, a power of two."""
    return float(np.ldexp(1.0, _exponent(values) - bits))
