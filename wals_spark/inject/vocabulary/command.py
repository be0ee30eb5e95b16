"""A checkpoint's tokenizer with words added: from a corpus or a list to a directory for ``inject.mode: extend``."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from wals_spark import storage
from wals_spark.checkpoints import atomic_directory
from wals_spark.checkpoints import checkpoint as ckpt
from wals_spark.config import Config
from wals_spark.errors import ConfigError, InputError
from wals_spark.inject.vocabulary.candidates import (
    CandidateWord,
    count_words_of_documents,
    count_words_of_files,
    read_word_list,
    split_word_list,
    split_words,
)
from wals_spark.inject.vocabulary.extend import extend_tokenizer
from wals_spark.stage import Context
from wals_spark.tokenizer import LoadedTokenizer

logger = logging.getLogger(__name__)


def write_tokenizer(
    checkpoint: Path, tokenizer: LoadedTokenizer, words: Sequence[CandidateWord], output: str
) -> list[str]:
    """A directory with the checkpoint's tokenizer, extended, and ``words.tsv``: what was chosen and why.

    Parameters
    ----------
    checkpoint : its directory
    tokenizer : its tokenizer
    words : to be added
    output : a directory that does not exist yet

    Returns
    -------
    list of str
        The new tokens by id.

    Raises
    ------
    InputError
        `output` exists, or the tokenizer cannot be extended.
    """
    if storage.exists(output):
        raise InputError(f"--output: {output} exists; choose another or remove it")
    content = json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))
    extended, added = extend_tokenizer(content, [[tokenizer.tokens[index] for index in word.pieces] for word in words])
    with atomic_directory.staged_directory(output, replace=False) as staging:
        (staging / "tokenizer.json").write_text(json.dumps(extended, ensure_ascii=False), encoding="utf-8")
        described = checkpoint / "tokenizer_config.json"
        if described.is_file():
            shutil.copyfile(described, staging / described.name)
        with open(staging / "words.tsv", "w", encoding="utf-8") as table:
            table.write("word\tcount\tpieces\tsaved\n")
            for word in words:
                pieces = " ".join(tokenizer.tokens[index] for index in word.pieces)
                table.write(f"{word.text}\t{word.count}\t{pieces}\t{word.saved}\n")
    return added


def run_extend_tokenizer(
    config: Config,
    output: str,
    *,
    most: int,
    min_count: int,
    batches: Sequence[str],
    texts: Sequence[str],
    listing: str | None,
) -> str:
    """What ``wals-spark extend-tokenizer`` does; returns a sentence on what was written.

    Parameters
    ----------
    config : Config
        ``inject.checkpoint`` is the model; the warehouse holds the documents.
    output : directory to write
    most, min_count : words to choose, of at least so many occurrences
    batches : choose from their documents
    texts : choose from these text files instead
    listing : take the words of this file instead

    Raises
    ------
    ConfigError, InputError
    """
    if config.inject.checkpoint is None:
        raise ConfigError("extend-tokenizer: which model? Give --checkpoint, or inject.checkpoint in the configuration")
    directory = ckpt.locate_checkpoint(config.inject.checkpoint, weights=False)
    tokenizer = ckpt.checkpoint_tokenizer(directory)
    left: list[str] = []
    if listing is not None:
        words, left = split_word_list(read_word_list(listing), tokenizer)
    else:
        words = split_words(_count(config, batches, texts, min_count), tokenizer, min_count=min_count)[:most]
    if not words:
        raise InputError(
            f"no word can be added: what {'the list has' if listing else f'was seen {min_count} times or more'} is one "
            "token already, or no text; give more text, other words or a lower --min-count"
        )
    added = write_tokenizer(directory, tokenizer, words, output)
    if left:
        logger.warning("left out, one token already or no text: %s", ", ".join(left))
    saved = sum(word.saved for word in words)
    return (
        f"{len(words):,} words, {len(added):,} new tokens"
        + (f", which save {saved:,} tokens of the corpus" if saved else "")
        + f": {output}"
    )


def _count(config: Config, batches: Sequence[str], texts: Sequence[str], min_count: int) -> dict[str, int]:
    if texts:
        return count_words_of_files(texts)
    context = Context(config)
    try:
        return count_words_of_documents(context, batches, min_count)
    finally:
        context.stop()
