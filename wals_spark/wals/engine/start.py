"""Where a training starts: the newest checkpoint, given factors, or random ones."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np

from wals_spark import storage
from wals_spark.errors import InputError, TransientError
from wals_spark.matrix.list_column import lists_to_matrix
from wals_spark.wals.engine import checkpoint
from wals_spark.wals.engine.factors import FactorStore
from wals_spark.wals.engine.initial_factors import initial_factors
from wals_spark.wals.engine.task import RankTask
from wals_spark.wals.partition.side import SIDES

logger = logging.getLogger(__name__)

VECTORS_AT_ONCE = 1 << 16


def start_factors(task: RankTask, store: FactorStore) -> tuple[int, list[float]]:
    """Factors of the newest checkpoint, or starting factors; returns the half-sweeps done and their losses."""
    group = store.group
    state = checkpoint.load(task.checkpoints, task.facts, {side: store.local_ids(side) for side in SIDES})
    reached = group.all_gather_object(state.half if state else 0)
    if len(set(reached)) > 1:
        raise TransientError(
            f"the ranks see different checkpoints in {task.checkpoints} (half-sweeps {reached}); that directory must "
            "be the same for all of them: set warehouse to a shared file system"
        )
    if state is None:
        if task.objective.bias == "fixed":
            for side in SIDES:
                store.arrays[side][:, task.config.k] = store.sides[side].offsets[store.local_ids(side)]
        # Rows stay zero where there are sweeps, since they are solved first.
        for side in SIDES if task.start_only else task.order[1:]:
            _start_side(task, store, side)
        if task.initial is not None:
            _start_from(task.initial, task.config.k, store)
        return 0, []
    logger.info("rank %d resumes after half-sweep %d", group.rank, state.half)
    store.arrays.update(state.factors)
    return state.half, state.losses


def _start_side(task: RankTask, store: FactorStore, side: str) -> None:
    """Random factors of a side; empty rows stay zero."""
    x, ids = store.arrays[side], store.local_ids(side)
    places = np.flatnonzero(store.sides[side].cell_counts[ids] > 0)
    # Making random numbers takes six words for each.
    for part in checkpoint.slices(len(places), 6 * 8 * task.config.k):
        random = initial_factors(task.seed, side, ids[places[part]], task.config.k)
        if task.start == "positive":
            random = np.abs(random)
        if task.start != "normal":
            random /= np.linalg.norm(random, axis=1, keepdims=True)
        x[places[part], : task.config.k] = random


def _start_from(path: str, k: int, store: FactorStore) -> None:
    """Given factors of columns in place of the random ones."""
    x, ids = store.arrays["col"], store.local_ids("col")
    filled = store.sides["col"].cell_counts[ids] > 0
    place = np.full(store.sides["col"].size, -1)
    place[ids] = np.where(filled, np.arange(len(ids)), -1)
    for given, vectors in read_initial_columns(path, k, store.sides["col"].size):
        here = place[given] >= 0
        x[place[given[here]], :k] = vectors[here]


def read_initial_columns(path: str, k: int, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Ids and vectors of a Parquet file or directory of (id, vector), some at a time.

    Raises
    ------
    InputError
        Vectors of another length, not finite, or ids outside 0 .. size - 1.
    """
    import pyarrow.dataset as ds

    fs, local = storage.filesystem(path)
    dataset = ds.dataset(local, filesystem=fs, format="parquet")
    for batch in dataset.to_batches(columns=["id", "vector"], batch_size=VECTORS_AT_ONCE):
        if not len(batch):
            continue
        ids, vectors = batch["id"].to_numpy(), lists_to_matrix(batch["vector"])
        if vectors.shape[1] != k:
            raise InputError(f"initial factors have {vectors.shape[1]} numbers per vector, but k is {k}")
        if ids.min() < 0 or ids.max() >= size or not np.isfinite(vectors).all():
            raise InputError(f"initial factors at {path}: ids outside 0 .. {size - 1}, or numbers that are not finite")
        yield ids, vectors
