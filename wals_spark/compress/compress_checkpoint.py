"""Compression of a checkpoint from reading it to writing it, with a comparison of methods; needs no Spark."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from wals_spark import storage
from wals_spark.checkpoints import checkpoint as ckpt
from wals_spark.checkpoints.atomic_directory import staged_directory
from wals_spark.checkpoints.output_check import OutputOption, check_output
from wals_spark.checkpoints.raw_tensor import file_sha256
from wals_spark.compress import artifact, lowrank, methods, text_statistics
from wals_spark.compress.comparison import ComparisonRow, comparison_rows
from wals_spark.compress.methods import METHODS, PRESETS, TEXT_METHODS, CompressionPreset, CompressionProblem
from wals_spark.compress.rank_choice import choose_rank
from wals_spark.errors import ConfigError, InputError
from wals_spark.tokenizer import LoadedTokenizer, load_tokenizer

logger = logging.getLogger(__name__)

_OPTION = OutputOption("--output", "--overwrite", "--checkpoint")


@dataclass(frozen=True)
class CompressionRequest:
    """The options of a compression; they are those of ``wals-spark compress``.

    Attributes
    ----------
    checkpoint : str
        Directory or hub name.
    output : str
        Directory to write.
    method : str or None
        One of `wals_spark.compress.methods.METHODS`; None = the preset's.
    preset : str
        A name in `wals_spark.compress.methods.PRESETS`.
    rank : int or None
        None = the preset's, unless there is a target.
    target_mse : float or None
        The largest mean squared error of an entry, instead of a rank.
    target_bytes : int or None
        The largest size of the factors, instead of a rank.
    format : str
        One of `wals_spark.compress.artifact.FORMATS`.
    frequencies : str or None
        Path of a table with token_id and count, or of text; None = counted in `text`, if that is given.
    text : str or None
        Path of text for ``logits``, ``kronecker``, ``fisher``.
    sequences : int
        Sequences of text to measure on.
    length : int
        Tokens of a sequence.
    overwrite : bool
        Replace an output that exists and is empty or an earlier result.
    seed : int
    """

    checkpoint: str
    output: str
    method: str | None = None
    preset: str = "standard"
    rank: int | None = None
    target_mse: float | None = None
    target_bytes: int | None = None
    format: str = "dense"
    frequencies: str | None = None
    text: str | None = None
    sequences: int = 512
    length: int = 128
    overwrite: bool = False
    seed: int = 0

    def settings(self) -> CompressionPreset:
        """The preset, with the request's method in place of its own.

        Raises
        ------
        ConfigError
            An unknown name, no sequences, a method without the text or the frequencies that it needs, or an output that
            is or holds the checkpoint or the working directory.
        InputError
            The output exists and may not be replaced.
        """
        for key, value, known in (
            ("--preset", self.preset, tuple(PRESETS)),
            ("--method", self.method or METHODS[0], METHODS),
            ("--format", self.format, artifact.FORMATS),
        ):
            if value not in known:
                raise ConfigError(f"{key}: found {value!r}, expected one of {', '.join(known)}")
        if self.sequences < 1:
            raise ConfigError(f"--sequences: found {self.sequences}, expected a number of sequences above 0")
        settings = replace(PRESETS[self.preset], method=self.method or PRESETS[self.preset].method)
        if settings.method in TEXT_METHODS and self.text is None:
            raise ConfigError(f"--method {settings.method} measures the model on text: give --text FILE")
        if settings.method == "frequency" and self.frequencies is None and self.text is None:
            raise ConfigError("--method frequency needs to know how often tokens occur: give --frequencies or --text")
        if settings.method == "fisher" and self.target_mse is not None:
            raise ConfigError(
                "--target-mse with --method fisher: which rank reaches it shows only after training each; give --rank "
                "or --target-bytes, or use a method with a closed form"
            )
        check_output(self.output, replace=self.overwrite, inputs=[self.checkpoint], option=_OPTION)
        return settings


@dataclass(frozen=True)
class CompressionResult:
    """The comparison and the manifest of a compressed checkpoint.

    Attributes
    ----------
    choices : list of ComparisonRow
        The chosen method first.
    manifest : dict of str to object
        The content of injection.json.
    """

    choices: list[ComparisonRow]
    manifest: dict[str, Any]


def compress_checkpoint(request: CompressionRequest) -> CompressionResult:
    """Compress the embedding of a checkpoint and write the result, whole or not at all.

    Raises
    ------
    ConfigError, InputError
        See `CompressionRequest.settings`, `wals_spark.checkpoints.checkpoint.open_checkpoint` and
        `wals_spark.compress.rank_choice.choose_rank`.
    """
    settings = request.settings()
    opened = ckpt.open_checkpoint(request.checkpoint, "--checkpoint")
    if request.format == "factorised":
        artifact.factorised_config(opened, 1)
    problem = read_problem(request, opened)
    forms = problem.closed_forms()
    form = forms[methods.closed_form_of(settings.method)]
    dtype = opened.tensors[opened.embedding].dtype
    rank = choose_rank(
        form,
        problem.E.shape,
        dtype,
        rank=request.rank,
        target_mse=request.target_mse,
        target_bytes=request.target_bytes,
        default=settings.rank,
    )
    if lowrank.parameter_count(opened.vocab_size, opened.hidden_size, rank) >= opened.vocab_size * opened.hidden_size:
        logger.warning("rank %d takes as many numbers as the matrix itself: it saves nothing", rank)
    solution = methods.factorise_embedding(problem, settings.method, rank, settings, form, request.seed)
    choices = list(comparison_rows(problem, forms, settings, solution, request.seed))
    parameters = {**asdict(settings), "preset": request.preset, "rank": rank, "seed": request.seed, **_sources(request)}
    facts = {**solution.facts, "table": [choice.to_json() for choice in choices]}
    with staged_directory(
        request.output, replace=request.overwrite, inputs=[request.checkpoint], option=_OPTION
    ) as staging:
        manifest = artifact.write_compressed(staging, opened, solution.factors, request.format, parameters, facts)
    return CompressionResult(choices, manifest)


def read_problem(request: CompressionRequest, opened: ckpt.Checkpoint) -> CompressionProblem:
    """The embedding, and the frequencies and sensitivities that the request's text gives."""
    E = ckpt.embedding_values(opened)
    tokenizer = _tokenizer(opened)
    counted = request.frequencies or request.text
    sensitivity = None
    if request.text is not None and opened.head_bias is not None:
        _check_positions(opened, request.length)
        masked = text_statistics.masked_text(request.text, tokenizer, request.sequences, request.length, request.seed)
        sensitivity = text_statistics.measure_sensitivity(opened.directory, masked)
    elif request.text is not None and request.method in TEXT_METHODS:
        raise InputError(
            f"--method {request.method}: {opened.architecture} has no masked-LM head, which hidden states and "
            "gradients are taken from; give a checkpoint with one, or use svd or frequency"
        )
    frequencies = text_statistics.read_frequencies(counted, len(E), tokenizer) if counted is not None else None
    return CompressionProblem(E, opened.tensors[opened.embedding].dtype, frequencies, sensitivity)


def _check_positions(opened: ckpt.Checkpoint, length: int) -> None:
    """Raise `InputError` where the model has fewer positions than a sequence has tokens."""
    positions = opened.config.get("max_position_embeddings")
    if not isinstance(positions, int):
        return
    if opened.family.prefix == "roberta.":  # positions are counted from the padding id on
        padding = opened.config.get("pad_token_id")
        positions -= (1 if padding is None else padding) + 1
    if positions < length:
        raise InputError(
            f"--text: {opened.source} has {positions} positions (max_position_embeddings of its config.json), a "
            f"sequence of the text {length} tokens; give --frequencies and a method that needs no text"
        )


def _tokenizer(opened: ckpt.Checkpoint) -> LoadedTokenizer | None:
    """The checkpoint's tokenizer, checked against its rows; None where there is none."""
    if not (opened.directory / "tokenizer.json").is_file():
        return None
    tokenizer = load_tokenizer(str(opened.directory))
    ckpt.check_tokenizer(tokenizer, opened.vocab_size, opened.source)
    return tokenizer


def _sources(request: CompressionRequest) -> dict[str, Any]:
    """The text and the frequencies by path and, where it is one file, by hash."""
    found: dict[str, Any] = {}
    for name, path in (("text", request.text), ("frequencies", request.frequencies)):
        if path is not None:
            file = Path(storage.absolute(path))
            found[name] = {"path": path, "sha256": file_sha256(file) if file.is_file() else None}
    if request.text is not None:
        found["sample"] = {"sequences": request.sequences, "length": request.length}
    return found
