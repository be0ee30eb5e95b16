"""From a configuration and vectors to the base checkpoint and its edit, by mode; nothing is written here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from wals_spark.checkpoints import checkpoint as ckpt
from wals_spark.checkpoints.edit import BaseCheckpoint, EmbeddingEdit, TokenFactors, base_of_checkpoint
from wals_spark.checkpoints.json_file import read_json_object
from wals_spark.checkpoints.special_tokens import config_token_ids, default_token_ids, named_special_tokens
from wals_spark.config import Config
from wals_spark.errors import ConfigError, InputError
from wals_spark.factors.store import Vectors
from wals_spark.inject import frequency, modes, strength_search
from wals_spark.inject.gate import FoldSums
from wals_spark.inject.proposal import RowProposal, TokenFrequencies, adjusted_head_bias, edit_of_proposal, propose_rows
from wals_spark.inject.transfer import Transfer, plan_transfer, transfer_edit
from wals_spark.inject.vocabulary import extend, trim
from wals_spark.inject.vocabulary.tokenizer_json import check_tokenizer_json
from wals_spark.mlm.data import special_ids
from wals_spark.tokenizer import LoadedTokenizer, load_tokenizer, vocabulary_hash

_GENERATION = "generation_config.json"


@dataclass(frozen=True)
class EncodedText:
    """Encoded text of the corpus: directories of `wals_spark.token_shards` shards.

    Attributes
    ----------
    general : tuple of str
        Text like the model's pretraining.
    domain : tuple of str
        The other text.
    delta : float32 array of shape (T, k), optional
        From `wals_spark.inject.domain_shift`, where the configuration has a shift.
    """

    general: tuple[str, ...] = ()
    domain: tuple[str, ...] = ()
    delta: np.ndarray | None = None


@dataclass(frozen=True)
class RecordedChoices:
    """What an earlier `prepare_edit` counted and chose on text, recorded with its result.

    Attributes
    ----------
    frequencies : TokenFrequencies
    strengths : Strengths
    """

    frequencies: TokenFrequencies
    strengths: strength_search.Strengths


def prepare_edit(
    config: Config,
    vectors: Vectors,
    text: EncodedText | None = None,
    sums: FoldSums | None = None,
    recorded: RecordedChoices | None = None,
) -> tuple[BaseCheckpoint, EmbeddingEdit, TokenFactors | None]:
    """Open the checkpoint and compute its edit.

    Parameters
    ----------
    config : Config
        ``inject``, ``vocabulary.tokenizer`` and ``seed`` are read.
    vectors : Vectors
        Of every token of the corpus' tokenizer, by id; ``trim`` reads tokens and counts only.
    text : EncodedText, optional
        Needed where strengths are chosen on text.
    sums : callable, optional
        Accumulates the sums of the alignment elsewhere (`wals_spark.inject.distributed`).
    recorded : RecordedChoices, optional
        ``blend`` and ``replace``: taken instead of counting tokens and choosing strengths on text.

    Returns
    -------
    base : BaseCheckpoint
    edit : EmbeddingEdit
    factors : TokenFactors or None
        None for ``trim``.

    Raises
    ------
    InputError
        The checkpoint cannot be injected into, or the vectors belong to another vocabulary.
    GateError
        The alignment is no better than its controls, or no strength lowers the loss on text.
    """
    factors = TokenFactors(vectors.matrix, vectors.counts.astype(np.int64))
    if config.inject.mode == "trim":
        return *_trim(config, vectors), None
    if config.inject.mode == "init":
        base, edit = _init(config, vectors, factors)
    elif config.inject.mode == "extend":
        base, edit = _extend(config, vectors, factors)
    elif config.inject.mode == "transfer":
        base, edit = _transfer(config, vectors, factors)
    else:
        base, edit = _inject(config, vectors, factors, text or EncodedText(), sums, recorded)
    return base, edit, factors


def checkpoint_source(config: Config) -> str:
    """The checkpoint that the configuration names; `ConfigError` when it names none."""
    if config.inject.mode == "none":
        raise ConfigError("inject.mode is none: set it to fit, auto, init, blend, replace, extend, trim or transfer")
    if config.inject.checkpoint is None:
        raise ConfigError(f"inject.mode is {config.inject.mode}, but inject.checkpoint names no model to inject into")
    return config.inject.checkpoint


def init_tokenizer(config: Config, source: str) -> LoadedTokenizer:
    """The corpus' tokenizer; a tokenizer beside the model's config must be the same."""
    if config.vocabulary.tokenizer is None:
        raise ConfigError("inject.mode is init, but vocabulary.tokenizer names no tokenizer")
    corpus = load_tokenizer(config.vocabulary.tokenizer)
    directory = ckpt.locate_checkpoint(source, weights=False)
    if (directory / "tokenizer.json").is_file():
        check_same_vocabulary(corpus.hash, load_tokenizer(str(directory)), config.vocabulary.tokenizer, source)
    return corpus


def check_same_vocabulary(found: str, tokenizer: LoadedTokenizer, what: str, source: str) -> None:
    """Raise `InputError` unless the factors' vocabulary is that of the checkpoint's tokenizer.

    Parameters
    ----------
    found : str
        Hash of the factors' vocabulary.
    tokenizer : LoadedTokenizer
        Of the checkpoint.
    what : str
        Where the factors' vocabulary comes from, for the message.
    source : str
        The checkpoint, for the message.
    """
    if found != tokenizer.hash:
        raise InputError(
            f"the factors' vocabulary ({what}) has the hash {found}, the tokenizer of {source} has {tokenizer.hash} "
            f"({len(tokenizer.tokens)} tokens): rows would land on the wrong tokens. Count and train with the "
            "checkpoint's own tokenizer (vocabulary.tokenizer)"
        )


def _init(config: Config, vectors: Vectors, factors: TokenFactors) -> tuple[BaseCheckpoint, EmbeddingEdit]:
    from wals_spark.checkpoints.from_scratch import initialise_model

    source = checkpoint_source(config)
    directory = ckpt.locate_checkpoint(source, weights=False)
    tokenizer = init_tokenizer(config, source)
    check_same_vocabulary(
        vocabulary_hash(vectors.tokens), tokenizer, "the factors table", str(config.vocabulary.tokenizer)
    )
    read = ckpt.read_config(directory)
    family = ckpt.FAMILIES[read["model_type"]]
    tensors, described = initialise_model(directory, config.seed)
    embedding = next(name for name in tensors if name.endswith(ckpt.EMBEDDING_SUFFIX))
    E = tensors[embedding].values()
    ckpt.check_tokenizer(tokenizer, len(E), source)
    protected = ckpt.protected_ids(tokenizer, read, len(E))
    scale = float(described.get("initializer_range", 0.02))
    edit = modes.initial_edit(factors, E, len(E), protected, scale, config.seed)
    files = [path for path in ckpt.companion_files(directory) if path.name != "config.json"]
    if not (directory / "tokenizer.json").is_file():
        files += _tokenizer_files(str(config.vocabulary.tokenizer))
    base = BaseCheckpoint(
        tensors=tensors,
        dropped=(),
        metadata={},
        config=described,
        embedding=embedding,
        head_bias=family.head_bias,
        protected=protected,
        files=tuple(files),
        texts={"config.json": json.dumps(described, indent=2, sort_keys=True) + "\n"},
        source={**ckpt.source_record(source, directory), "initialised_from_seed": config.seed},
    )
    return base, edit


def _tokenizer_files(source: str) -> list[Path]:
    path = Path(source).expanduser()
    if path.is_file():
        return [path]
    directory = ckpt.locate_checkpoint(source, "vocabulary.tokenizer", weights=False)
    return [file for file in ckpt.companion_files(directory) if file.name in ckpt.TOKENIZER_FILES]


def _inject(
    config: Config,
    vectors: Vectors,
    factors: TokenFactors,
    text: EncodedText,
    sums: FoldSums | None,
    recorded: RecordedChoices | None,
) -> tuple[BaseCheckpoint, EmbeddingEdit]:
    source = checkpoint_source(config)
    opened = ckpt.open_checkpoint(source)
    tokenizer = ckpt.checkpoint_tokenizer(opened.directory)
    ckpt.check_tokenizer(tokenizer, opened.vocab_size, source)
    check_same_vocabulary(vocabulary_hash(vectors.tokens), tokenizer, "the factors table", source)
    protected = ckpt.protected_ids(tokenizer, opened.config, opened.vocab_size)
    E = ckpt.embedding_values(opened)
    seen = recorded.frequencies if recorded else token_frequencies(config, factors, tokenizer, protected, text)
    proposal = propose_rows(factors, E, protected, seen, config.inject, config.seed, text.delta, sums)
    strengths = recorded.strengths if recorded else best_strengths(config, opened, proposal, factors, tokenizer, text)
    edit = edit_at_strengths(config, opened, proposal, strengths)
    base = base_of_checkpoint(opened, source, protected)
    return base, edit


def _with_texts(base: BaseCheckpoint, config: Mapping[str, Any], texts: Mapping[str, str]) -> BaseCheckpoint:
    """The base with another config.json and tokenizer; files that repeat the old vocabulary stay behind."""
    kept = ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
    return replace(
        base,
        config=config,
        files=tuple(
            path
            for path in base.files
            if (path.name in kept and path.name not in texts) or path in ckpt.licence_files(path.parent)
        ),
        texts={"config.json": json.dumps(config, indent=2, sort_keys=True) + "\n", **texts},
    )


def _trim(config: Config, vectors: Vectors) -> tuple[BaseCheckpoint, EmbeddingEdit]:
    source = checkpoint_source(config)
    opened = ckpt.open_checkpoint(source)
    tokenizer = ckpt.checkpoint_tokenizer(opened.directory)
    ckpt.check_tokenizer(tokenizer, opened.vocab_size, source)
    check_same_vocabulary(vocabulary_hash(vectors.tokens), tokenizer, "the vocabulary table", source)
    _check_named_tokens(opened, tokenizer)
    directory, size = opened.directory, len(tokenizer.tokens)
    described = {**default_token_ids(opened.config, size), **opened.config}
    special = np.array(sorted(tokenizer.special_ids | _token_ids_of_files(directory, described, size)), np.int64)
    content = read_json_object(directory / "tokenizer.json")
    kept = trim.kept_ids(content, vectors.counts, special.tolist(), config.inject.trim_min_count)
    trimmed = trim.trim_tokenizer(content, kept)
    check_tokenizer_json(trimmed, "trim")
    texts = {"tokenizer.json": json.dumps(trimmed, ensure_ascii=False)} | trim.renumber_tokenizer_files(directory, kept)
    if (directory / _GENERATION).is_file():
        generation = trim.renumber_ids(
            read_json_object(directory / _GENERATION), kept, size, str(directory / _GENERATION)
        )
        texts[_GENERATION] = json.dumps(generation, indent=2, sort_keys=True) + "\n"
    described = trim.renumber_ids(described, kept, size, str(directory / "config.json"))
    base = _with_texts(base_of_checkpoint(opened, source, special), described, texts)
    facts = {
        "tokens_before": len(tokenizer.tokens),
        "tokens_after": len(kept),
        "corpus_tokens_kept": float(vectors.counts[kept].sum() / max(int(vectors.counts.sum()), 1)),
        "min_count": config.inject.trim_min_count,
    }
    nothing = np.zeros(0, np.int64)
    rows = np.zeros((0, opened.hidden_size), np.float32)
    share = np.zeros(len(kept), np.float32)
    return base, EmbeddingEdit(nothing, rows, None, share, {}, facts, None, kept, {"counts": vectors.counts})


def _token_ids_of_files(directory: Path, config: Mapping[str, Any], size: int) -> set[int]:
    """Ids that config.json, generation_config.json and files of the tokenizer name."""
    found = {index for ids in config_token_ids(config, size, str(directory / "config.json")).values() for index in ids}
    path = directory / _GENERATION
    if path.is_file():
        named = config_token_ids(read_json_object(path), size, str(path))
        found |= {index for ids in named.values() for index in ids}
    return found | {index for index in trim.added_token_ids(directory) if index < size}


def _check_named_tokens(opened: ckpt.Checkpoint, tokenizer: LoadedTokenizer) -> None:
    """Raise `InputError` for a special token that tokenizer.json lacks: a load would give it the id of another."""
    for token, where in named_special_tokens(opened.directory).items():
        if tokenizer.tokenizer.token_to_id(token) is None:
            raise InputError(
                f"{opened.directory} names the special token {token!r} ({where}), tokenizer.json does not have it: "
                "transformers would append it under an id of its own. Save the tokenizer with "
                "AutoTokenizer.from_pretrained(...).save_pretrained(...), or remove the entry"
            )


def _extend(config: Config, vectors: Vectors, factors: TokenFactors) -> tuple[BaseCheckpoint, EmbeddingEdit]:
    source = checkpoint_source(config)
    opened = ckpt.open_checkpoint(source)
    old = ckpt.checkpoint_tokenizer(opened.directory)
    ckpt.check_tokenizer(old, opened.vocab_size, source)
    _check_named_tokens(opened, old)
    new = extended_tokenizer(config, old, source)
    check_same_vocabulary(vocabulary_hash(vectors.tokens), new, "the factors table", str(config.vocabulary.tokenizer))
    protected = ckpt.protected_ids(old, opened.config, opened.vocab_size)
    protected = protected[protected < len(old.tokens)]
    size = max(len(new.tokens), opened.vocab_size)
    ids = np.arange(len(old.tokens), len(new.tokens))
    origin = np.arange(size)
    origin[(origin >= opened.vocab_size) | np.isin(origin, ids)] = -1
    E = ckpt.embedding_values(opened)
    bias = opened.tensors[opened.head_bias].values() if opened.head_bias is not None else None
    edit = modes.extension_edit(
        factors, E, bias, extend.old_pieces(new, old), protected, origin, config.inject, config.seed
    )
    described = {**opened.config, "vocab_size": size}
    assert config.vocabulary.tokenizer is not None
    texts = {"tokenizer.json": _tokenizer_text(config.vocabulary.tokenizer, new)}
    return _with_texts(base_of_checkpoint(opened, source, protected), described, texts), edit


def _tokenizer_text(source: str, loaded: LoadedTokenizer) -> str:
    """The content of tokenizer.json, with its truncation and padding where it is a file."""
    path = Path(source).expanduser()
    path = path / "tokenizer.json" if path.is_dir() else path
    return path.read_text(encoding="utf-8") if path.is_file() else loaded.tokenizer.to_str()


def _transfer(config: Config, vectors: Vectors, factors: TokenFactors) -> tuple[BaseCheckpoint, EmbeddingEdit]:
    source = checkpoint_source(config)
    opened, new, plan = planned_transfer(config, source)
    check_same_vocabulary(vocabulary_hash(vectors.tokens), new, "the factors table", str(config.vocabulary.tokenizer))
    bias = opened.tensors[opened.head_bias].values() if opened.head_bias is not None else None
    E = ckpt.embedding_values(opened)
    edit = transfer_edit(plan, factors, E, bias, sorted(new.special_ids), config.inject, config.seed)
    texts = {**plan.texts, "tokenizer.json": _tokenizer_text(str(config.vocabulary.tokenizer), new)}
    base = base_of_checkpoint(opened, source, plan.protected)
    return replace(_with_texts(base, plan.config, texts), files=()), edit


def planned_transfer(config: Config, source: str) -> tuple[ckpt.Checkpoint, LoadedTokenizer, Transfer]:
    """The checkpoint, the corpus' tokenizer, and what they share."""
    if config.vocabulary.tokenizer is None:
        raise ConfigError("inject.mode is transfer, but vocabulary.tokenizer names no tokenizer to go to")
    opened = ckpt.open_checkpoint(source)
    old = ckpt.checkpoint_tokenizer(opened.directory)
    ckpt.check_tokenizer(old, opened.vocab_size, source)
    new = load_tokenizer(config.vocabulary.tokenizer)
    return opened, new, plan_transfer(opened, old, new, config.vocabulary.tokenizer)


def extended_tokenizer(config: Config, old: LoadedTokenizer, source: str) -> LoadedTokenizer:
    """The corpus' tokenizer, which must have the checkpoint's tokens under their ids, and more."""
    if config.vocabulary.tokenizer is None:
        raise ConfigError("inject.mode is extend, but vocabulary.tokenizer names no extended tokenizer")
    new = load_tokenizer(config.vocabulary.tokenizer)
    if new.tokens[: len(old.tokens)] != old.tokens or len(new.tokens) == len(old.tokens):
        raise InputError(
            f"inject.mode is extend: {config.vocabulary.tokenizer} has {len(new.tokens)} tokens, expected the "
            f"{len(old.tokens)} of {source} under the same ids and new ones after them; make it with `wals-spark "
            "extend-tokenizer`"
        )
    return new


def token_frequencies(
    config: Config, factors: TokenFactors, tokenizer: LoadedTokenizer, protected: np.ndarray, text: EncodedText
) -> TokenFrequencies:
    """n_i and c_i: counted in general batches where there are some, else n_i by ``inject.exposure``.

    Parameters
    ----------
    config : Config
    factors : TokenFactors
        Their counts are those of the whole corpus.
    tokenizer : LoadedTokenizer
        Of the checkpoint.
    protected : int64 array of shape (p,)
    text : EncodedText

    Returns
    -------
    TokenFrequencies
    """
    counts = factors.counts
    if text.general:
        general = frequency.count_encoded_tokens(text.general, len(counts))
        return TokenFrequencies(general.astype(np.float64), np.maximum(counts - general, 0).astype(np.float64))
    exposure = frequency.exposure_counts(config.inject.exposure, counts, tokenizer, protected)
    return TokenFrequencies(exposure, counts.astype(np.float64))


def strengths_need_text(config: Config, has_head: bool) -> bool:
    """Whether strengths are chosen on text."""
    inject = config.inject
    if inject.mode == "init":
        return False
    rows = inject.mode == "blend" and (inject.strengths == "text" or (inject.strengths == "auto" and has_head))
    return rows or inject.head_bias == "auto" or inject.shift == "auto"


def best_strengths(
    config: Config,
    opened: ckpt.Checkpoint,
    proposal: RowProposal,
    factors: TokenFactors,
    tokenizer: LoadedTokenizer,
    text: EncodedText,
) -> strength_search.Strengths:
    """The strengths that are given, fitted, or chosen on text.

    Parameters
    ----------
    config : Config
    opened : Checkpoint
    proposal : RowProposal
    factors : TokenFactors
    tokenizer : LoadedTokenizer
        Of the checkpoint.
    text : EncodedText

    Returns
    -------
    Strengths

    Raises
    ------
    GateError
        No strength gains anything clear on text.
    """
    inject = config.inject
    has_head = opened.head_bias is not None
    if strengths_need_text(config, has_head) and has_head:
        return strength_search.search_strengths(config, opened, proposal, factors, special_ids(tokenizer), text.domain)
    assert inject.head_bias != "auto"
    assert inject.shift != "auto"
    given = inject.head_bias if has_head else 0.0
    return strength_search.Strengths(proposal.variances.half_exposure, given, inject.shift)


def edit_at_strengths(
    config: Config, opened: ckpt.Checkpoint, proposal: RowProposal, strengths: strength_search.Strengths
) -> EmbeddingEdit:
    """The proposal as an edit, with what it was computed from.

    Parameters
    ----------
    config : Config
    opened : Checkpoint
    proposal : RowProposal
    strengths : Strengths

    Returns
    -------
    EmbeddingEdit
    """
    inject = config.inject
    bias = opened.tensors[opened.head_bias].values() if opened.head_bias is not None else None
    share = proposal.full_shares() if inject.mode == "replace" else proposal.shares(strengths.half_exposure)
    moved = None
    if strengths.head_bias > 0 and bias is not None:
        goal = proposal.frequencies.towards(inject.bias_goal)
        moved = adjusted_head_bias(bias, goal, proposal.protected, strengths.head_bias)
    facts = {
        "strengths": {
            "half_exposure": strengths.half_exposure,
            "head_bias": strengths.head_bias,
            "head_bias_target": inject.bias_goal,
            "shift": strengths.shift,
            **strengths.facts,
        }
    }
    edit = edit_of_proposal(proposal, ckpt.embedding_values(opened), share, moved, facts, strengths.shift)
    inputs = {"exposure": proposal.frequencies.exposure, "corpus_counts": proposal.frequencies.corpus}
    if strengths.shift > 0 and proposal.delta is not None:
        inputs["delta"] = proposal.delta
    return replace(edit, inputs=inputs)
