"""The stages ``inject`` and ``verify``."""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.fs as pafs

from wals_spark import storage
from wals_spark.checkpoints import atomic_directory
from wals_spark.checkpoints import checkpoint as ckpt
from wals_spark.checkpoints.edit import BaseCheckpoint, EmbeddingEdit, TokenFactors
from wals_spark.checkpoints.model_card import change_sentence
from wals_spark.checkpoints.output_check import check_output
from wals_spark.checkpoints.pack_making import write_packed_artifact
from wals_spark.checkpoints.verify import read_manifest
from wals_spark.config import Config
from wals_spark.errors import ConfigError, GateError, InputError
from wals_spark.factors.store import Vectors, read_vectors
from wals_spark.inject import domain_shift, frequency
from wals_spark.inject.fit.injection import fit_edit
from wals_spark.inject.gate import FoldSums
from wals_spark.inject.prepare import (
    EncodedText,
    check_same_vocabulary,
    checkpoint_source,
    extended_tokenizer,
    init_tokenizer,
    planned_transfer,
    prepare_edit,
)
from wals_spark.inject.verify import verify_injection
from wals_spark.inject.vocabulary.candidates import sample_documents
from wals_spark.objective import Objective
from wals_spark.runs import ManifestStore, Run
from wals_spark.stage import Context, Metric, Outcome, Stage, StageRun
from wals_spark.stage_outputs import (
    CooccurrenceOutputs,
    InjectOutputs,
    TrainOutputs,
    VerifyOutputs,
    VocabularyOutputs,
    outputs_of,
    require_outputs,
)
from wals_spark.tables.vocabulary import read_vocabulary
from wals_spark.tokenizer import load_tokenizer, vocabulary_hash

logger = logging.getLogger(__name__)

SHIFT_MIN_COUNT = 5
"""Tokens that the domain has less often do not shift."""
SAMPLE_DOCUMENTS = 400
"""Documents, half of them held-out ones, that are segmented before and after a change of the vocabulary."""


class _StageOfInjection(Stage):
    """What the stages of an injection have in common: there is one output for each mode of a run."""

    def key(self, config: Config) -> str:
        """The run id and the mode."""
        return config.injection

    def identity(self, config: Config) -> dict[str, Any]:
        """The checkpoint, the directory asked for, and the file of exposures."""
        source = checkpoint_source(config)
        found: dict[str, Any] = {
            "checkpoint": ckpt.checkpoint_identity(source, weights=config.inject.mode != "init"),
            "output": output_directory(config) if config.inject.output else None,
        }
        how = config.inject.exposure
        if how not in ("auto", "corpus", "rank"):
            fs, path = storage.filesystem(how)
            info = fs.get_file_info(path)
            found["exposure"] = [info.size, info.mtime_ns]
        return found

    def enabled(self, config: Config) -> bool:
        """Whether ``inject.mode`` is set."""
        return config.inject.mode != "none"

    def label(self, config: Config) -> str:
        """The name and the mode: every mode of a run has metrics of its own."""
        return f"{self.name}.{config.inject.mode}"


class InjectStage(_StageOfInjection):
    """Factors into the input embeddings of a RoBERTa checkpoint."""

    name = "inject"
    sections = ("inject",)

    def settings(self, config: Config) -> dict[str, Any]:
        """The sections ``inject`` and, of modes that fit, ``fit``."""
        fits = {"fit": config.fit.result_keys()} if config.inject.mode in ("fit", "auto") else {}
        return {**super().settings(config), **fits}

    def inputs(self, config: Config, manifests: ManifestStore) -> Sequence[tuple[str, str]]:
        """The factors, and the encoded text that strengths are chosen on; of ``trim`` the vocabulary alone."""
        if config.inject.mode == "trim":
            return [("vocabulary", config.corpus.batch_id)]
        train = manifests.find("train", config.run_id)
        if config.inject.mode in ("fit", "auto"):
            found = [("states", config.run_id)]
            if config.fit.rows in ("factors", "both") or (config.inject.mode == "auto" and train is not None):
                found += [("train", config.run_id)]
            if config.inject.mode == "auto" and train is not None:
                found += [("vocabulary", batch) for batch in outputs_of(train, TrainOutputs).get("batches", ())]
            return found
        found = [("train", config.run_id)]
        if train is not None and config.inject.mode in ("blend", "replace"):
            found += [("vocabulary", batch) for batch in outputs_of(train, TrainOutputs).get("batches", ())]
        return found

    def check(self, config: Config) -> None:
        """Raise where the checkpoint, its tokenizer and the keys of ``inject`` do not fit each other."""
        source = checkpoint_source(config)
        if config.vocabulary.kind != "tokenizer":
            raise ConfigError(
                "inject needs factors of a tokenizer's tokens, but vocabulary.kind is words: an embedding's rows are "
                "of tokens. Set vocabulary.kind to tokenizer and vocabulary.tokenizer to the model's"
            )
        frequency.check_exposure(config.inject.exposure)
        if config.inject.mode == "init":
            directory = ckpt.locate_checkpoint(source, weights=False)
            rows = ckpt.read_config(directory).get("vocab_size")
            if rows is None:
                raise InputError(f"{directory / 'config.json'} has no vocab_size: set it to the rows of the new model")
            tokenizer = init_tokenizer(config, source)
        else:
            opened = ckpt.open_checkpoint(source)
            rows = opened.vocab_size
            needs_head = "auto" in (config.inject.head_bias, config.inject.shift) or config.inject.head_bias != 0
            needs_head = needs_head or config.inject.strengths == "text"
            if needs_head and opened.head_bias is None:
                raise InputError(
                    f"inject.head_bias is {config.inject.head_bias}, shift {config.inject.shift}, strengths "
                    f"{config.inject.strengths}, but {source} is a {opened.architecture} without a masked-LM head: set "
                    "them to 0, 0 and fitted, or give the checkpoint with its head"
                )
            tokenizer = ckpt.checkpoint_tokenizer(opened.directory)
        ckpt.check_tokenizer(tokenizer, rows, source)
        if config.inject.mode == "extend":
            extended_tokenizer(config, tokenizer, source)
        elif config.inject.mode == "transfer":
            planned_transfer(config, source)
        elif config.vocabulary.tokenizer is not None and config.inject.mode != "init":
            check_same_vocabulary(
                load_tokenizer(config.vocabulary.tokenizer).hash, tokenizer, config.vocabulary.tokenizer, source
            )
        # A directory of this run may be the finished output, with whatever was put there since: `run` looks into it.
        check_output(
            output_directory(config),
            replace=_may_replace(config),
            inputs=[source],
            contents=not _is_own(config),
        )

    def run(self, stage_run: StageRun) -> Outcome:
        """Write the injected checkpoint."""
        context = stage_run.context
        config = context.config
        output, inputs = output_directory(config), [checkpoint_source(config)]
        check_output(output, replace=_may_replace(config), inputs=inputs)
        described: dict[str, Any] = {
            "mode": config.inject.mode,
            "parameters": {"seed": config.seed, **config.inject.result_keys()},
            "factors": None,
            "run": {**_identity_of_run(config), "fingerprint": stage_run.fingerprint},
        }
        if config.inject.mode == "trim":
            base, change, factors = prepare_edit(config, _counted(context))
        elif config.inject.mode in ("fit", "auto"):
            base, change, factors = _fitted(stage_run)
            described["parameters"]["fit"] = config.fit.result_keys()
        else:
            train = stage_run.input("train")
            vectors = read_vectors(context.tables, config.run_id, config.inject.combine)
            found, recorded = vocabulary_hash(vectors.tokens), outputs_of(train, TrainOutputs).get("vocabulary_hash")
            if found != recorded:
                raise InputError(
                    f"the factors of run {config.run_id!r} have tokens of the hash {found}, the train manifest says "
                    f"{recorded}: run `wals-spark train --force`"
                )
            base, change, factors = prepare_edit(config, vectors, _text(stage_run), _sums(context, len(vectors.tokens)))
            described["factors"] = {
                "run_id": config.run_id,
                "train_fingerprint": train.fingerprint,
                "vocabulary_hash": found,
                "k": int(vectors.matrix.shape[1]),
                "combine": config.inject.combine,
            }
        with atomic_directory.staged_directory(output, replace=_may_replace(config), inputs=inputs) as staging:
            manifest = write_packed_artifact(staging, base, change, factors, described, config.inject.pack_dtype)
        return _outcome(output, manifest, change)


def _fitted(stage_run: StageRun) -> tuple[BaseCheckpoint, EmbeddingEdit, TokenFactors | None]:
    """The edit of the modes ``fit`` and ``auto``."""
    context = stage_run.context
    config = context.config
    vectors = None
    if any(name == "train" for name, _ in stage_run.inputs):
        vectors = read_vectors(context.tables, config.run_id, config.inject.combine)

    def blend() -> EmbeddingEdit:
        assert vectors is not None
        blended = config.model_copy(update={"inject": config.inject.model_copy(update={"mode": "blend"})})
        return prepare_edit(blended, vectors, _text(stage_run), _sums(context, len(vectors.tokens)))[1]

    return fit_edit(stage_run, vectors, blend if vectors is not None and config.inject.mode == "auto" else None)


class VerifyStage(_StageOfInjection):
    """A proof of what an injection changed, and that it changed nothing else."""

    name = "verify"
    sections = ()

    def inputs(self, config: Config, manifests: ManifestStore) -> Sequence[tuple[str, str]]:
        """The injected checkpoint."""
        return [("inject", config.injection)]

    def check(self, config: Config) -> None:
        """Raise where the checkpoint before the injection cannot be read."""
        source = checkpoint_source(config)
        init = config.inject.mode == "init"
        ckpt.read_config(ckpt.locate_checkpoint(source, weights=not init), head=init)

    def run(self, stage_run: StageRun) -> Outcome:
        """Check the injected checkpoint against the one before."""
        config = stage_run.context.config
        directory = stage_run.outputs(InjectOutputs)["directory"]
        with _local(directory) as local:
            report = verify_injection(local, checkpoint_source(config), texts=_sample(stage_run.context))
        for line in report.lines():
            logger.info("verify: %s", line)
        if not report.passed:
            raise GateError(
                f"verify: {directory} failed {len(report.failures)} of {len(report.checks)} checks: "
                f"{'; '.join(report.failures)}. Remove it and make it again with `wals-spark inject --force`",
                details={"failures": report.failures},
            )
        outputs: VerifyOutputs = {
            "directory": directory,
            "checks": {check.name: check.detail for check in report.checks},
            "rows_changed": report.facts["rows_changed"],
            "displacement": report.facts["displacement"],
        }
        if "suspicious_rows" in report.facts:
            outputs["suspicious_rows"] = report.facts["suspicious_rows"]
        return Outcome(
            outputs,
            [Metric("checks_passed", len(report.checks)), Metric("rows_changed", outputs["rows_changed"])],
            [f"all {len(report.checks)} checks passed, {outputs['rows_changed']:,} rows changed: {directory}"],
        )


def output_directory(config: Config) -> str:
    """Where the injected checkpoint goes."""
    if config.inject.output is not None:
        return storage.absolute(config.inject.output)
    return Run(storage.absolute(config.warehouse), config.run_id).path(f"model-{config.inject.mode}")


def _may_replace(config: Config) -> bool:
    """Whether an existing output may be replaced: on demand, or because it is this run's own."""
    return config.inject.overwrite or config.inject.output is None or _is_own(config)


def _is_own(config: Config) -> bool:
    """Whether the output holds an earlier result of this run and mode."""
    output = output_directory(config)
    if storage.is_local(output) and ckpt.has_manifest(output):
        try:
            made = read_manifest(Path(output))
        except InputError:
            return False
        run = made.get("run")
        return isinstance(run, dict) and _identity_of_run(config).items() <= run.items()
    return False


def _identity_of_run(config: Config) -> dict[str, str]:
    """What tells the results of one run and mode from those of others: the warehouse (as a hash of its path) too."""
    warehouse = hashlib.sha256(storage.absolute(config.warehouse).encode()).hexdigest()[:16]
    return {"warehouse": warehouse, "run_id": config.run_id, "stage": config.injection}


def _sample(context: Context) -> list[str]:
    """Documents that are counted, and as many that are held out, where the mode changes the vocabulary."""
    if context.config.inject.mode not in ("trim", "extend"):
        return []
    return sample_documents(context, [context.config.corpus.batch_id], SAMPLE_DOCUMENTS)


def _sums(context: Context, rows: int) -> FoldSums | None:
    """Spark's sums for vocabularies that are too many rows for the driver to go through alone."""
    inject = context.config.inject
    if rows < inject.driver_rows or inject.mode not in ("blend", "replace") or inject.combine not in ("u", "v"):
        return None
    from wals_spark.inject.distributed import fold_sums_in_spark

    return fold_sums_in_spark(context, {"u": "row", "v": "col"}[inject.combine], checkpoint_source(context.config))


def _counted(context: Context) -> Vectors:
    """Tokens and counts of the vocabulary table, without vectors."""
    vocabulary = read_vocabulary(context.tables)
    tokens, counts = vocabulary.tokens, vocabulary.counts
    return Vectors(tokens, counts, np.zeros((len(tokens), 0), np.float32), np.zeros(len(tokens), np.float32))


def _text(stage_run: StageRun) -> EncodedText:
    """Encoded text of the factorised batches, general ones apart."""
    context = stage_run.context
    wanted = set(context.config.inject.general_batches)
    batches = {
        manifest.key: outputs_of(manifest, VocabularyOutputs)["encoded"]
        for manifest in stage_run.inputs_of("vocabulary")
    }
    unknown = sorted(wanted - batches.keys())
    if unknown:
        raise InputError(
            f"inject.general_batches: {', '.join(unknown)} were not factorised by run {context.config.run_id!r} (it "
            f"has {', '.join(sorted(batches)) or 'none'}); train on general and domain batches together"
        )
    domain = tuple(path for key, path in sorted(batches.items()) if key not in wanted)
    if wanted and not domain:
        raise InputError("inject.general_batches names every batch: none is left to be the domain")
    general = tuple(path for key, path in sorted(batches.items()) if key in wanted)
    return EncodedText(general, domain, _delta(stage_run, domain) if context.config.inject.shift != 0 else None)


def _delta(stage_run: StageRun, domain: tuple[str, ...]) -> np.ndarray:
    """How the domain uses each token differently: `wals_spark.inject.domain_shift`."""
    context = stage_run.context
    config = context.config
    train = stage_run.outputs(TrainOutputs)
    batches, size = train["batches"], train["vocabulary_size"]
    unit = require_outputs(context.manifests, CooccurrenceOutputs, batches[0])["unit"]
    found = frequency.count_encoded_tokens(domain, size)
    V = read_vectors(context.tables, config.run_id, "v").matrix
    return domain_shift.fold_in_difference_in_spark(
        context.spark,
        np.flatnonzero(found >= SHIFT_MIN_COUNT),
        domain_shift.batch_counts(context.tables, batches, size, unit),
        domain_shift.batch_counts(context.tables, list(config.inject.general_batches), size, unit),
        V,
        Objective(**train["objective"]),
        unit,
    )


def _outcome(output: str, manifest: dict[str, Any], change: EmbeddingEdit) -> Outcome:
    embedding = manifest["embedding"]
    metrics = [
        Metric("rows_changed", embedding["rows_changed"]),
        Metric("displacement_median", embedding["displacement"]["median"]),
    ]
    lines = [f"{change_sentence(manifest)}: {output}"]
    gate = change.gate
    if gate is not None:
        metrics += [Metric(f"r2_{name}", value) for name, value in gate["r2"].items()]
        metrics.append(Metric("gate_gain", gate["gain"], gate["low"], gate["high"]))
        lines.append(gate["reason"] if gate["passed"] else f"written by force though {gate['reason']}")
    for pack in manifest.get("packs", []):
        metrics.append(Metric("pack_relative_error", pack["error"]["relative_rms"]))
        lines.append(
            f"domain pack {pack['file']}: {pack['rows']:,} rows and {pack['biases']:,} biases in {pack['dtype']}, "
            f"relative error {pack['error']['relative_rms']:.2g}"
        )
    outputs: InjectOutputs = {
        "paths": [output],
        "directory": output,
        "rows_changed": embedding["rows_changed"],
        "head_bias_changed": manifest["head_bias"]["changed"],
        "gate": manifest["gate"],
        "injection_sha256": manifest["sha256"],
    }
    return Outcome(outputs, metrics, lines)


@contextmanager
def _local(directory: str) -> Iterator[Path]:
    if storage.is_local(directory):
        yield Path(directory)
        return
    fs, path = storage.filesystem(directory)
    with tempfile.TemporaryDirectory(prefix="wals-spark-") as name:
        pafs.copy_files(path, name, source_filesystem=fs, destination_filesystem=pafs.LocalFileSystem())
        yield Path(name)
