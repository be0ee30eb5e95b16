"""The stages ``corpus`` and ``vocabulary``."""

from __future__ import annotations

from wals_spark.corpus import documents, encoding
from wals_spark.stage import Stage

CORPUS = Stage(
    name="corpus",
    sections=("corpus",),
    key=lambda config: config.corpus.batch_id,
    inputs=lambda config, manifests: (),
    run=documents.run,
    check=documents.check,
    identity=documents.source_identity,
)

VOCABULARY = Stage(
    name="vocabulary",
    sections=("vocabulary",),
    key=lambda config: config.corpus.batch_id,
    inputs=lambda config, manifests: (("corpus", config.corpus.batch_id),),
    run=encoding.run,
    check=encoding.check,
    identity=encoding.tokenizer_identity,
)
