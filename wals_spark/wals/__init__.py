"""Weighted alternating least squares: mathematics, ranks, driver."""
