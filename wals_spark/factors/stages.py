"""The stages `export` and `neighbours`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from wals_spark import storage
from wals_spark.config import Config
from wals_spark.errors import InputError
from wals_spark.factors.export import export_vectors, sha256
from wals_spark.factors.neighbours import nearest_neighbours
from wals_spark.factors.query_tokens import middle_tokens, query_ids
from wals_spark.factors.store import read_tokens, read_vectors
from wals_spark.factors.top_k import top_k
from wals_spark.factors.words import WordLookup, readable
from wals_spark.runs import ManifestStore
from wals_spark.stage import Outcome, Stage, StageRun
from wals_spark.stage_outputs import ExportOutputs, NeighboursOutputs, TrainOutputs, outputs_of

NEIGHBOURS_FILE = "neighbours.json"


class ExportStage(Stage):
    """Factors in the formats of other tools."""

    name = "export"
    sections = ("export",)

    def key(self, config: Config) -> str:
        """The run id."""
        return config.run_id

    def inputs(self, config: Config, manifests: ManifestStore) -> Sequence[tuple[str, str]]:
        """The factors of the run."""
        return [("train", config.run_id)]

    def check(self, config: Config) -> None:
        """Raise where no format is named."""
        if not config.export.formats:
            raise InputError(
                "export.formats is empty: name at least one of word2vec, word2vec_binary, safetensors, npy"
            )

    def run(self, stage_run: StageRun) -> Outcome:
        """Write the factors in every format that is named."""
        context = stage_run.context
        section = context.config.export
        vectors = read_vectors(context.tables, context.config.run_id, section.combine)
        train = stage_run.input("train")
        metadata = {
            "format": "wals_spark factors",
            "run_id": context.config.run_id,
            "combine": section.combine,
            "vocabulary_hash": str(outputs_of(train, TrainOutputs).get("vocabulary_hash", "")),
            "train_fingerprint": train.fingerprint,
        }
        directory = context.run.path("export")
        paths = export_vectors(
            directory,
            f"vectors-{section.combine}",
            vectors,
            section.formats,
            min_count=section.min_count,
            white_space=section.white_space,
            metadata=metadata,
        )
        digests = {path.rpartition("/")[2]: sha256(path) for path in paths}
        rows, k = vectors.matrix.shape
        outputs: ExportOutputs = {"paths": paths, "rows": rows, "k": k, "sha256": digests}
        return Outcome(
            outputs,
            lines=[f"{rows:,} vectors of {k} as {', '.join(sorted(digests))} in {directory}"],
        )


class NeighboursStage(Stage):
    """Nearest neighbours of some tokens, to read."""

    name = "neighbours"
    sections = ("neighbours",)

    def key(self, config: Config) -> str:
        """The run id."""
        return config.run_id

    def inputs(self, config: Config, manifests: ManifestStore) -> Sequence[tuple[str, str]]:
        """The factors of the run."""
        return [("train", config.run_id)]

    def run(self, stage_run: StageRun) -> Outcome:
        """Write the neighbours of every query token to a file of the run."""
        context = stage_run.context
        section, run_id = context.config.neighbours, context.config.run_id
        tokens, counts = read_tokens(context.tables, run_id)
        lookup = WordLookup(tokens)
        wanted = query_ids(lookup, section.tokens) or middle_tokens(tokens, counts, section.min_count)
        queries = np.asarray(wanted, np.int64)
        if len(tokens) <= section.driver_vectors:
            matrix = read_vectors(context.tables, run_id, section.combine).matrix
            allowed = counts >= section.min_count
            ids, cosine = top_k(matrix[queries], matrix, section.count, cosine=True, allowed=allowed, exclude=queries)
        else:
            ids, cosine = nearest_neighbours(
                context.tables, run_id, section.combine, queries, section.count, min_count=section.min_count
            )

        def entry(token_id: int) -> dict[str, Any]:
            token = tokens[token_id]
            shown = readable(token, lookup.style)
            return {"token_id": token_id, "token": token, "shown": shown, "count": int(counts[token_id])}

        lists = [
            {
                **entry(int(query)),
                "neighbours": [
                    {**entry(int(i)), "cosine": round(float(c), 6)} for i, c in zip(row, values, strict=True) if i >= 0
                ],
            }
            for query, row, values in zip(queries, ids, cosine, strict=True)
        ]
        path = context.run.path(NEIGHBOURS_FILE)
        storage.write_json(path, {"run_id": run_id, "combine": section.combine, "style": lookup.style, "lists": lists})
        lines = [f"{item['shown']}: {', '.join(n['shown'] for n in item['neighbours'])}" for item in lists]
        outputs: NeighboursOutputs = {"paths": [path], "queries": len(lists)}
        return Outcome(outputs, lines=lines)
