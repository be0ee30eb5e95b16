"""Batches of counts: folding several into their exact sum, dropping one, tidying up.

Each is idempotent: killed at any point and run again, it ends with the same tables. What is being
changed is marked in its manifest first, so nothing trusts it meanwhile.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pyarrow as pa

from wals_spark import schemas, storage
from wals_spark.config import batch_name, fingerprint
from wals_spark.cooccurrence.semantics import Semantics, semantics_from_facts
from wals_spark.errors import InputError
from wals_spark.runs import Manifest, ManifestStore, now, package_versions
from wals_spark.stage import Context, output_lock
from wals_spark.stage_outputs import CooccurrenceOutputs, outputs_of, require_outputs
from wals_spark.tables import DataFile
from wals_spark.tables.vocabulary import read_vocabulary

logger = logging.getLogger(__name__)

STAGE = "cooccurrence"


def compact(context: Context, into: str, batches: Sequence[str] = ("all",)) -> Manifest:
    """Fold batches into one: their exact sum replaces them in one step.

    Parameters
    ----------
    into : str
        The id of the folded batch; one of `batches`, or new.
    batches : list of str
        ``all`` = every batch of the table.

    Raises
    ------
    InputError
        A batch is missing, `into` is another batch already, or the batches do not mean the same.
    """
    try:
        batch_name(into)
    except ValueError as error:
        raise InputError(f"{into!r} cannot name a batch: {error}") from None
    existing = context.manifests.find(STAGE, into)
    started = None
    if existing is not None and not existing.complete:
        started = existing.inputs.get("folding")
        if started is None:
            raise InputError(f"counting of batch {into!r} was not finished; finish it, or drop it first")
    if existing is not None and started is None and _is_folded(context, existing, batches):
        logger.info("compact: already done by run %s at %s", existing.run_id, existing.finished_at)
        return existing
    names = _names(context, batches, into, started)
    with ExitStack() as locks:
        for name in sorted({into, *names}):
            locks.enter_context(output_lock(context, STAGE, name))
        return _compact(context, into, names, existing if started else None)


def _is_folded(context: Context, manifest: Manifest, batches: Sequence[str]) -> bool:
    """Whether a batch is the sum of those asked for already, and nothing else is there to fold."""
    complete = set(context.manifests.keys(STAGE))
    folded = set(outputs_of(manifest, CooccurrenceOutputs).get("folded", [manifest.key]))
    if tuple(batches) == ("all",):
        return complete == {manifest.key}
    return set(batches) <= folded | {manifest.key} and not (set(batches) - {manifest.key}) & complete


def _names(context: Context, batches: Sequence[str], into: str, started: list[str] | None) -> list[str]:
    """The batches to fold, those of an interrupted folding included."""
    if started is not None:
        if tuple(batches) != ("all",) and sorted(batches) != sorted(started):
            raise InputError(
                f"folding {', '.join(started)} into {into!r} was interrupted; finish it (the same command, or "
                f"--batches all) before folding {', '.join(batches)}"
            )
        return started
    complete = context.manifests.keys(STAGE)
    names = complete if tuple(batches) == ("all",) else sorted(set(batches))
    missing = sorted(set(names) - set(complete))
    if missing or not names:
        raise InputError(
            f"there is no complete batch {', '.join(missing) or 'at all'} in {context.manifests.warehouse}; "
            f"there are: {', '.join(complete) or 'none'}"
        )
    if into in complete and into not in names:
        raise InputError(f"batch {into!r} exists and is not among those to fold; name it too, or choose another id")
    return names


def _compact(context: Context, into: str, names: list[str], interrupted: Manifest | None) -> Manifest:
    if interrupted is not None:
        sources: dict[str, CooccurrenceOutputs] = interrupted.inputs["sources"]
        manifest = interrupted
    else:
        found = {name: context.manifests.require(STAGE, name) for name in names}
        sources = {name: outputs_of(manifest, CooccurrenceOutputs) for name, manifest in found.items()}
        manifest = Manifest(
            stage=STAGE,
            key=into,
            state="running",
            fingerprint=fingerprint({"folding": {name: found[name].fingerprint for name in names}}),
            run_id=context.config.run_id,
            inputs={"folding": names, "sources": sources},
            config=found[names[0]].config,
            config_fingerprint=context.config.fingerprint,
            started_at=now(),
            packages=package_versions(),
        )
    semantics = _common_semantics(sources)
    context.manifests.write(manifest)
    vocabulary = read_vocabulary(context.tables)
    others = [{"batch_id": name} for name in names if name != into]
    where = {"batch_id": into}
    filled = [name for name in names if sources[name]["nnz"]]
    if filled and _still_apart(context, schemas.COOCCURRENCE, filled, into):
        blocks = max(outputs["blocks"] for outputs in sources.values())
        _fold_cells(context, semantics, vocabulary.counts, blocks, filled, where, others)
    if _still_apart(context, schemas.MARGINALS, names, into):
        _fold_marginals(context, len(vocabulary.tokens), names, where, others)
    files = context.tables.files(schemas.COOCCURRENCE, where) if filled else []
    outputs = _summed_outputs(context, sources, files, where)
    for name in names:
        if name != into:
            context.manifests.remove(STAGE, name)
    manifest = replace(manifest, state="complete", outputs=outputs, inputs={"folding": names}, finished_at=now())
    context.manifests.write(manifest)
    logger.info("%d batches are now %r: %s non-zeros", len(names), into, f"{outputs['nnz']:,}")
    return manifest


def _summed_outputs(
    context: Context, sources: Mapping[str, CooccurrenceOutputs], files: Sequence[DataFile], where: dict[str, str]
) -> CooccurrenceOutputs:
    """The outputs of the sum: what was read for all parts, the largest vocabulary, the files of the sum."""
    parts = list(sources.values())
    largest = max(parts, key=lambda part: part["vocabulary_size"])
    outputs: CooccurrenceOutputs = {
        **parts[0],
        "total_units": sum(part["total_units"] for part in parts),
        "pruned_cells": sum(part["pruned_cells"] for part in parts),
        "pruned_units": sum(part["pruned_units"] for part in parts),
        "documents": sum(part["documents"] for part in parts),
        "tokens": sum(part["tokens"] for part in parts),
        "kept": sum(part["kept"] for part in parts),
        "subsampled": sum(part["subsampled"] for part in parts),
        "vocabulary_size": largest["vocabulary_size"],
        "vocabulary_hash": largest["vocabulary_hash"],
        "blocks": len({data_file.values["row_block"] for data_file in files}),
        "nnz": sum(data_file.rows for data_file in files),
        "bytes": sum(data_file.bytes for data_file in files),
        "folded": sorted({batch for name, part in sources.items() for batch in part.get("folded", [name])}),
        "tables": {
            **context.table_output(schemas.COOCCURRENCE, where),
            **context.table_output(schemas.MARGINALS, where),
        },
    }
    outputs.pop("work", None)
    return outputs


def _still_apart(context: Context, table: schemas.Table, names: Sequence[str], into: str) -> bool:
    """Whether a table still holds the parts; they go and the sum comes in one step."""
    present = set(context.tables.values(table))
    if all(name in present for name in names if name != into):
        return True
    if into in present and not any(name in present for name in names if name != into):
        return False
    raise InputError(
        f"table {table.name}: of the batches {', '.join(names)} some are there and some are not (found "
        f"{', '.join(sorted(present))}); count the missing ones again"
    )


def _common_semantics(sources: Mapping[str, CooccurrenceOutputs]) -> Semantics:
    facts = {name: outputs["semantics"] for name, outputs in sources.items()}
    (first, expected), *rest = facts.items()
    for name, found in rest:
        different = [key for key in expected if found.get(key) != expected[key]]
        if different:
            key = different[0]
            raise InputError(
                f"batches {first!r} and {name!r} differ: {key} is {expected[key]!r} and {found.get(key)!r}"
            )
    # The parts are final: no self pair is halved and nothing is dropped again.
    return replace(semantics_from_facts(expected), diagonal="keep", min_pair_count=0.0)


def _fold_cells(
    context: Context,
    semantics: Semantics,
    counts: np.ndarray,
    blocks: int,
    names: Sequence[str],
    where: dict[str, str],
    others: list[dict[str, str]],
) -> None:
    from wals_spark.cooccurrence import counting
    from wals_spark.cooccurrence.plan import blocks_by_rank

    paths = [file.path for name in names for file in context.tables.files(schemas.COOCCURRENCE, {"batch_id": name})]
    memory = context.config.cooccurrence.memory_per_task
    with context.scratch(f"{STAGE}.{where['batch_id']}") as scratch, counting.bounded_batches(context.spark):
        job = counting.CountingJob(semantics, blocks_by_rank(counts, blocks), memory, scratch)
        packed = counting.by_block(counting.repacked_frame(context.spark, job, paths), blocks)
        with context.tables.staged_slice(schemas.COOCCURRENCE, where, instead_of=others) as directory:
            if directory is not None:
                counting.write_blocks(packed, job, directory)
            else:
                frame = counting.merged_cells(packed, job)
                context.tables.replace(schemas.COOCCURRENCE, frame, where, instead_of=others)


def _fold_marginals(
    context: Context, size: int, names: Sequence[str], where: dict[str, str], others: list[dict[str, str]]
) -> None:
    sums = {column: np.zeros(size, np.int64) for column in ("row_units", "col_units")}
    for name in names:
        for data_file in context.tables.files(schemas.MARGINALS, {"batch_id": name}):
            part = data_file.read(["token_id", *sums])
            for column, total in sums.items():
                total[part["token_id"].to_numpy()] += part[column].to_numpy()
    if any((total < 0).any() for total in sums.values()):
        raise InputError("the marginals of the sum overflow an int64: fold fewer batches")
    rows = pa.table({"token_id": np.arange(size, dtype=np.int32), **sums})
    context.tables.replace_rows(schemas.MARGINALS, rows, where, instead_of=others)


def drop_batch(context: Context, batch_id: str) -> bool:
    """Remove a batch's counts and marginals; returns whether there was anything to remove."""
    with output_lock(context, STAGE, batch_id):
        manifest = context.manifests.find(STAGE, batch_id)
        if manifest is not None and manifest.complete:
            context.manifests.write(replace(manifest, state="running"))
        where = {"batch_id": batch_id}
        dropped = [context.tables.drop(table, where) for table in (schemas.MARGINALS, schemas.COOCCURRENCE)]
        context.manifests.remove(STAGE, batch_id)
    return manifest is not None or any(dropped)


def maintain(context: Context, retain_hours: float = 168.0) -> dict[str, dict[str, int]]:
    """Tidy up every table, see `TableStore.maintain`; returns what was done by table.

    Raises
    ------
    ConfigError
        On Delta, `retain_hours` is below Delta's least retention of 168.
    """
    done = {}
    for table in schemas.TABLES.values():
        if storage.exists(context.tables.path(table)):
            done[table.name] = context.tables.maintain(table, retain_hours)
    return done


def refuse_folded(manifests: ManifestStore, batch_id: str) -> None:
    """Refuse to count a batch that was folded beside, or in place of, the sum.

    Raises
    ------
    InputError
        It is part of a folded batch, or is one.
    """
    for key in manifests.keys(STAGE):
        folded = require_outputs(manifests, CooccurrenceOutputs, key).get("folded", [])
        if batch_id == key and folded:
            raise InputError(
                f"batch {batch_id!r} is the sum of {', '.join(folded)}; counting it again would lose them: drop it "
                "first (wals-spark drop-batch) or use another batch id"
            )
        if batch_id in folded:
            raise InputError(
                f"batch {batch_id!r} was folded into {key!r}; counting it again would count its documents twice: "
                "use another batch id"
            )
