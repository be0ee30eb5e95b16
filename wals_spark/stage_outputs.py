"""What each stage writes into its manifest for the stages after it: the keys of ``outputs`` and their types.

The types stand below all packages, so that a stage can read what another one made without importing it.
"""

from typing import Any, NotRequired, TypedDict, TypeVar, cast

from wals_spark.runs import Manifest, ManifestStore

Outputs = TypeVar("Outputs")


class TableSlice(TypedDict):
    """A slice of a table that a stage wrote: its partition values and its version."""

    where: dict[str, str]
    version: str | None


class StageOutputs(TypedDict, total=False):
    """The keys with one meaning for every stage, which counts as done only while all of these are there.

    Attributes
    ----------
    tables : dict of str to TableSlice
        By the table's name.
    paths : list of str
        Files and directories.
    """

    tables: dict[str, TableSlice]
    paths: list[str]


class CorpusOutputs(TypedDict):
    """Documents of a batch, how many of them are held out, bytes of text; documents dropped, by reason."""

    documents: int
    held_out: int
    text_bytes: int
    files: int
    dropped: dict[str, int]
    tables: dict[str, TableSlice]


class EncodedFacts(TypedDict):
    """What encoding a batch found; `distinct`, the number of different words, only of the kind ``words``."""

    vocabulary_hash: str
    distinct: NotRequired[int]
    text_bytes: int


class VocabularyOutputs(EncodedFacts):
    """The vocabulary after a batch (`size` tokens of `version`), the batch's tokens, and where its shards are."""

    kind: str
    size: int
    version: int
    new_tokens: int
    tokens: int
    oov: int
    documents: int
    content: NotRequired[str]
    encoded: str
    shards: int
    paths: list[str]


class CountedVocabulary(TypedDict):
    """The vocabulary that a batch was counted with."""

    vocabulary_hash: str
    vocabulary_size: int


class CooccurrenceOutputs(CountedVocabulary):
    """Exact counts of a batch in multiples of 1 / `unit`, and what was read for them.

    `work` is of a batch that was counted, `folded` (the ids of its parts) of one that is a sum. `subsampled_by` says
    which version of the vocabulary, with how many tokens in all batches, gave the counts that subsampling goes by.
    """

    unit: int
    symmetric: bool
    blocks: int
    nnz: int
    total_units: int
    pruned_cells: int
    pruned_units: int
    bytes: int
    documents: int
    tokens: int
    kept: int
    subsampled: int
    subsampled_by: NotRequired[dict[str, int]]
    semantics: dict[str, Any]
    work: NotRequired[dict[str, int]]
    folded: NotRequired[list[str]]
    tables: dict[str, TableSlice]


class TrainOutputs(TypedDict):
    """Factors of rank `k`: objective, batches summed, vocabulary, and how the training went."""

    k: int
    objective: dict[str, Any]
    batches: list[str]
    vocabulary_hash: str
    vocabulary_size: int
    sweeps: float
    converged: bool
    loss: float
    nnz: int
    empty_rows: int
    empty_cols: int
    singular_values: list[float]
    ranks: int
    seconds: dict[str, float]
    exchange: str
    matrix: str
    tables: dict[str, TableSlice]


class ExportOutputs(TypedDict):
    """Exported files with their SHA-256, of `rows` vectors of `k` numbers."""

    paths: list[str]
    rows: int
    k: int
    sha256: dict[str, str]


class NeighboursOutputs(TypedDict):
    """The file of neighbours, and the number of query tokens in it."""

    paths: list[str]
    queries: int


class StatesOutputs(TypedDict):
    """The directory of states, sequences and masked positions of each split with the base's mean loss there in nats.

    `checkpoint_sha256` is of the weights that computed them, `vocabulary_hash` of the tokenizer.
    """

    paths: list[str]
    directory: str
    splits: dict[str, dict[str, float]]
    maskings: int
    bytes: int
    checkpoint_sha256: str
    vocabulary_hash: str


class InjectOutputs(TypedDict):
    """The injected checkpoint, what changed in it, and what its gate said."""

    paths: list[str]
    directory: str
    rows_changed: int
    head_bias_changed: bool
    gate: dict[str, Any] | None
    injection_sha256: str


class VerifyOutputs(TypedDict):
    """The checkpoint that was verified, a line of detail for each check, rows changed and by how much."""

    directory: str
    checks: dict[str, str]
    rows_changed: int
    displacement: dict[str, Any]
    suspicious_rows: NotRequired[list[int]]


class EvaluateOutputs(TypedDict):
    """The report and its figures in a few lines."""

    paths: list[str]
    report: str
    summary: list[str]


STAGE_OF: dict[Any, str] = {
    CorpusOutputs: "corpus",
    VocabularyOutputs: "vocabulary",
    CooccurrenceOutputs: "cooccurrence",
    TrainOutputs: "train",
    ExportOutputs: "export",
    NeighboursOutputs: "neighbours",
    StatesOutputs: "states",
    InjectOutputs: "inject",
    VerifyOutputs: "verify",
    EvaluateOutputs: "evaluate",
}
"""Type of outputs -> the stage that makes them."""


def outputs_of(manifest: Manifest, kind: type[Outputs]) -> Outputs:
    """The outputs of a complete manifest, which must be of the stage that makes this kind."""
    assert manifest.stage == STAGE_OF[kind], f"{manifest.stage} has no {kind}"
    return cast(Outputs, manifest.outputs)


def require_outputs(manifests: ManifestStore, kind: type[Outputs], key: str) -> Outputs:
    """The outputs of the stage that makes this kind.

    Raises
    ------
    InputError
        The stage has not finished this output; the message names the command that makes it.
    """
    return outputs_of(manifests.require(STAGE_OF[kind], key), kind)
