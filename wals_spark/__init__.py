"""Distributed WALS word vectors on Spark, and their injection into RoBERTa checkpoints."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`WALS` and `WALSModel`, imported when first used: they need pyspark."""
    if name in ("WALS", "WALSModel"):
        from wals_spark.wals import estimator

        return getattr(estimator, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
