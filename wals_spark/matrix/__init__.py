"""Sparse blocks: CSR, Arrow and Parquet, placement."""
