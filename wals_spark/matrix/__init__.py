"""Sparse blocks: CSR, Arrow and Parquet, SciPy, placement."""

from wals_spark.matrix.scipy_matrix import to_scipy

__all__ = ["to_scipy"]
