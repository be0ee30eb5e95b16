"""The stages ``corpus`` and ``vocabulary``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from wals_spark.config import Config
from wals_spark.corpus import documents, encoding
from wals_spark.runs import ManifestStore
from wals_spark.stage import Outcome, Stage, StageRun
from wals_spark.stage_outputs import CorpusOutputs


class CorpusStage(Stage):
    """Source files to a batch of the table ``documents``."""

    name = "corpus"
    sections = ("corpus",)

    def key(self, config: Config) -> str:
        """The batch id."""
        return config.corpus.batch_id

    def inputs(self, config: Config, manifests: ManifestStore) -> Sequence[tuple[str, str]]:
        """None: all it reads is external."""
        return ()

    def check(self, config: Config) -> None:
        """Raise for what can be known without reading the corpus: paths, formats, columns."""
        documents.check_corpus(config)

    def identity(self, config: Config) -> Any:
        """Paths, sizes and times of the source files."""
        return documents.source_identity(config)

    def run(self, stage_run: StageRun) -> Outcome:
        """Read, clean, refuse or drop duplicates, write the batch."""
        return documents.run_corpus(stage_run.context)


class VocabularyStage(Stage):
    """Documents of a batch to token ids, and the vocabulary after the batch."""

    name = "vocabulary"
    sections = ("vocabulary",)

    def key(self, config: Config) -> str:
        """The batch id."""
        return config.corpus.batch_id

    def inputs(self, config: Config, manifests: ManifestStore) -> Sequence[tuple[str, str]]:
        """The documents of the batch."""
        return (("corpus", config.corpus.batch_id),)

    def check(self, config: Config) -> None:
        """Raise where the tokenizer is missing or is none."""
        encoding.check_vocabulary(config)

    def identity(self, config: Config) -> Any:
        """Hash of the tokenizer's tokens and of all its rules."""
        return encoding.tokenizer_identity(config)

    def run(self, stage_run: StageRun) -> Outcome:
        """Encode and count the documents of the batch that are not held out."""
        corpus = stage_run.outputs(CorpusOutputs)
        text_bytes = float(corpus["text_bytes"]) * (1 - corpus["held_out"] / corpus["documents"])
        return encoding.run_vocabulary(stage_run.context, text_bytes)
