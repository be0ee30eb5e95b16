"""The stage ``states``: a sample of the corpus through the frozen encoder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from wals_spark import storage
from wals_spark.checkpoints import checkpoint as ckpt
from wals_spark.config import Config
from wals_spark.inject.fit.inputs import (
    check_checkpoint,
    check_same_tokens,
    encoded_text,
    source_of_states,
    text_batches,
)
from wals_spark.inject.fit.sample import draw_sample
from wals_spark.inject.fit.states_job import SEQUENCES, StatesJob, checkpoint_content, plan_parts, run_parts
from wals_spark.mlm.data import special_ids
from wals_spark.mlm.hidden_states import CANDIDATES
from wals_spark.mlm.masking import Maskings
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
from wals_spark.mlm.text_sequences import TextSequences
from wals_spark.runs import ManifestStore
from wals_spark.stage import Metric, Outcome, Stage, StageRun
from wals_spark.stage_outputs import StatesOutputs, VocabularyOutputs, outputs_of
from wals_spark.tokenizer import LoadedTokenizer

_FINGERPRINT = re.compile(r"[0-9a-f]{16}")
_PART = re.compile(r"part-\d+\.arrow(\.[0-9a-f]+\.tmp)?")


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
        source = source_of_states(config)
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


def _sample(stage_run: StageRun, directory: str, tokenizer: LoadedTokenizer) -> tuple[TextSequences, list[str]]:
    """The sample by split, from the file that a killed run left, or drawn."""
    context = stage_run.context
    config = context.config
    path = storage.join(directory, SEQUENCES)
    if storage.exists(path):
        return read_sequences(path)
    encoded = {manifest.key: outputs_of(manifest, VocabularyOutputs) for manifest in stage_run.inputs_of("vocabulary")}
    for key, outputs in encoded.items():
        check_same_tokens(outputs["vocabulary_hash"], tokenizer, f"of batch {key}", source_of_states(config))
    domain, general = encoded_text(config, encoded)
    sequences, splits = draw_sample(context, list(domain.values()), list(general.values()), tokenizer)
    write_sequences(path, sequences, splits)
    return sequences, splits


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
