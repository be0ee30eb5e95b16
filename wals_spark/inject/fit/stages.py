"""The stage ``states``: a sample of the corpus through the frozen encoder."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wals_spark import storage
from wals_spark.checkpoints import checkpoint as ckpt
from wals_spark.config import Config
from wals_spark.errors import ConfigError, InputError
from wals_spark.inject.fit.sample import Sampling, sample_sequences
from wals_spark.inject.fit.states_job import SEQUENCES, StatesJob, checkpoint_content, plan_parts, run_parts
from wals_spark.mlm.data import special_ids
from wals_spark.mlm.hidden_states import CANDIDATES
from wals_spark.mlm.masking import Maskings
from wals_spark.mlm.state_encoder import PADDED_ROWS
from wals_spark.mlm.state_files import (
    GENERAL,
    LISTING,
    SPLITS,
    TRAINING,
    VALIDATION,
    StatePart,
    read_sequences,
    write_sequences,
    write_state_listing,
)
from wals_spark.mlm.text_sequences import TextSequences, concatenate_sequences, validation_documents
from wals_spark.runs import ManifestStore
from wals_spark.stage import Context, Metric, Outcome, Stage, StageRun
from wals_spark.stage_outputs import (
    CooccurrenceOutputs,
    StatesOutputs,
    TrainOutputs,
    VocabularyOutputs,
    outputs_of,
)
from wals_spark.tokenizer import LoadedTokenizer, load_tokenizer

logger = logging.getLogger(__name__)

LEAST_SEQUENCES = 32
"""Sequences that a sample must have, half of them left to fit on; from fewer no gain can be told from chance."""
_FINGERPRINT = re.compile(r"[0-9a-f]{16}")
_PART = re.compile(r"part-\d+\.arrow(\.[0-9a-f]+\.tmp)?")
_UNKNOWN = ("<unk>", "[UNK]")


class StatesStage(Stage):
    """A sample of the corpus through the frozen encoder: hidden states of masked tokens."""

    name = "states"
    sections = ("states",)

    def key(self, config: Config) -> str:
        """The run id: modes of an injection share the states."""
        return config.run_id

    def enabled(self, config: Config) -> bool:
        """Whether ``inject.mode`` is one that fits rows."""
        return config.inject.mode in ("fit", "auto")

    def inputs(self, config: Config, manifests: ManifestStore) -> Sequence[tuple[str, str]]:
        """The encoded text of every batch that was, or would be, factorised."""
        return [("vocabulary", batch) for batch in text_batches(config, manifests)]

    def settings(self, config: Config) -> dict[str, Any]:
        """The section ``states``, and which batches are general text."""
        return {**super().settings(config), "general_batches": sorted(config.inject.general_batches)}

    def identity(self, config: Config) -> dict[str, Any]:
        """The checkpoint, its tokenizer, and how much is stored of each position."""
        source = _source(config)
        tokenizer = ckpt.checkpoint_tokenizer(ckpt.locate_checkpoint(source))
        found = ckpt.checkpoint_identity(source)
        return {"checkpoint": found, "vocabulary_hash": tokenizer.hash, "candidates": CANDIDATES}

    def check(self, config: Config) -> None:
        """Raise where the checkpoint has no head, another tokenizer than the corpus, or too few positions."""
        check_checkpoint(config)

    def run(self, stage_run: StageRun) -> Outcome:
        """Draw the sample, compute its states, list them."""
        context = stage_run.context
        config = context.config
        opened, tokenizer = check_checkpoint(config)
        home = context.run.path("states")
        directory = storage.join(home, stage_run.fingerprint)
        if storage.exists(storage.join(directory, LISTING)):
            storage.remove(directory)  # whole, and yet asked for again
        sequences, splits = _sample(stage_run, directory, tokenizer)
        parts = plan_parts(splits, config.states.part_sequences)
        with context.scratch(f"states.{config.run_id}") as scratch:
            job = StatesJob(
                directory=directory,
                scratch=scratch,
                fingerprint=stage_run.fingerprint,
                checkpoint=str(opened.directory.absolute()),
                checkpoint_sha256=checkpoint_content(str(opened.directory)),
                special=special_ids(tokenizer),
                maskings=Maskings(config.states.maskings, config.states.mask_fraction, config.seed),
                precision=config.states.precision,
                batch_size=config.states.batch_size,
            )
            found = run_parts(context.spark, job, parts, config.states.device)
        outputs = _outputs(job, tokenizer, found)
        write_state_listing(directory, found, {key: value for key, value in outputs.items() if key != "paths"})
        _remove_others(home, directory, found)
        return Outcome(outputs, _metrics(outputs), _lines(outputs, len(sequences)))


def check_checkpoint(config: Config) -> tuple[ckpt.Checkpoint, LoadedTokenizer]:
    """The checkpoint and its tokenizer, of which states can be computed for the corpus' tokens.

    Raises
    ------
    ConfigError
        ``inject.checkpoint`` names none, or tokens are words.
    InputError
        The checkpoint has no masked-LM head, another tokenizer than the corpus was encoded with, or fewer positions
        than ``states.sequence_length``.
    """
    source = _source(config)
    if config.vocabulary.kind != "tokenizer":
        raise ConfigError(
            "states are of a tokenizer's tokens, but vocabulary.kind is words: set it to tokenizer and "
            "vocabulary.tokenizer to the model's"
        )
    opened = ckpt.open_checkpoint(source)
    if opened.head_bias is None:
        raise InputError(
            f"{source} is a {opened.architecture} without a masked-LM head ({opened.family.head_bias} is not among its "
            "weights), so it predicts no tokens and no rows can be fitted to its predictions; give the checkpoint with "
            "its head, or set inject.mode to blend"
        )
    tokenizer = ckpt.checkpoint_tokenizer(opened.directory)
    ckpt.check_tokenizer(tokenizer, opened.vocab_size, source)
    if config.vocabulary.tokenizer is not None:
        corpus = load_tokenizer(config.vocabulary.tokenizer)
        _check_same_tokens(corpus.hash, tokenizer, config.vocabulary.tokenizer, source)
    positions = opened.config.get("max_position_embeddings")
    if positions is not None and opened.config["model_type"] in PADDED_ROWS:
        positions -= int(opened.config.get("pad_token_id") or 0) + 1
    if positions is not None and config.states.sequence_length > positions:
        raise InputError(
            f"states.sequence_length is {config.states.sequence_length}, but {source} has {positions} positions: set "
            f"it to {positions} or below"
        )
    return opened, tokenizer


def text_batches(config: Config, manifests: ManifestStore) -> list[str]:
    """The batches of text that the run's factors are made of, or would be; those that were folded, one by one."""
    train = manifests.find("train", config.run_id)
    if train is not None and train.complete:
        batches = list(outputs_of(train, TrainOutputs).get("batches", ()))
    elif config.train.batches != ("all",):
        batches = list(config.train.batches)
    else:
        batches = list(manifests.keys("cooccurrence") or manifests.keys("vocabulary"))
    found: list[str] = []
    for batch in batches or [config.corpus.batch_id]:
        counted = manifests.find("cooccurrence", batch)
        folded = outputs_of(counted, CooccurrenceOutputs).get("folded") if counted is not None else None
        found += folded or [batch]
    return sorted(set(found))


def _source(config: Config) -> str:
    if config.inject.checkpoint is None:
        raise ConfigError("inject.checkpoint names no model to compute states with: set it to a directory or hub name")
    return config.inject.checkpoint


def _check_same_tokens(found: str, tokenizer: LoadedTokenizer, what: str, source: str) -> None:
    if found != tokenizer.hash:
        raise InputError(
            f"the corpus' vocabulary ({what}) has the hash {found}, the tokenizer of {source} has {tokenizer.hash} "
            f"({len(tokenizer.tokens)} tokens): the model would read other words. Encode the corpus with the "
            "checkpoint's own tokenizer (vocabulary.tokenizer)"
        )


def encoded_text(config: Config, encoded: Mapping[str, VocabularyOutputs]) -> tuple[dict[str, str], dict[str, str]]:
    """Directories of token shards by batch, of the domain and of general text.

    Raises
    ------
    InputError
        ``inject.general_batches`` names a batch that there is not, or every batch.
    """
    wanted = set(config.inject.general_batches)
    unknown = sorted(wanted - encoded.keys())
    if unknown:
        raise InputError(
            f"inject.general_batches: {', '.join(unknown)} are not among the batches of this run "
            f"({', '.join(sorted(encoded)) or 'none'}); encode and count general and domain batches together"
        )
    domain = {key: outputs["encoded"] for key, outputs in sorted(encoded.items()) if key not in wanted}
    if not domain:
        raise InputError("inject.general_batches names every batch: none is left to be the domain")
    return domain, {key: encoded[key]["encoded"] for key in sorted(wanted)}


def _sample(stage_run: StageRun, directory: str, tokenizer: LoadedTokenizer) -> tuple[TextSequences, list[str]]:
    """The sample by split, from the file that a killed run left, or drawn."""
    context = stage_run.context
    config = context.config
    path = storage.join(directory, SEQUENCES)
    if storage.exists(path):
        return read_sequences(path)
    encoded = {manifest.key: outputs_of(manifest, VocabularyOutputs) for manifest in stage_run.inputs_of("vocabulary")}
    for key, outputs in encoded.items():
        _check_same_tokens(outputs["vocabulary_hash"], tokenizer, f"of batch {key}", _source(config))
    domain, general = encoded_text(config, encoded)
    sequences, splits = draw_sample(context, list(domain.values()), list(general.values()), tokenizer)
    write_sequences(path, sequences, splits)
    return sequences, splits


def draw_sample(
    context: Context, domain: Sequence[str], general: Sequence[str], tokenizer: LoadedTokenizer
) -> tuple[TextSequences, list[str]]:
    """Draw the sequences of all splits, sorted by split.

    Parameters
    ----------
    context : Context
    domain : sequence of str
        Directories of token shards.
    general : sequence of str
        Those of general text.
    tokenizer : LoadedTokenizer

    Returns
    -------
    sequences : TextSequences
    splits : list of str
        The split of each.

    Raises
    ------
    InputError
        There are fewer than `LEAST_SEQUENCES` sequences, or documents are all held out.
    """
    settings, seed = context.config.states, context.config.seed
    unknown = next((index for name in _UNKNOWN if (index := tokenizer.tokenizer.token_to_id(name)) is not None), None)
    sampling = Sampling(settings.sequences, settings.sequence_length, seed, unknown)
    found = sample_sequences(context.spark, domain, sampling)
    documents = len(np.unique(found.document))
    if len(found) < LEAST_SEQUENCES:
        raise InputError(
            f"the text has {len(found)} different sequences of {settings.sequence_length} tokens in {documents} "
            f"documents; expected at least {LEAST_SEQUENCES}: from fewer, a gain of fitted rows cannot be told from "
            "chance. Add text, or lower states.sequence_length"
        )
    if documents < 2 and settings.validation_fraction > 0:
        raise InputError(
            f"all {len(found)} sequences are of one document, so no document can be held out to choose penalties on: "
            "cut the text into documents (corpus.path with a document per file or line), or set "
            "states.validation_fraction to 0"
        )
    held = validation_documents(found.document, settings.validation_fraction)
    if (~held).sum() < LEAST_SEQUENCES // 2:
        raise InputError(
            f"states.validation_fraction {settings.validation_fraction} holds out {int(held.sum())} of {len(found)} "
            f"sequences: {int((~held).sum())} are left to fit on, expected at least {LEAST_SEQUENCES // 2}; lower it, "
            "or add documents"
        )
    parts = [found.take(~held), found.take(held)]
    if general and settings.general_sequences:
        wanted = Sampling(settings.general_sequences, settings.sequence_length, seed, unknown)
        parts.append(sample_sequences(context.spark, general, wanted))
    splits = [name for name, part in zip(SPLITS, parts, strict=False) for _ in range(len(part))]
    return concatenate_sequences(parts), splits


def _outputs(job: StatesJob, tokenizer: LoadedTokenizer, parts: Sequence[StatePart]) -> StatesOutputs:
    splits: dict[str, dict[str, float]] = {}
    for split in SPLITS:
        own = [part for part in parts if part.split == split]
        positions = sum(part.positions for part in own)
        if positions:
            loss = sum(part.base_loss for part in own) / positions
            splits[split] = {"sequences": sum(part.sequences for part in own), "positions": positions, "loss": loss}
    files = [info for info in storage.list_files(job.directory) if info.base_name.startswith("part-")]
    return {
        "paths": [job.directory],
        "directory": job.directory,
        "splits": splits,
        "maskings": job.maskings.count,
        "bytes": sum(info.size for info in files),
        "checkpoint_sha256": job.checkpoint_sha256,
        "vocabulary_hash": tokenizer.hash,
    }


def _remove_others(home: str, directory: str, parts: Sequence[StatePart]) -> None:
    """Remove states of other fingerprints, and parts of this one that another size of parts or a kill left."""
    own = directory.rpartition("/")[2]
    for info in storage.list_files(home):
        name = info.base_name
        if name != own and _FINGERPRINT.fullmatch(name) and storage.exists(storage.join(home, name, SEQUENCES)):
            storage.remove(storage.join(home, name))
    listed = {part.path.rpartition("/")[2] for part in parts}
    for info in storage.list_files(directory):
        if _PART.fullmatch(info.base_name) and info.base_name not in listed:
            storage.remove(storage.join(directory, info.base_name))


def _metrics(outputs: StatesOutputs) -> list[Metric]:
    metrics = [Metric("bytes", outputs["bytes"]), Metric("maskings", outputs["maskings"])]
    for split, facts in outputs["splits"].items():
        metrics += [Metric(f"{name}_{split}", value) for name, value in facts.items()]
    return metrics


def _lines(outputs: StatesOutputs, sequences: int) -> list[str]:
    shown = {TRAINING: "to fit on", VALIDATION: "held out to choose penalties on", GENERAL: "of general text"}
    lines = [
        f"{int(facts['positions']):,} masked tokens of {int(facts['sequences']):,} sequences {shown[split]}, loss of "
        f"the checkpoint {facts['loss']:.4f} nats"
        for split, facts in outputs["splits"].items()
    ]
    return [*lines, f"{outputs['bytes'] / 1e6:,.1f} MB in {outputs['directory']}"]
