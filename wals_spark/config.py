"""The configuration: one YAML, a section per stage, typed, frozen, and fingerprinted.

Precedence: defaults < YAML < ``--set section.key=value`` < command-line flags such as ``--run-id``.
Unknown keys are refused with the nearest known name. Relative paths are relative to the working
directory, as on every command line.
"""

from __future__ import annotations

import codecs
import difflib
import hashlib
import json
import os
import re
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, create_model, model_validator

from wals_spark.errors import ConfigError
from wals_spark.objective import DEFAULT_PRESET, PRESETS, Key, configuration_keys

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def _directory_name(value: str) -> str:
    if not NAME_PATTERN.fullmatch(value):
        raise ValueError(
            f"{value!r} is used as a directory name: expected 1 to 128 of the characters A-Z a-z 0-9 . _ -, "
            "starting with a letter or a digit"
        )
    return value


def batch_name(value: str) -> str:
    """The id of a batch as it is; `ValueError` where it cannot be one."""
    if value == "all":
        raise ValueError("'all' stands for every batch of the table: choose another id")
    return _directory_name(value)


Name = Annotated[str, AfterValidator(_directory_name)]
BatchName = Annotated[str, AfterValidator(batch_name)]

if TYPE_CHECKING:
    PresetName = str
else:
    PresetName = Literal[tuple(PRESETS)]


class Section(BaseModel):
    """A section of the configuration: frozen, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    execution_keys: ClassVar[frozenset[str]] = frozenset()
    """Keys that say how and where the work runs but cannot change its result."""
    later_keys: ClassVar[frozenset[str]] = frozenset()
    """Keys that came after warehouses were made: no part of a fingerprint where they have their defaults."""

    @model_validator(mode="before")
    @classmethod
    def _one_text_is_a_list(cls, data: Any) -> Any:
        """A text where a list is expected is the list of that text."""
        if not isinstance(data, Mapping):
            return data
        lists = {name for name, field in cls.model_fields.items() if typing.get_origin(field.annotation) is tuple}
        return {key: (value,) if key in lists and isinstance(value, str) else value for key, value in data.items()}

    def result_keys(self) -> dict[str, Any]:
        """The keys that determine the result, as plain JSON values: what a fingerprint is made of."""
        return self.model_dump(mode="json", exclude=set(self.execution_keys) | self.unused_later_keys())

    def unused_later_keys(self) -> set[str]:
        """Those of `later_keys` that have their defaults."""
        fields = type(self).model_fields
        return {name for name in self.later_keys if getattr(self, name) == fields[name].get_default()}


class CorpusConfig(Section):
    """Where the documents come from and which of them are kept."""

    execution_keys = frozenset({"partitions"})
    later_keys = frozenset({"encoding", "delimiter", "quote", "escape"})

    path: tuple[str, ...] = Field((), description="Files, directories or globs of the source; one or a list.")
    format: Literal["auto", "text", "text_files", "jsonl", "parquet", "csv", "delta"] = Field(
        "auto",
        description="text = a document per line, text_files = a document per file; "
        "auto goes by the file ending (.txt is text_files). .gz, .zst, .bz2 and .xz are read for the text formats.",
    )
    encoding: str = Field(
        "utf-8", description="Encoding of the text formats, by Python's name: latin-1, utf-16, gb18030, ..."
    )
    delimiter: str | None = Field(
        None, min_length=1, max_length=1, description="csv: between fields; none = a tab in .tsv files, else a comma."
    )
    quote: str | None = Field('"', min_length=1, max_length=1, description="csv: around fields; none = no quotes.")
    escape: str | None = Field(
        None,
        min_length=1,
        max_length=1,
        description="csv: before a quote in a quoted field, \\ for what Spark writes; none = quotes are doubled.",
    )
    delta_version: int | None = Field(None, ge=0, description="Version of a Delta source; none = the newest.")
    id_column: str | None = Field(
        None, description="Column of unique document ids; none = the file's name and the position in it."
    )
    text_column: str = Field("text", description="Column of the text.")
    batch_id: BatchName = Field("default", description="The increment that these documents belong to.")
    encoding_errors: Literal["refuse", "replace", "skip"] = Field(
        "refuse", description="Bytes that are not UTF-8: stop, replace by U+FFFD and count, or skip and count."
    )
    corrupt_files: Literal["refuse", "skip"] = Field(
        "refuse",
        description="A file, Parquet row group or JSON line that cannot be decoded: stop and name it, "
        "or skip and count it.",
    )
    normalize: bool = Field(
        True, description="Unicode NFC, one kind of space and of line break, no control characters."
    )
    duplicate_ids: Literal["refuse", "keep_first"] = Field(
        "refuse", description="Documents with the same id: stop and name some, or keep the first and count."
    )
    min_characters: int | None = Field(None, ge=1, description="Shorter documents are dropped and counted.")
    max_characters: int | None = Field(None, ge=1, description="Longer documents are dropped and counted.")
    boilerplate_documents: int | None = Field(
        None, ge=2, description="Lines that stand in this number of documents or more are removed; none = keep all."
    )
    duplicate_texts: Literal["keep", "exact", "near"] = Field(
        "keep",
        description="Documents with the text of an earlier one: keep, drop the same text, or drop similar text too.",
    )
    near_duplicate_similarity: float = Field(
        0.8, ge=0.5, le=1, description="near: least share of common five-word sequences (estimated by MinHash)."
    )
    held_out_fraction: float = Field(
        0.02, ge=0, lt=1, description="Share of documents (by hash of the id) never counted, kept for evaluation."
    )
    partitions: int | None = Field(None, ge=1, description="Output partitions; none = by size.")

    @model_validator(mode="after")
    def _encoding_is_known(self) -> CorpusConfig:
        try:
            found = codecs.lookup(self.encoding)
            "".encode(found.name)
        except (LookupError, ValueError):
            raise ValueError(f"encoding {self.encoding!r} is no text encoding that Python knows") from None
        return self

    @property
    def codec(self) -> str:
        """Python's own name of `encoding`."""
        return {"utf-8-sig": "utf-8", "ascii": "utf-8"}.get(found := codecs.lookup(self.encoding).name, found)


class VocabularyConfig(Section):
    """What a token is."""

    kind: Literal["tokenizer", "words"] = Field("tokenizer", description="A Hugging Face fast tokenizer, or words.")
    tokenizer: str | None = Field(
        None, description="tokenizer: a tokenizer.json, a directory holding one, or a hub name."
    )
    pattern: str = Field(r"[^\W\d_]+", description="words: regular expression of a word.")
    case: Literal["fold", "lower", "keep"] = Field("lower", description="words: case folding before matching.")
    min_count: int = Field(5, ge=1, description="words: rarer words are out of vocabulary.")
    max_vocabulary: int | None = Field(None, ge=1, description="words: keep the most frequent; none = all.")

    @model_validator(mode="after")
    def _pattern_compiles(self) -> VocabularyConfig:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"pattern {self.pattern!r} is not a regular expression: {error}") from error
        return self


COOCCURRENCE_PRESETS: dict[str, dict[str, Any]] = {
    "glove": {
        "window_left": 15,
        "window_right": 15,
        "distance_weighting": "inverse",
        "boundary": "paragraph",
        "oov": "close_gap",
        "diagonal": "keep",
    },
    "swivel": {
        "window_left": 10,
        "window_right": 10,
        "distance_weighting": "inverse",
        "boundary": "paragraph",
        "oov": "close_gap",
        "diagonal": "occurrences",
    },
    "hyperwords": {
        "window_left": 2,
        "window_right": 2,
        "distance_weighting": "linear",
        "boundary": "paragraph",
        "oov": "keep_distance",
        "diagonal": "keep",
    },
    "text2vec": {
        "window_left": 5,
        "window_right": 5,
        "distance_weighting": "inverse",
        "boundary": "document",
        "oov": "keep_distance",
        "diagonal": "once",
    },
}
"""What other tools mean by a co-occurrence, with their default windows; a preset fills in the keys left out."""


class CooccurrenceConfig(Section):
    """What a co-occurrence is. All of it is stored with the counts."""

    execution_keys = frozenset({"preset", "blocks", "memory_per_task"})

    preset: Literal["glove", "swivel", "hyperwords", "text2vec"] | None = Field(
        None, description="Fills in the keys below that are left out, with that tool's meaning; none = the defaults."
    )
    window_left: int = Field(10, ge=0, le=255, description="Tokens to the left that count as context.")
    window_right: int = Field(10, ge=0, le=255, description="Tokens to the right that count as context.")
    distance_weighting: Literal["inverse", "none", "linear"] = Field(
        "inverse", description="Weight at distance d of window W: 1/d, 1, or (W - d + 1)/W."
    )
    boundary: Literal["document", "paragraph", "sentence"] = Field(
        "document", description="What a window never crosses."
    )
    oov: Literal["keep_distance", "close_gap", "boundary"] = Field(
        "keep_distance", description="Out-of-vocabulary tokens hold their place, vanish, or end the window."
    )
    diagonal: Literal["keep", "drop", "once", "occurrences"] = Field(
        "keep",
        description="Pairs of a token with itself: seen from both ends, never, from one end only, "
        "or from both ends plus 1 per occurrence.",
    )
    subsample: float | None = Field(
        None, gt=0, lt=1, description="Threshold t: an occurrence stays with probability min(1, sqrt(t N / count))."
    )
    min_pair_count: float = Field(0.0, ge=0, description="Drop pairs whose weighted count is below; applied last.")
    unit_bits: int | None = Field(
        None, ge=0, le=48, description="Counts in units of 2^-bits; none = exact where an int64 suffices."
    )
    blocks: int | None = Field(None, ge=1, le=65536, description="Row blocks; none = from estimated non-zeros.")
    memory_per_task: int = Field(
        1 << 30, ge=1 << 20, description="Bytes of tokens and counts that a task may hold before it spills."
    )

    @model_validator(mode="before")
    @classmethod
    def _preset_fills_in(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and isinstance(data.get("preset"), str):
            return {**COOCCURRENCE_PRESETS.get(data["preset"], {}), **data}
        return data

    @model_validator(mode="after")
    def _consistent(self) -> CooccurrenceConfig:
        if self.window_left + self.window_right == 0:
            raise ValueError("window_left and window_right are both 0: at least one must be 1 or more")
        if self.diagonal == "once" and self.window_left != self.window_right:
            raise ValueError(
                f"diagonal once needs a symmetric window, found window_left {self.window_left} and window_right "
                f"{self.window_right}; a one-sided window counts self pairs once with diagonal keep"
            )
        return self


class _Problem(Section):
    """What is factorised, and for how long."""

    objective: PresetName = Field(DEFAULT_PRESET, description="Preset; see docs/objectives.md.")
    cells: tuple[str, ...] = Field(
        (),
        description="custom: Parquet files of (row_id, col_id, target, weight) over the vocabulary's ids, in place of "
        "the counts; a file or a list.",
    )
    batches: tuple[str, ...] = Field(("all",), description="Batches whose exact sum is factorised; all = every one.")
    k: int = Field(128, ge=1, le=1024, description="Number of factors.")
    sweeps: int = Field(8, ge=1, description="Largest number of sweeps (a sweep solves both sides).")
    tolerance: float = Field(1e-4, ge=0, description="Stop when the relative decrease of the loss per sweep is below.")

    @model_validator(mode="before")
    @classmethod
    def _one_batch_is_a_list(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and isinstance(data.get("batches"), str):
            data = {**data, "batches": tuple(part for part in data["batches"].split(",") if part)}
        return data


def _objective_field(key: Key) -> Any:
    """Type and default of a key that an objective declares; none stands for the preset's value."""
    kind = Literal[key.choices] if key.choices else float
    return kind | None, Field(None, ge=key.ge, gt=key.gt, le=key.le, description=key.description)


if TYPE_CHECKING:

    class _ObjectiveKeys(_Problem):
        """What type checkers see of it; an alias would hide the fields of classes below."""
else:
    _ObjectiveKeys = create_model(
        "_ObjectiveKeys",
        __base__=_Problem,
        **{name: _objective_field(key) for name, key in configuration_keys().items()},
    )


class TrainConfig(_ObjectiveKeys):
    """The factorisation: objective, solver, ranks, checkpoints."""

    execution_keys = frozenset(
        {"workers", "threads", "device", "exchange", "matrix", "memory_bytes", "scratch"}
        | {"checkpoint_every", "max_attempts", "timeout_s"}
    )

    gauge_power: float = Field(0.5, ge=0, le=1, description="p of the canonical gauge U S^p.")
    solver: Literal["auto", "exact", "cg", "block"] = Field(
        "auto",
        description="auto = exact, each row in the way that costs least; exact = Cholesky for every row; cg, block = a "
        "few conjugate-gradient steps or blocks of coordinates from the row as it is, for large k on CPUs.",
    )
    cg_steps: int = Field(4, ge=1, description="cg: steps per row and half-sweep.")
    block_size: int = Field(64, ge=1, description="block: coordinates that are solved together.")
    workers: int | None = Field(None, ge=1, description="Ranks; none = all slots (or all GPUs).")
    threads: int | None = Field(None, ge=1, description="CPU threads per rank; none = the task's cpus.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto = a GPU where the task was given one.")
    precision: Literal["float32", "float64"] = Field("float32", description="Of the factors.")
    exchange: Literal["auto", "replicated", "sharded"] = Field(
        "auto",
        description="replicated = every rank holds all factors; sharded = its own, and fetches; auto = what fits.",
    )
    matrix: Literal["auto", "resident", "streamed"] = Field(
        "auto",
        description="resident = a rank's cells in memory; streamed = in a file, block by block; auto = what fits.",
    )
    memory_bytes: int | None = Field(
        None, ge=1 << 20, description="What a rank may use; none = its part of its machine's memory."
    )
    scratch: str | None = Field(
        None, description="Local directory for a streamed matrix, on every machine; none = the system's temporary one."
    )
    checkpoint_every: int = Field(1, ge=1, description="Half-sweeps between checkpoints.")
    max_attempts: int = Field(3, ge=1, description="Runs of the barrier stage before giving up.")
    timeout_s: float = Field(1800.0, gt=0, description="Longest wait of a rank for the others.")


class ExportConfig(Section):
    """Files for other tools, made from the factors."""

    formats: tuple[Literal["word2vec", "word2vec_binary", "safetensors", "npy"], ...] = Field(
        ("word2vec", "safetensors"), description="What to write."
    )
    combine: Literal["u", "v", "sum", "concat"] = Field("u", description="U, V, U + V or [U, V].")
    min_count: int = Field(1, ge=0, description="word2vec: rarer tokens are left out.")
    white_space: Literal["refuse", "escape"] = Field(
        "refuse", description="word2vec: tokens that hold white space stop the export, or are written as \\uXXXX."
    )


class NeighboursConfig(Section):
    """Nearest neighbours by cosine."""

    execution_keys = frozenset({"driver_vectors"})

    tokens: tuple[str, ...] = Field(
        (), description="Words or exact token strings to look up; none = ten words of middle frequency."
    )
    count: int = Field(8, ge=1, le=1000, description="Neighbours per token.")
    combine: Literal["u", "v", "sum", "concat"] = Field("u", description="Vectors to compare.")
    min_count: int = Field(20, ge=0, description="Rarer tokens are not offered as neighbours.")
    driver_vectors: int = Field(
        1_000_000,
        ge=0,
        description="Up to this number of vectors are searched on the driver, more in Spark; same result.",
    )


class StatesConfig(Section):
    """Hidden states of masked tokens, which fitted rows are a regression on."""

    execution_keys = frozenset({"device", "batch_size", "part_sequences"})

    sequences: int = Field(
        2000, ge=32, description="Different sequences of the corpus used at most, validation included."
    )
    maskings: int = Field(
        4, ge=1, le=1000, description="Times that each sequence is masked, at other positions; a forward pass each."
    )
    sequence_length: int = Field(128, ge=8, le=8192, description="Tokens per sequence, the two special ones included.")
    mask_fraction: float = Field(0.15, gt=0, lt=1, description="Share of a sequence's tokens that a masking hides.")
    validation_fraction: float = Field(
        0.1, ge=0, lt=1, description="Share of documents (by hash of the id) that penalties are chosen on."
    )
    general_sequences: int = Field(
        200, ge=0, description="Sequences of inject.general_batches, on which what happens to general text is measured."
    )
    precision: Literal["fp32", "tf32", "bf16"] = Field(
        "fp32",
        description="Of the forward pass: fp32, tf32 (on a GPU; processors compute fp32) or bf16 (automatic mixed "
        "precision; on BERT-base states within 1 %, on processors with avx512_bf16 in a third of the time).",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto = a GPU where the task was given one.")
    batch_size: int | None = Field(
        None, ge=1, description="Sequences per forward pass; none = 16 on a processor, 128 on a GPU."
    )
    part_sequences: int = Field(64, ge=1, description="Sequences of a task; a stage that was killed repeats no task.")


class FitConfig(Section):
    """inject.mode fit: rows and head bias fitted to hidden states."""

    execution_keys = frozenset({"workers", "threads", "device", "max_attempts", "timeout_s"})

    rows: Literal["bias", "free", "factors", "both"] = Field(
        "free",
        description="What moves: bias = the head bias alone, free = every token that occurs among the targets, factors "
        "= what a linear map of the run's factors can express, both = their sum. factors and both need the stage "
        "train.",
    )
    lambda_rows: Annotated[float, Field(gt=0)] | Literal["auto"] = Field(
        "auto",
        description="Penalty of a row's squared length, against the sum of nats over targets; auto = chosen on "
        "documents held out of the fit.",
    )
    lambda_bias: Annotated[float, Field(gt=0)] | Literal["auto"] = Field(
        "auto",
        description="Penalty of a bias squared; auto = 7 / |h|^2 of lambda_rows, with |h| the length of a state.",
    )
    lambda_factors: Annotated[float, Field(gt=0)] | Literal["auto"] = Field(
        "auto",
        description="Penalty of the map from factors (of mean length 1) to rows; auto = 100 times lambda_rows.",
    )
    factor_min_count: int = Field(
        20, ge=1, description="factors, both: tokens that the corpus has less often move only where they are free."
    )
    tolerance: float = Field(
        1e-3, gt=0, lt=0.5, description="The end: a step that can gain less than this share of the decrease so far."
    )
    iterations: int = Field(30, ge=1, description="Newton steps at most, for each penalty.")
    check_sequences: int = Field(
        64, ge=1, description="Held-out sequences that go through the encoder with the new rows before it is written."
    )
    workers: int | None = Field(None, ge=1, description="Ranks; none = all slots (or all GPUs).")
    threads: int | None = Field(None, ge=1, description="CPU threads per rank; none = the task's cpus.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto = GPUs where executors have them.")
    max_attempts: int = Field(3, ge=1, description="Runs of the barrier stage before giving up.")
    timeout_s: float = Field(1800.0, gt=0, description="Longest wait of a rank for the others.")

    @model_validator(mode="after")
    def _penalties_are_given_together(self) -> FitConfig:
        if self.lambda_rows == "auto" and (self.lambda_bias != "auto" or self.lambda_factors != "auto"):
            raise ValueError(
                "lambda_bias and lambda_factors are given, but lambda_rows is auto, of which they would be multiples: "
                "give lambda_rows too"
            )
        return self


class InjectConfig(Section):
    """From factors to a checkpoint."""

    execution_keys = frozenset({"overwrite", "driver_rows"})
    later_keys = frozenset({"pack", "transfer_rows"})

    mode: Literal["none", "init", "fit", "auto", "blend", "replace", "extend", "trim", "transfer"] = Field(
        "none",
        description="none = the pipeline skips it. init = rows of a model about to be pretrained, fit = rows and head "
        "bias of a pretrained one, fitted to its hidden states; auto = what wins on held-out documents; blend and "
        "replace = rows of a pretrained one without a forward pass, extend = rows of tokens that vocabulary.tokenizer "
        "has beyond the checkpoint's, trim = only the tokens that the corpus uses, transfer = vocabulary.tokenizer in "
        "place of the checkpoint's.",
    )
    checkpoint: str | None = Field(
        None,
        description="The model: a directory or hub name; for init only config.json is read.",
    )
    output: str | None = Field(None, description="Where to write; none = runs/<run_id>/model-<mode> of the warehouse.")
    combine: Literal["u", "v", "sum", "concat"] = Field("u", description="Vectors to align.")
    general_batches: tuple[Name, ...] = Field(
        (),
        description="Batches of text like the model's pretraining among those that were factorised: their counts say "
        "how often pretraining saw each token, the other batches are the domain.",
    )
    exposure: str = Field(
        "auto",
        description="Without general_batches, how often pretraining saw each token: corpus (it is the pretraining "
        "text), rank (by Zipf's law from the id), the path of a table with token_id and count, or auto = rank for "
        "roberta-base's vocabulary, corpus for others.",
    )
    strengths: Literal["auto", "text", "fitted"] = Field(
        "auto",
        description="blend: how much of each row to take. text = by masked-LM loss on a sample of the corpus, fitted = "
        "from the alignment's errors, auto = text where the model has a masked-LM head.",
    )
    text_sequences: int = Field(96, ge=8, description="Sequences of 128 tokens that strengths are chosen on.")
    head_bias: Annotated[float, Field(ge=0, le=1)] | Literal["auto"] = Field(
        0.0,
        description="blend, replace: how far the head bias moves from pretraining's log unigram frequency to the "
        "corpus'; auto = chosen on text. init always sets it to the corpus'.",
    )
    head_bias_target: Literal["auto", "domain", "sum"] = Field(
        "auto",
        description="What the head bias moves to: domain = the domain's frequency, sum = that of general and domain "
        "together, which keeps most of the gain and costs next to nothing on general text (needs general_batches), "
        "auto = sum where general_batches are given, else domain.",
    )
    shift: Annotated[float, Field(ge=0, le=2)] | Literal["auto"] = Field(
        0.0,
        description="blend, replace: how far rows move by what the domain adds to a token's use (the difference of two "
        "fold-ins; needs general_batches); auto = chosen on text.",
    )
    extend_rows: Literal["factors", "subtokens", "mean", "overlap"] = Field(
        "factors", description="extend: rows of new tokens from factors, or one of the baselines to compare with."
    )
    transfer_rows: Literal["factors", "focus", "omp", "subtokens", "mean", "random"] = Field(
        "factors",
        description="transfer: rows of tokens that the checkpoint's tokenizer lacks, from factors by ridge regression, "
        "by sparsemax of their cosines (focus) or orthogonal matching pursuit (omp), or one of the baselines.",
    )
    trim_min_count: int = Field(1, ge=1, description="trim: tokens that are rarer in the corpus go.")
    b_max: float = Field(0.9, ge=0, le=1, description="blend: largest share of a row taken from the factors.")
    span_only: bool = Field(
        False,
        description="blend, replace: only the component of rows that the aligned factors can express moves; what they "
        "cannot (with k below the model's width) stays as it was.",
    )
    alignment: Literal["ridge", "procrustes"] = Field(
        "ridge", description="The map from factors to rows: any linear one with a penalty, or rotation and scale only."
    )
    whiten: bool = Field(False, description="Equalise the factors' directions before alignment.")
    driver_rows: int = Field(
        1_000_000,
        ge=0,
        description="blend, replace: from this number of tokens on the sums of the alignment are accumulated in Spark, "
        "where executors see the checkpoint's path; same result.",
    )
    folds: int = Field(5, ge=2, le=100, description="Folds of the cross-validation.")
    anchor_min_count: int = Field(20, ge=1, description="Rows rarer than this do not fit the alignment.")
    anchor_half_count: float = Field(100.0, ge=0, description="Count at which an anchor has half its full weight.")
    pack: Literal["auto", "none", "int8", "fp16", "fp32"] = Field(
        "auto",
        description="blend, replace, fit: write a domain pack of this dtype beside the checkpoint, whose rows are then "
        "those of the pack. fp32 changes nothing, int8 and fp16 round what rows moved by. auto = int8 for fit and "
        "auto, none for other modes.",
    )
    gate: bool = Field(True, description="blend, replace: refuse (exit 3) when alignment is no better than controls.")
    gate_margin: float = Field(0.01, ge=0, lt=1, description="Gain in held-out R^2 over the controls that is needed.")
    force: bool = Field(False, description="Write in spite of the gate; recorded in injection.json.")
    overwrite: bool = Field(
        False, description="Replace an output directory that is empty or an earlier result, atomically."
    )

    @model_validator(mode="after")
    def _keys_fit_each_other(self) -> InjectConfig:
        if self.pack not in ("auto", "none") and self.mode in ("init", "extend", "trim"):
            raise ValueError(f"pack is {self.pack}: mode {self.mode} moves no rows of a base, set it to none")
        if self.shift != 0 and not self.general_batches:
            raise ValueError("shift compares the domain with general text: name batches of it in general_batches")
        if self.shift != 0 and self.combine != "u":
            raise ValueError(f"shift moves row factors: combine must be u, found {self.combine}")
        if self.head_bias_target == "sum" and not self.general_batches:
            raise ValueError("head_bias_target is sum: name the batches of general text in general_batches")
        return self

    @property
    def pack_dtype(self) -> str:
        """`pack` with ``auto`` decided."""
        if self.pack == "auto":
            return "int8" if self.mode in ("fit", "auto") else "none"
        return self.pack

    @property
    def bias_goal(self) -> Literal["domain", "sum"]:
        """`head_bias_target` with ``auto`` decided."""
        if self.head_bias_target == "auto":
            return "sum" if self.general_batches else "domain"
        return self.head_bias_target


class EvaluateConfig(Section):
    """What is measured before and after."""

    execution_keys = frozenset({"batch_size"})

    similarity: tuple[str, ...] = Field((), description="Files of word pairs with ratings: word1 word2 score.")
    analogies: tuple[str, ...] = Field((), description="Files of analogy questions: four words per line.")
    combine: Literal["u", "v", "sum", "concat"] = Field("u", description="Vectors that these files are tried on.")
    search_vocabulary: int = Field(
        30_000, ge=4, description="Analogy answers are sought among this number of the most frequent tokens."
    )
    controls: tuple[Literal["permuted", "random", "svd"], ...] = Field(
        ("permuted",),
        description="What the vectors are compared with on these files: their rows permuted, random vectors, "
        "a truncated SVD of the same counts' PPMI.",
    )
    masked_lm: bool = Field(True, description="Masked-LM loss and rare-token accuracy, where there is a checkpoint.")
    checkpoints: dict[str, str] = Field(
        default_factory=dict, description="Further checkpoints on the same masks, by name: controls, other arms."
    )
    gate: bool = Field(
        False, description="Refuse (exit 3) when the masked-LM loss, or that of a bucket of tokens, is clearly worse."
    )
    gate_margin: float = Field(0.0, ge=0, description="gate: nats that the loss may be worse.")
    documents: int = Field(400, ge=1, description="Held-out documents used at most.")
    sequence_length: int = Field(128, ge=8, le=512, description="Tokens per sequence.")
    sequences: int = Field(512, ge=1, description="Sequences used at most.")
    mask_fraction: float = Field(0.15, gt=0, lt=1, description="Share of tokens predicted; masks depend on the seed.")
    probe_targets: int = Field(
        500, ge=0, description="Rare-token probes: targets per bucket of counts at most; 0 = no probes."
    )
    bootstrap: int = Field(2000, ge=100, description="Resamples of the intervals.")
    batch_size: int = Field(16, ge=1, description="Sequences per forward pass.")


class SparkConfig(Section):
    """What the session needs; cores, memory and master belong to spark-submit."""

    conf: dict[str, str] = Field(
        default_factory=dict, description="Spark properties for sessions that this command starts itself."
    )
    delta_jars: str | None = Field(
        None, description="Directory of Delta's jars, for machines without a Maven repository."
    )

    @model_validator(mode="before")
    @classmethod
    def _properties_are_strings(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and isinstance(data.get("conf"), Mapping):
            conf = {
                str(key): str(value).lower() if isinstance(value, bool) else str(value)
                for key, value in data["conf"].items()
            }
            return {**data, "conf": conf}
        return data


class Config(Section):
    """The whole pipeline."""

    warehouse: str = Field("warehouse", description="Directory of all tables: a local path or any Hadoop URI.")
    run_id: Name = Field("default", description="Names the run; the same on every retry.")
    table_format: Literal["parquet", "delta"] = Field("parquet", description="Format of the tables.")
    seed: int = Field(1, ge=0, lt=2**63, description="Of every random choice.")
    corpus: CorpusConfig = CorpusConfig()
    vocabulary: VocabularyConfig = VocabularyConfig()
    cooccurrence: CooccurrenceConfig = CooccurrenceConfig()
    train: TrainConfig = TrainConfig()
    export: ExportConfig = ExportConfig()
    neighbours: NeighboursConfig = NeighboursConfig()
    states: StatesConfig = StatesConfig()
    fit: FitConfig = FitConfig()
    inject: InjectConfig = InjectConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    spark: SparkConfig = SparkConfig()

    def dump(self) -> dict[str, Any]:
        """The resolved configuration as plain JSON values."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """The resolved configuration as YAML that `load_config` reads back."""
        return yaml.safe_dump(self.dump(), sort_keys=False, allow_unicode=True)

    @property
    def injection(self) -> str:
        """Key of what is made once per run and injection mode: inject, verify, evaluate."""
        return f"{self.run_id}.{self.inject.mode}"

    @property
    def fingerprint(self) -> str:
        """Of everything but where it runs: warehouse, run id and Spark properties are left out."""
        unused = {name: part.unused_later_keys() for name, part in self if isinstance(part, Section)}
        keys = self.model_dump(mode="json", exclude={**unused, "warehouse": True, "run_id": True, "spark": True})
        return fingerprint(keys)


def fingerprint(value: Any) -> str:
    """SHA-256 of the canonical JSON of `value`, its first 16 hexadecimal digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def load_config(
    path: str | Path | None = None, overrides: Iterable[str] = (), flags: Mapping[str, Any] | None = None
) -> Config:
    """Read, override and validate.

    Parameters
    ----------
    path : str or Path or None
        A YAML file; None for the defaults.
    overrides : iterable of str
        ``section.key=value``. The value of a key that holds text is that text, as it is; of a list, the text or a YAML
        list of texts; of any other key, YAML. An empty value, ``none`` and ``null`` are none where a key may be none.
    flags : mapping of str to object, optional
        Top-level or dotted keys with their values, applied last; None leaves a key as it is.

    Returns
    -------
    Config

    Raises
    ------
    ConfigError
        Unreadable file, unknown key (with the nearest known one) or a value that does not validate.
    """
    data = _read_yaml(path) if path is not None else {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {override!r}: expected section.key=value, for example train.k=64")
        _assign(data, key.strip(), _parse_value(key.strip(), text), f"--set {override!r}")
    for key, value in (flags or {}).items():
        if value is not None:
            _assign(data, key, value, key)
    return validate_config(data, str(path) if path is not None else "the configuration")


def validate_config(data: Mapping[str, Any], where: str) -> Config:
    """The configuration of nested plain values; `ConfigError`, which names `where`, for what does not validate."""
    try:
        return Config.model_validate(_expanded(data))
    except ValidationError as error:
        raise ConfigError(_explain(error, where)) from None


PATHS = (
    "warehouse",
    "corpus.path",
    "vocabulary.tokenizer",
    "train.cells",
    "train.scratch",
    "inject.checkpoint",
    "inject.output",
    "evaluate.similarity",
    "evaluate.analogies",
    "evaluate.checkpoints",
    "spark.delta_jars",
)
"""Keys that hold paths, in which ``~`` is the home directory."""


def _expanded(data: Mapping[str, Any]) -> dict[str, Any]:
    """The data with ``~`` and ``~user`` at the beginning of paths replaced."""

    def expand(value: Any) -> Any:
        if isinstance(value, str):
            return os.path.expanduser(value)
        if isinstance(value, Mapping):
            return {name: expand(part) for name, part in value.items()}
        return [expand(part) for part in value] if isinstance(value, list | tuple) else value

    changed = dict(data)
    for dotted in PATHS:
        section, _, key = dotted.rpartition(".")
        if not section:
            changed.update({key: expand(data[key])} if key in data else {})
        elif isinstance(changed.get(section), Mapping) and key in changed[section]:
            changed[section] = {**changed[section], key: expand(changed[section][key])}
    return changed


class _UniqueKeys(yaml.SafeLoader):
    """YAML's safe types, and no key twice in a mapping."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        merge = "tag:yaml.org,2002:merge"
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != merge]
        repeated = sorted({str(key) for key in keys if keys.count(key) > 1})
        if repeated:
            raise yaml.constructor.ConstructorError(None, None, f"{', '.join(repeated)}: given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _read_yaml(path: str | Path) -> dict[str, Any]:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"there is no configuration file at {path}; conf/pipeline.yaml is an example") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the configuration {path}: {error}") from error
    try:
        data = yaml.load(text, _UniqueKeys)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds a {type(data).__name__}, expected a mapping of sections")
    return data


def _parse_value(key: str, text: str) -> Any:
    """The value that ``--set key=text`` gives, by the type of the key."""
    field = known_keys().get(key)
    kinds = _kinds(field.annotation) if field is not None else ({str} if _mapping_of(key) is not None else set())
    if type(None) in kinds and text in ("", "none", "null", "~"):
        return None
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    if kinds <= {str, type(None)} and kinds:
        return _parse_yaml(key, text) if quoted else text
    if kinds == {tuple}:
        try:
            found = yaml.load(text, yaml.BaseLoader) if text.startswith(("[", "- ")) or quoted else text
        except yaml.YAMLError:
            found = text  # a glob such as [ab]*.txt
        return found if isinstance(found, list | str) and text else ()
    return _parse_yaml(key, text) if text else None


def _parse_yaml(key: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {key}={text}: the value is not YAML: {error}") from error


def _kinds(annotation: Any) -> set[Any]:
    """The plain types that a key may hold: str for a text, and for a choice of texts, tuple for a list of texts."""
    origin = typing.get_origin(annotation)
    arguments = typing.get_args(annotation)
    if origin is Annotated:
        return _kinds(arguments[0])
    if origin in (typing.Union, types.UnionType):
        return set().union(*map(_kinds, arguments))
    if origin is Literal:
        return {type(value) for value in arguments}
    if origin is tuple:
        return {tuple} if _kinds(arguments[0]) == {str} else {list}
    return {origin or annotation}


def _mapping_of(dotted: str) -> str | None:
    """The key of texts by name that a longer key lies in, such as ``spark.conf``."""
    for key, field in known_keys().items():
        if dotted.startswith(f"{key}.") and typing.get_origin(field.annotation) is dict:
            return key
    return None


def _assign(data: dict[str, Any], dotted: str, value: Any, source: str) -> None:
    mapping = _mapping_of(dotted)
    if mapping is None:
        *sections, key = dotted.split(".")
    else:  # the rest is one name, dots included: spark.conf.spark.executor.memory
        sections, key = mapping.split("."), dotted[len(mapping) + 1 :]
    node = data
    for section in sections:
        child = node.setdefault(section, {})
        if not isinstance(child, dict):
            raise ConfigError(f"{source}: {section} is a value, not a section")
        node = child
    node[key] = value


def _explain(error: ValidationError, where: str) -> str:
    lines = []
    for item in error.errors():
        location = tuple(str(part) for part in item["loc"])
        key = ".".join(location)
        if item["type"] == "extra_forbidden":
            nearest = _nearest(location)
            hint = f"; did you mean {nearest}?" if nearest else ""
            lines.append(f"unknown key {key}{hint}")
        else:
            message = item["msg"].removeprefix("Value error, ")
            found = "" if isinstance(item["input"], dict) else f" (found {item['input']!r})"
            lines.append(f"{key}: {message}{found}" if key else message)
    return f"{where}: " + "; ".join(lines)


def _nearest(location: tuple[str, ...]) -> str | None:
    """The known key nearest to an unknown one, in its section first, then anywhere."""
    known = list(known_keys())
    *sections, key = location
    prefix = ".".join(sections)
    here = {name.rpartition(".")[2]: name for name in known if name.rpartition(".")[0] == prefix}
    match = difflib.get_close_matches(key, here, n=1, cutoff=0.6)
    if match:
        return here[match[0]]
    anywhere = {name.rpartition(".")[2]: name for name in known}
    match = difflib.get_close_matches(key, anywhere, n=1, cutoff=0.75)
    return anywhere[match[0]] if match else None


def known_keys() -> dict[str, Any]:
    """Every dotted key with its `pydantic` field, sections included."""
    keys: dict[str, Any] = {}
    for name, field in Config.model_fields.items():
        keys[name] = field
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            for child, child_field in field.annotation.model_fields.items():
                keys[f"{name}.{child}"] = child_field
    return keys


def reference_markdown() -> str:
    """The table of every key, its type, default and meaning: docs/configuration.md."""
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for key, field in known_keys().items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, Section):
            lines.append(f"| **{key}** | | | {(annotation.__doc__ or '').strip().splitlines()[0]} |")
            continue
        default = field.get_default(call_default_factory=True)
        shown = "none" if default is None else json.dumps(default)
        lines.append(f"| {key} | {_type_name(annotation)} | {shown} | {field.description} |".replace("\n", " "))
    return "\n".join(lines) + "\n"


def _type_name(annotation: Any) -> str:
    origin = typing.get_origin(annotation)
    arguments = typing.get_args(annotation)
    if origin is Literal:
        return ", ".join(str(value) for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join("none" if part is type(None) else _type_name(part) for part in arguments)
    if origin is tuple:
        return f"list of {_type_name(arguments[0])}"
    if origin is dict:
        return "mapping"
    if origin is Annotated:
        return _type_name(arguments[0])
    return {"str": "text", "int": "integer", "float": "number", "bool": "true or false"}.get(
        annotation.__name__, annotation.__name__
    )
