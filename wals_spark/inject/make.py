"""From a configuration and vectors to what is to be written: the base and the change."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wals_spark.config import Config
from wals_spark.errors import ConfigError, InputError
from wals_spark.factors.store import Vectors
from wals_spark.inject import checkpoint as ckpt
from wals_spark.inject import frequency, methods, strengths, writer
from wals_spark.inject.rawtensor import file_sha256
from wals_spark.mlm.data import special_ids
from wals_spark.tokenizer import LoadedTokenizer, load_tokenizer, vocabulary_hash


@dataclass(frozen=True)
class Text:
    """Encoded text of the corpus: directories of `wals_spark.encoded` shards.

    Attributes
    ----------
    general : like the model's pretraining
    domain : the rest
    """

    general: tuple[str, ...] = ()
    domain: tuple[str, ...] = ()


def prepare(
    config: Config, vectors: Vectors, text: Text | None = None
) -> tuple[writer.Base, methods.Change, methods.Factors]:
    """Open the checkpoint, compute the change; nothing is written.

    Parameters
    ----------
    config : Config
        ``inject``, ``vocabulary.tokenizer`` and ``seed`` are read.
    vectors : Vectors
        Of every token of the checkpoint's tokenizer, by id.
    text : Text, optional
        Needed where strengths are chosen on text.

    Raises
    ------
    InputError
        The checkpoint cannot be injected into, or the vectors belong to another vocabulary.
    GateError
        The alignment is no better than its controls, or no strength helps on text.
    """
    factors = methods.Factors(vectors.matrix, vectors.counts.astype(np.int64))
    if config.inject.mode == "init":
        base, change = _init(config, vectors, factors)
    else:
        base, change = _inject(config, vectors, factors, text or Text())
    return base, change, factors


def source_of(config: Config) -> str:
    """The checkpoint that the configuration names; `ConfigError` when it names none."""
    if config.inject.mode == "none":
        raise ConfigError("inject.mode is none: set it to init, blend or replace")
    if config.inject.checkpoint is None:
        raise ConfigError(f"inject.mode is {config.inject.mode}, but inject.checkpoint names no model to inject into")
    return config.inject.checkpoint


def init_tokenizer(config: Config, source: str) -> LoadedTokenizer:
    """The corpus' tokenizer; one that lies with the config must be the same."""
    if config.vocabulary.tokenizer is None:
        raise ConfigError("inject.mode is init, but vocabulary.tokenizer names no tokenizer")
    corpus = load_tokenizer(config.vocabulary.tokenizer)
    directory = ckpt.locate(source, weights=False)
    if (directory / "tokenizer.json").is_file():
        check_vocabulary(corpus.hash, load_tokenizer(str(directory)), config.vocabulary.tokenizer, source)
    return corpus


def check_vocabulary(found: str, tokenizer: LoadedTokenizer, what: str, source: str) -> None:
    """`InputError` unless the factors' vocabulary hash is that of the checkpoint's tokenizer."""
    if found != tokenizer.hash:
        raise InputError(
            f"the factors' vocabulary ({what}) has the hash {found}, the tokenizer of {source} has {tokenizer.hash} "
            f"({len(tokenizer.tokens)} tokens): rows would land on the wrong tokens. Count and train with the "
            "checkpoint's own tokenizer (vocabulary.tokenizer)"
        )


def _init(config: Config, vectors: Vectors, factors: methods.Factors) -> tuple[writer.Base, methods.Change]:
    from wals_spark.inject.fresh import initialise

    source = source_of(config)
    directory = ckpt.locate(source, weights=False)
    tokenizer = init_tokenizer(config, source)
    check_vocabulary(vocabulary_hash(vectors.tokens), tokenizer, "the factors table", str(config.vocabulary.tokenizer))
    read = ckpt.read_config(directory)
    family = ckpt.FAMILIES[read["model_type"]]
    tensors, described = initialise(directory, config.seed)
    embedding = next(name for name in tensors if name.endswith(ckpt.EMBEDDING_SUFFIX))
    E = tensors[embedding].values()
    ckpt.check_tokenizer(tokenizer, len(E), source)
    protected = ckpt.protected_ids(tokenizer, read, len(E))
    scale = float(described.get("initializer_range", 0.02))
    change = methods.initial(factors, E, len(E), protected, scale, config.seed)
    files = [path for path in ckpt.companion_files(directory) if path.name != "config.json"]
    if not (directory / "tokenizer.json").is_file():
        files += _tokenizer_files(str(config.vocabulary.tokenizer))
    base = writer.Base(
        tensors=tensors,
        dropped=(),
        metadata={},
        config=described,
        embedding=embedding,
        head_bias=family.head_bias,
        protected=protected,
        files=tuple(files),
        config_text=json.dumps(described, indent=2, sort_keys=True) + "\n",
        source={"source": source, "hub": not Path(source).expanduser().is_dir(), "initialised_from_seed": config.seed},
    )
    return base, change


def _tokenizer_files(source: str) -> list[Path]:
    path = Path(source).expanduser()
    if path.is_file():
        return [path]
    directory = ckpt.locate(source, "vocabulary.tokenizer", weights=False)
    return [file for file in ckpt.companion_files(directory) if file.name in ckpt.TOKENIZER_FILES]


def _inject(
    config: Config, vectors: Vectors, factors: methods.Factors, text: Text
) -> tuple[writer.Base, methods.Change]:
    source = source_of(config)
    opened = ckpt.open_checkpoint(source)
    tokenizer = ckpt.checkpoint_tokenizer(opened.directory)
    ckpt.check_tokenizer(tokenizer, opened.size, source)
    check_vocabulary(vocabulary_hash(vectors.tokens), tokenizer, "the factors table", source)
    protected = ckpt.protected_ids(tokenizer, opened.config, opened.size)
    E = ckpt.embedding_values(opened)
    frequencies = _frequencies(config, factors, tokenizer, protected, text)
    proposal = methods.propose(factors, E, protected, frequencies, config.inject, config.seed)
    change = settle(config, opened, proposal, factors, tokenizer, text)
    base = writer.Base(
        tensors=opened.tensors,
        dropped=opened.dropped,
        metadata=opened.metadata,
        config=opened.config,
        embedding=opened.embedding,
        head_bias=opened.head_bias,
        protected=protected,
        files=tuple(ckpt.companion_files(opened.directory)),
        config_text=None,
        source={
            "source": source,
            "hub": not Path(source).expanduser().is_dir(),
            "files": {path.name: file_sha256(path) for path in ckpt.weight_files(opened.directory)},
        },
    )
    return base, change


def _frequencies(
    config: Config, factors: methods.Factors, tokenizer: LoadedTokenizer, protected: np.ndarray, text: Text
) -> methods.Frequencies:
    counts = factors.counts
    if text.general:
        general = frequency.count_encoded(text.general, len(counts))
        return methods.Frequencies(general.astype(np.float64), np.maximum(counts - general, 0).astype(np.float64))
    exposure = frequency.exposure(config.inject.exposure, counts, tokenizer, protected)
    return methods.Frequencies(exposure, counts.astype(np.float64))


def on_text(config: Config, has_head: bool) -> bool:
    """Whether strengths are chosen on text."""
    inject = config.inject
    if inject.mode == "init":
        return False
    rows = inject.mode == "blend" and (inject.strengths == "text" or (inject.strengths == "auto" and has_head))
    return rows or inject.head_bias == "auto"


def settle(
    config: Config,
    opened: ckpt.Checkpoint,
    proposal: methods.Proposal,
    factors: methods.Factors,
    tokenizer: LoadedTokenizer,
    text: Text,
) -> methods.Change:
    """Choose the strengths and turn the proposal into a change.

    Raises
    ------
    GateError
        On text neither rows nor head bias gain anything clear, or the rows no more than permuted ones.
    """
    E = ckpt.embedding_values(opened)
    inject = config.inject
    bias = opened.tensors[opened.head_bias].values() if opened.head_bias is not None else None
    if on_text(config, bias is not None) and bias is not None:
        found = strengths.on_text(config, opened, proposal, factors, special_ids(tokenizer), text.domain)
    else:
        given = inject.head_bias
        assert given != "auto"
        found = strengths.Strengths(proposal.variances.half_exposure, given if bias is not None else 0.0, {})
    share = proposal.everything() if inject.mode == "replace" else proposal.shares(found.half_exposure)
    moved = None
    if found.head_bias > 0 and bias is not None:
        goal = proposal.frequencies.towards(inject.head_bias_target)
        moved = methods.moved_head_bias(bias, goal, proposal.protected, found.head_bias)
    facts = {"strengths": {"half_exposure": found.half_exposure, "head_bias": found.head_bias, **found.facts}}
    return methods.change_of(proposal, E, share, moved, facts)
