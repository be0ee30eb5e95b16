"""What batches of counts have in common, so that they can be added."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from wals_spark.errors import InputError
from wals_spark.runs import Manifest
from wals_spark.stage_outputs import CooccurrenceOutputs, outputs_of
from wals_spark.tables.vocabulary import Vocabulary
from wals_spark.tokenizer import vocabulary_hash

AGREED = ("unit", "symmetric", "semantics")


class CountFacts(NamedTuple):
    """What the counts of co-occurrence batches mean, and the vocabulary of their ids."""

    unit: int
    symmetric: bool
    semantics: dict[str, Any]
    vocabulary_hash: str
    vocabulary_size: int


def agreed_facts(manifests: Sequence[Manifest], vocabulary: Vocabulary) -> CountFacts:
    """The facts of co-occurrence batches that must be equal for their counts to be added.

    A vocabulary grows only at its end, so batches counted before and after have ids in common: size and hash are
    those of the largest.

    Raises
    ------
    InputError
        Two batches were counted in different ways, or one with tokens that the vocabulary table does not begin
        with; names the batches and what differs.
    """
    counted = {manifest.key: outputs_of(manifest, CooccurrenceOutputs) for manifest in manifests}
    for key, outputs in counted.items():
        size, hash_ = outputs["vocabulary_size"], outputs["vocabulary_hash"]
        if not vocabulary.begins_with(size, hash_):
            raise InputError(
                f"co-occurrence batch {key!r} was counted with a vocabulary of {size:,} tokens ({hash_}), but "
                f"the vocabulary table, of {len(vocabulary.tokens):,}, does not begin with these; count it again"
            )
    (first, expected), *others = counted.items()
    for key, outputs in others:
        for name in AGREED:
            if outputs.get(name) != expected.get(name):
                raise InputError(
                    f"co-occurrence batches {first!r} and {key!r} cannot be added: {name} is {expected.get(name)!r} "
                    f"and {outputs.get(name)!r}; count both with one configuration, or set train.batches"
                )
    largest = max(counted.values(), key=lambda outputs: outputs["vocabulary_size"])
    return CountFacts(
        expected["unit"],
        expected["symmetric"],
        expected["semantics"],
        largest["vocabulary_hash"],
        largest["vocabulary_size"],
    )


def facts_of_cells(vocabulary: Vocabulary) -> CountFacts:
    """The facts of cells that are given with their targets, over the vocabulary's ids: they are no counts."""
    return CountFacts(1, False, {}, vocabulary_hash(vocabulary.tokens), len(vocabulary.tokens))
