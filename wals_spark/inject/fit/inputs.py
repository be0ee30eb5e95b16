"""What states are computed from: a checkpoint with a head and its tokenizer, and the text of a run's batches."""

from __future__ import annotations

from collections.abc import Mapping

from wals_spark.checkpoints import checkpoint as ckpt
from wals_spark.config import Config
from wals_spark.errors import ConfigError, InputError
from wals_spark.mlm.positions import longest_sequence
from wals_spark.runs import ManifestStore
from wals_spark.stage_outputs import CooccurrenceOutputs, TrainOutputs, VocabularyOutputs, outputs_of
from wals_spark.tokenizer import LoadedTokenizer, load_tokenizer


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
    source = source_of_states(config)
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
        check_same_tokens(corpus.hash, tokenizer, config.vocabulary.tokenizer, source)
    positions = longest_sequence(opened.config)
    if positions is not None and config.states.sequence_length > positions:
        raise InputError(
            f"states.sequence_length is {config.states.sequence_length}, but {source} has {positions} positions: set "
            f"it to {positions} or below"
        )
    return opened, tokenizer


def check_same_tokens(found: str, tokenizer: LoadedTokenizer, what: str, source: str) -> None:
    """Raise `InputError` unless the hash of the corpus' vocabulary is that of the checkpoint's tokenizer.

    Parameters
    ----------
    found : str
        `vocabulary_hash` of the corpus' vocabulary.
    tokenizer : LoadedTokenizer
        Of the checkpoint.
    what : str
        Where the corpus' vocabulary comes from, for the message.
    source : str
        The checkpoint, for the message.
    """
    if found != tokenizer.hash:
        raise InputError(
            f"the corpus' vocabulary ({what}) has the hash {found}, the tokenizer of {source} has {tokenizer.hash} "
            f"({len(tokenizer.tokens)} tokens): the model would read other words. Encode the corpus with the "
            "checkpoint's own tokenizer (vocabulary.tokenizer)"
        )


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


def source_of_states(config: Config) -> str:
    """``inject.checkpoint``; `ConfigError` where it names none."""
    if config.inject.checkpoint is None:
        raise ConfigError("inject.checkpoint names no model to compute states with: set it to a directory or hub name")
    return config.inject.checkpoint
