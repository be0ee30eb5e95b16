"""``wals-spark extend-tokenizer``: a checkpoint's tokenizer with words of a corpus or a list, for mode ``extend``."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from wals_spark.checkpoints import atomic_directory
from wals_spark.checkpoints import checkpoint as ckpt
from wals_spark.checkpoints.output_check import OutputOption, check_output
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

_OPTION = OutputOption("--output", None, "--checkpoint")


def write_tokenizer(
    checkpoint: Path, tokenizer: LoadedTokenizer, words: Sequence[CandidateWord], output: str
) -> list[str]:
    """Write a directory with the checkpoint's tokenizer, extended, and ``words.tsv``, a line per word with its reason.

    Parameters
    ----------
    checkpoint : Path
        Its directory.
    tokenizer : LoadedTokenizer
        Its tokenizer.
    words : sequence of CandidateWord
        To be added.
    output : str
        A directory that does not exist yet.

    Returns
    -------
    list of str
        The new tokens by id.

    Raises
    ------
    InputError
        `output` exists, or the tokenizer cannot be extended.
    """
    check_output(output, replace=False, option=_OPTION)
    content = json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))
    extended, added = extend_tokenizer(content, [[tokenizer.tokens[index] for index in word.pieces] for word in words])
    with atomic_directory.staged_directory(output, replace=False, option=_OPTION) as staging:
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
    """Choose words and write the extended tokenizer.

    Parameters
    ----------
    config : Config
        ``inject.checkpoint`` is the model; the warehouse has the documents.
    output : str
        Directory to write.
    most : int
        Words to choose.
    min_count : int
        Rarer words are left out.
    batches : sequence of str
        Choose from their documents.
    texts : sequence of str
        Choose from these text files instead.
    listing : str or None
        Take the words of this file instead.

    Returns
    -------
    str
        A sentence on what was written.

    Raises
    ------
    ConfigError, InputError
        No checkpoint is named; no word can be added, or `output` exists.
    """
    if config.inject.checkpoint is None:
        raise ConfigError("extend-tokenizer: which model? Give --checkpoint, or inject.checkpoint in the configuration")
    check_output(output, replace=False, inputs=[config.inject.checkpoint], option=_OPTION)
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
    saves = f", which save {saved:,} tokens of the corpus" if saved else ""
    return f"{len(words):,} words, {len(added):,} new tokens{saves}: {output}"


def _count(config: Config, batches: Sequence[str], texts: Sequence[str], min_count: int) -> dict[str, int]:
    if texts:
        return count_words_of_files(texts)
    context = Context(config)
    try:
        return count_words_of_documents(context, batches, min_count)
    finally:
        context.stop()
