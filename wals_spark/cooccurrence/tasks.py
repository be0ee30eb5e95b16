"""What the stage and the batch commands share: a scratch directory, a bound on Spark's batches."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from wals_spark import storage
from wals_spark.stage import Context


@contextmanager
def scratch_directory(context: Context, batch_id: str) -> Iterator[str]:
    """A directory of this batch that is gone afterwards; what a killed command left is removed first."""
    base = storage.join(context.manifests.warehouse, "_scratch", f"cooccurrence-{batch_id}")
    storage.remove(base)
    directory = storage.join(base, uuid.uuid4().hex[:8])
    storage.make_directory(directory)
    try:
        yield directory
    finally:
        storage.remove(base)


@contextmanager
def bounded_batches(context: Context) -> Iterator[None]:
    """Spark hands packed rows to Python in batches by bytes: 10,000 blobs at a time would be gigabytes."""
    key = "spark.sql.execution.arrow.maxBytesPerBatch"
    conf = context.spark.conf
    before = conf.get(key)
    conf.set(key, str(16 << 20))
    try:
        yield
    finally:
        if before is not None:
            conf.set(key, before)
