"""Exact co-occurrence counts."""
