"""The stage: encoded documents of a batch to its slice of the co-occurrence table and its marginals."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from wals_spark import schemas, storage
from wals_spark.config import Config
from wals_spark.cooccurrence.batches import refuse_folded
from wals_spark.errors import InputError
from wals_spark.heartbeat import HeartbeatMonitor, time_left
from wals_spark.progress import Progress
from wals_spark.runs import ManifestStore
from wals_spark.stage import Context, Metric, Outcome, Stage, StageRun
from wals_spark.stage_outputs import CooccurrenceOutputs, CountedVocabulary, VocabularyOutputs, require_outputs
from wals_spark.tables.vocabulary import Vocabulary, read_counts_at_encoding, read_vocabulary
from wals_spark.token_shards import list_shards
from wals_spark.tokenizer import vocabulary_hash

if TYPE_CHECKING:
    from wals_spark.cooccurrence.counting import BlockFacts, CountingJob
    from wals_spark.cooccurrence.plan import CountingPlan
    from wals_spark.cooccurrence.semantics import Semantics

logger = logging.getLogger(__name__)


class CooccurrenceStage(Stage):
    """Encoded documents of a batch to its slice of the co-occurrence table and its marginals."""

    name = "cooccurrence"
    sections = ("cooccurrence",)

    def key(self, config: Config) -> str:
        """The batch id."""
        return config.corpus.batch_id

    def inputs(self, config: Config, manifests: ManifestStore) -> Sequence[tuple[str, str]]:
        """The encoded documents of the batch."""
        return [("vocabulary", config.corpus.batch_id)]

    def check(self, config: Config) -> None:
        """Raise where the batch is part of a folded one, or is one, and for counts that no pair can have."""
        from wals_spark.cooccurrence.semantics import semantics_of

        semantics_of(config.cooccurrence)
        refuse_folded(ManifestStore(storage.absolute(config.warehouse)), config.corpus.batch_id)

    def run(self, stage_run: StageRun) -> Outcome:
        """Count the batch exactly and write its cells and marginals."""
        from wals_spark.cooccurrence import counting
        from wals_spark.cooccurrence.plan import blocks_by_rank, make_plan
        from wals_spark.cooccurrence.semantics import semantics_of

        context = stage_run.context
        config = context.config
        settings = config.cooccurrence
        encoded = stage_run.outputs(VocabularyOutputs)
        vocabulary = read_vocabulary(context.tables)
        semantics = semantics_of(settings, config.seed)
        semantics.check_head_room(int(vocabulary.counts.max(initial=0)))
        counts = read_counts_at_encoding(encoded["encoded"], vocabulary)
        # As the table is now: it may have grown at its end since the batch was encoded.
        counted: CountedVocabulary = {
            "vocabulary_hash": vocabulary_hash(vocabulary.tokens),
            "vocabulary_size": len(vocabulary.tokens),
        }
        refuse_other_meaning(context, semantics.facts(), counted, vocabulary)
        spark = context.spark
        plan = make_plan(
            list_shards(encoded["encoded"]),
            vocabulary.counts,
            semantics,
            slots=spark.sparkContext.defaultParallelism,
            memory=settings.memory_per_task,
            blocks=settings.blocks,
        )
        if not plan.tasks:
            raise InputError(f"batch {config.corpus.batch_id!r} has no tokens to count")
        where = {"batch_id": config.corpus.batch_id}
        with (
            context.scratch(f"cooccurrence.{config.corpus.batch_id}") as scratch,
            _progress(scratch, plan, encoded.get("text_bytes")),
        ):
            job = counting.CountingJob(
                semantics,
                blocks_by_rank(vocabulary.counts, plan.blocks),
                settings.memory_per_task,
                scratch,
                counts if semantics.subsample is not None else None,
            )
            if plan.direct:
                _count_directly(context, job, plan, where)
            else:
                _count_shuffled(context, job, plan, where)
            blocks, row_units, col_units = counting.collect_facts(job, plan.blocks)
        _write_marginals(context, row_units, col_units, where)
        outputs = _outputs(context, semantics, counted, plan, blocks, row_units, where)
        if semantics.subsample is not None:
            outputs["subsampled_by"] = {"version": encoded["version"], "tokens": int(counts.sum())}
        return Outcome(outputs, _metrics(outputs), _lines(outputs))


def _count_directly(context: Context, job: CountingJob, plan: CountingPlan, where: dict[str, str]) -> None:
    """Every task reads all tokens and counts its share of the rows."""
    from wals_spark.cooccurrence import counting

    direct = counting.DirectCounting([span for task in plan.tasks for span in task], plan.direct, plan.blocks)
    with context.tables.staged_slice(schemas.COOCCURRENCE, where) as directory:
        if directory is not None:
            counting.write_direct(context.spark, job, direct, directory)
        else:
            frame = counting.direct_cells(context.spark, job, direct)
            context.tables.replace(schemas.COOCCURRENCE, frame, where)


def _count_shuffled(context: Context, job: CountingJob, plan: CountingPlan, where: dict[str, str]) -> None:
    """Tasks share the tokens; packed rows are shuffled by block and summed."""
    from wals_spark.cooccurrence import counting

    with counting.bounded_batches(context.spark):
        packed = counting.by_block(counting.packed_frame(context.spark, job, plan.tasks), plan.blocks)
        with context.tables.staged_slice(schemas.COOCCURRENCE, where) as directory:
            if directory is not None:
                counting.write_blocks(packed, job, directory)
            else:
                context.tables.replace(schemas.COOCCURRENCE, counting.merged_cells(packed, job), where)


@contextmanager
def _progress(directory: str, plan: CountingPlan, text_bytes: int | None) -> Iterator[None]:
    """Show the tokens counted, then the non-zeros merged; where there is merging, it takes about as long."""

    def show(done: Counter[str], seconds: float) -> None:
        counted = done["tokens"] / max(1, plan.tokens)
        merged = counted if plan.direct else min(1.0, done["cells"] / max(1.0, plan.cells))
        eta = time_left(seconds, (counted + merged) / 2)
        if done["cells"]:
            merging.update(done["cells"], expected=round(plan.cells), eta=eta)
        else:
            rate: dict[str, Any] = {"MB/s": text_bytes * counted / 1e6 / seconds} if text_bytes else {}
            counting.update(done["tokens"], documents=done["documents"], pairs=done["pairs"], **rate, eta=eta)

    with (
        Progress("count", plan.tokens, "tokens") as counting,
        Progress("merge", None, "non-zeros") as merging,
        HeartbeatMonitor(directory, show),
    ):
        yield


def refuse_other_meaning(
    context: Context, semantics: Mapping[str, Any], counted: CountedVocabulary, vocabulary: Vocabulary
) -> None:
    """Refuse a batch that does not mean the same as those beside it: their sum is what is factorised.

    A vocabulary that has only grown at its end since another batch was counted is the same vocabulary.

    Parameters
    ----------
    context : Context
    semantics : mapping of str to object
        `Semantics.facts` of the batch.
    counted : CountedVocabulary
        Size and hash of the vocabulary that it is counted with.
    vocabulary : Vocabulary
        The vocabulary table as it is now.

    Raises
    ------
    InputError
        Another batch has another vocabulary, window, weighting or unit; the message has both values.
    """
    for key in context.manifests.keys("cooccurrence"):
        if key == context.config.corpus.batch_id:
            continue
        other = require_outputs(context.manifests, CooccurrenceOutputs, key)
        differences = [
            f"{name} is {semantics.get(name)!r} here and {value!r} there"
            for name, value in other["semantics"].items()
            if semantics.get(name) != value
        ]
        size = other["vocabulary_size"]
        if not vocabulary.begins_with(size, other["vocabulary_hash"]):
            differences.append(
                f"the vocabulary is {counted['vocabulary_hash']} ({counted['vocabulary_size']:,} tokens) here and "
                f"{other['vocabulary_hash']} ({size:,} tokens) there"
            )
        if differences:
            raise InputError(
                f"batch {context.config.corpus.batch_id!r} cannot stand beside batch {key!r} in "
                f"{context.tables.path(schemas.COOCCURRENCE)}: {'; '.join(differences)}. Count it with the same "
                "settings, drop the other batch (wals-spark drop-batch), or use another warehouse"
            )


def _write_marginals(context: Context, row_units: np.ndarray, col_units: np.ndarray, where: dict[str, str]) -> None:
    rows = pa.table(
        {"token_id": np.arange(len(row_units), dtype=np.int32), "row_units": row_units, "col_units": col_units}
    )
    context.tables.replace_rows(schemas.MARGINALS, rows, where)


def _stored_bytes(context: Context, nnz: int, where: dict[str, str]) -> int:
    """Bytes of the batch's slice of the table, which must have all cells that were counted."""
    files = context.tables.files(schemas.COOCCURRENCE, where) if nnz else []
    rows = sum(data_file.rows for data_file in files)
    if rows != nnz:
        raise InputError(f"the table holds {rows:,} cells of this batch, {nnz:,} were counted; run again (--force)")
    return sum(data_file.bytes for data_file in files)


def _outputs(
    context: Context,
    semantics: Semantics,
    counted: CountedVocabulary,
    plan: CountingPlan,
    blocks: Sequence[BlockFacts],
    row_units: np.ndarray,
    where: dict[str, str],
) -> CooccurrenceOutputs:
    """What the manifest says about the batch."""
    tasks = [task for block in blocks for task in block.tasks]
    nnz = sum(block.cells for block in blocks)
    return {
        "unit": semantics.unit,
        "symmetric": semantics.symmetric,
        **counted,
        "blocks": plan.blocks,
        "nnz": nnz,
        "total_units": sum(int(units) for units in row_units),
        "pruned_cells": sum(block.pruned_cells for block in blocks),
        "pruned_units": sum(block.pruned_units for block in blocks),
        "bytes": _stored_bytes(context, nnz, where),
        "documents": sum(task.documents for task in tasks),
        "tokens": sum(task.tokens for task in tasks),
        "kept": sum(task.kept for task in tasks),
        "subsampled": sum(task.subsampled for task in tasks),
        "semantics": semantics.facts(),
        "work": {
            "tasks": plan.direct or len(plan.tasks),
            "shuffled": int(not plan.direct),
            "pieces": sum(task.chunks for task in tasks),
            "packed_bytes": sum(task.packed_bytes for task in tasks),
            "spilled_bytes": sum(block.spilled_bytes for block in blocks),
        },
        "tables": {
            **context.table_output(schemas.COOCCURRENCE, where),
            **context.table_output(schemas.MARGINALS, where),
        },
    }


def _metrics(outputs: CooccurrenceOutputs) -> list[Metric]:
    numbers = {
        "documents": outputs["documents"],
        "tokens": outputs["tokens"],
        "kept": outputs["kept"],
        "subsampled": outputs["subsampled"],
        "nnz": outputs["nnz"],
        "weight": outputs["total_units"] / outputs["unit"],
        "pruned_cells": outputs["pruned_cells"],
        "pruned_weight": outputs["pruned_units"] / outputs["unit"],
        "bytes": outputs["bytes"],
        **outputs["work"],
    }
    return [Metric(name, float(number)) for name, number in numbers.items()]


def _lines(outputs: CooccurrenceOutputs) -> list[str]:
    nnz, stored = outputs["nnz"], outputs["bytes"]
    lines = [
        f"{outputs['documents']:,} documents, {outputs['tokens']:,} tokens ({outputs['kept']:,} in the vocabulary "
        "and counted)",
        f"{nnz:,} non-zeros, weight {outputs['total_units'] / outputs['unit']:,.1f}, in {outputs['blocks']} blocks; "
        f"{stored / 1e6:,.1f} MB, {stored / max(nnz, 1):.2f} bytes each",
    ]
    if "subsampled_by" in outputs:
        by = outputs["subsampled_by"]
        lines.append(
            f"subsampling left out {outputs['subsampled']:,} occurrences, by version {by['version']} of the vocabulary "
            f"with {by['tokens']:,} tokens"
        )
    if outputs["pruned_cells"]:
        share = outputs["pruned_units"] / max(outputs["pruned_units"] + outputs["total_units"], 1)
        lines.append(f"min_pair_count dropped {outputs['pruned_cells']:,} pairs with {share:.2%} of the weight")
    return lines
