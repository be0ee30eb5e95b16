"""``wals-spark extend-tokenizer``: a checkpoint's tokenizer with words of a corpus or a list, for mode ``extend``."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from wals_spark.checkpoints import atomic_directory
from wals_spark.checkpoints import checkpoint as ckpt
from wals_spark.checkpoints.json_file import read_json_object
from wals_spark.checkpoints.output_check import OutputOption, check_output
from wals_spark.checkpoints.special_tokens import NAMING_FILES
from wals_spark.config import Config
from wals_spark.errors import ConfigError, InputError
from wals_spark.inject.vocabulary.additions import Extension, build_extension, with_longer_words
from wals_spark.inject.vocabulary.candidates import (
    count_words_of_documents,
    count_words_of_files,
    read_word_list,
    sample_documents,
    sample_lines,
    split_word_list,
    split_words,
)
from wals_spark.inject.vocabulary.segmentation import compare_segmentation, pieces_of
from wals_spark.inject.vocabulary.tokenizer_json import tokenizer_model_type
from wals_spark.stage import Context
from wals_spark.tokenizer import LoadedTokenizer

logger = logging.getLogger(__name__)

SAMPLE_DOCUMENTS = 500
"""Documents that are segmented before and after, to say how many change."""
_RARER = 10
"""For WordPiece, words down to this part of the least count are looked at as longer words of others."""
_OPTION = OutputOption("--output", None, "--checkpoint")


def write_tokenizer(checkpoint: Path, tokenizer: LoadedTokenizer, extension: Extension, output: str) -> None:
    """Write a directory with the checkpoint's tokenizer, extended, and ``words.tsv``, a line per word with its reason.

    Parameters
    ----------
    checkpoint : Path
        Its directory.
    tokenizer : LoadedTokenizer
        Its tokenizer.
    extension : Extension
    output : str
        A directory that does not exist yet.

    Raises
    ------
    InputError
        `output` exists.
    """
    with atomic_directory.staged_directory(output, replace=False, option=_OPTION) as staging:
        (staging / "tokenizer.json").write_text(json.dumps(extension.content, ensure_ascii=False), encoding="utf-8")
        for name in (*NAMING_FILES, "added_tokens.json"):
            if (checkpoint / name).is_file():
                shutil.copyfile(checkpoint / name, staging / name)
        with open(staging / "words.tsv", "w", encoding="utf-8") as table:
            table.write("word\tcount\tpieces\tsaved\n")
            for word in extension.words:
                pieces = " ".join(tokenizer.tokens[index] for index in word.pieces)
                table.write(f"{word.text}\t{word.count}\t{pieces}\t{word.saved}\n")


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
    content = read_json_object(directory / "tokenizer.json")
    greedy = tokenizer_model_type(content) == "WordPiece"
    if listing is not None:
        words, left = split_word_list(read_word_list(listing), tokenizer)
        left_out = dict.fromkeys(left, "one token already or no text")
        documents: list[str] = []
        counted, most = words, len(words)
    else:
        counts, documents = _count(config, batches, texts, max(1, min_count // _RARER) if greedy else min_count)
        counted, left_out = split_words(counts, tokenizer), {}
        words = [word for word in counted if word.count >= min_count]
    if greedy:
        words, many = with_longer_words(words, counted, tokenizer, most)
        left_out |= many
    words = words[:most]
    if not words:
        raise InputError(
            f"no word can be added: what {'the list has' if listing else f'was seen {min_count} times or more'} is one "
            "token already, or no text; give more text, other words or a lower --min-count"
        )
    extension = build_extension(content, tokenizer, words)
    write_tokenizer(directory, tokenizer, extension, output)
    for text, why in (left_out | extension.left_out).items():
        logger.warning("left out: %s: %s", text, why)
    saved = sum(word.saved for word in extension.words)
    saves = f", which save {saved:,} tokens of the corpus" if saved else ""
    changes = _changes(tokenizer, extension, documents)
    return f"{len(extension.words):,} words, {len(extension.added):,} new tokens{saves}{changes}: {output}"


def _changes(tokenizer: LoadedTokenizer, extension: Extension, documents: Sequence[str]) -> str:
    """How many documents of a sample are segmented otherwise, and how many of them outside of new tokens."""
    if not documents:
        return ""
    new = Tokenizer.from_str(json.dumps(extension.content))
    new.no_truncation()
    new.no_padding()
    origin = np.concatenate([np.arange(len(tokenizer.tokens)), np.full(len(extension.added), -1)])
    found = compare_segmentation(pieces_of(tokenizer.tokenizer), pieces_of(new), origin, documents)
    return (
        f"; of {found.texts} documents {found.texts - found.unchanged} are segmented otherwise, "
        f"{len(found.elsewhere)} outside of new tokens"
    )


def _count(
    config: Config, batches: Sequence[str], texts: Sequence[str], min_count: int
) -> tuple[dict[str, int], list[str]]:
    """Words of the corpus with their counts, and some of its documents (of text files: lines)."""
    if texts:
        return count_words_of_files(texts), sample_lines(texts, SAMPLE_DOCUMENTS)
    context = Context(config)
    try:
        counts = count_words_of_documents(context, batches, min_count)
        return counts, sample_documents(context, batches, SAMPLE_DOCUMENTS)
    finally:
        context.stop()
