r"""Words that deserve a token of their own: frequent in the corpus, and split by the tokenizer.

A word is a run of letters. Its score is the number of tokens that one for it would save::

    saved = count * (pieces - 1)

with the pieces of the word behind a space. Words that the tokenizer's normalisation makes equal are counted
together. Left out are words with unknown pieces, and words of a byte-level tokenizer whose first pieces end inside a
character, which would need tokens that are no text.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from wals_spark import schemas
from wals_spark.errors import InputError
from wals_spark.stage import Context
from wals_spark.tokenizer import LoadedTokenizer

WORD = r"\p{L}+"
_PYTHON_WORD = re.compile(r"[^\W\d_]+")
MOST_PIECES = 12
"""Words of more pieces are names of files, sequences or noise."""
_BATCH = 10_000
_BROKEN = "�"


@dataclass(frozen=True)
class CandidateWord:
    """A candidate for a token of its own.

    Attributes
    ----------
    text : str
    count : int
        Occurrences in the corpus; 0 for a listed word that was not counted.
    pieces : tuple of int
        Ids that the tokenizer splits it into.
    """

    text: str
    count: int
    pieces: tuple[int, ...]

    @property
    def saved(self) -> int:
        """Tokens that the corpus would save."""
        return self.count * (len(self.pieces) - 1)


def count_words_of_documents(context: Context, batches: Sequence[str], min_count: int) -> dict[str, int]:
    """Words of the documents that are counted (held-out ones are not), by Spark; rarer ones than `min_count` left out.

    Raises
    ------
    InputError
        A batch whose documents are not in the warehouse.
    """
    from pyspark.sql import functions as F

    known = context.manifests.keys("corpus")
    wanted = known if tuple(batches) == ("all",) else list(batches)
    missing = sorted(set(wanted) - set(known))
    if missing or not wanted:
        raise InputError(
            f"the warehouse has no documents of {', '.join(missing) or 'any batch'} (it has "
            f"{', '.join(known) or 'none'}): run `wals-spark corpus` first, or name other batches"
        )
    frame = context.tables.read(schemas.DOCUMENTS).where(F.col("batch_id").isin(wanted) & ~F.col("held_out"))
    words = frame.select(F.explode(F.regexp_extract_all("text", F.lit(WORD), F.lit(0))).alias("word"))
    counted = words.groupBy("word").count().where(F.col("count") >= min_count)
    return {row["word"]: int(row["count"]) for row in counted.toLocalIterator()}


def sample_documents(context: Context, batches: Sequence[str], most: int) -> list[str]:
    """Some documents of batches, counted and held-out ones in equal numbers."""
    from pyspark.sql import functions as F

    frame = context.tables.read(schemas.DOCUMENTS)
    if tuple(batches) != ("all",):
        frame = frame.where(F.col("batch_id").isin(list(batches)))
    parts = (frame.where(F.col("held_out") == held_out).limit(most // 2) for held_out in (False, True))
    return [row["text"] for part in parts for row in part.select("text").toLocalIterator()]


def sample_lines(paths: Sequence[str], most: int) -> list[str]:
    """The first lines of UTF-8 text files that are not empty."""
    found: list[str] = []
    for path in paths:
        with open(path, encoding="utf-8") as lines:
            found += [line.rstrip("\n") for line in itertools.islice(lines, most) if line.strip()]
    return found[:most]


def count_words_of_files(paths: Sequence[str]) -> dict[str, int]:
    """Words of UTF-8 text files, line by line.

    Raises
    ------
    InputError
        A file that is not there or not UTF-8.
    """
    counts: Counter[str] = Counter()
    for path in paths:
        try:
            with open(path, encoding="utf-8") as lines:
                for line in lines:
                    counts.update(_PYTHON_WORD.findall(line))
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--text: cannot read {path} as UTF-8 text: {error}") from error
    return dict(counts)


def split_words(counts: Mapping[str, int], tokenizer: LoadedTokenizer, *, min_count: int = 0) -> list[CandidateWord]:
    """The words that take two pieces or more, most saved tokens first.

    Parameters
    ----------
    counts : dict of str to int
        Occurrences by word.
    tokenizer : LoadedTokenizer
        The one to be extended.
    min_count : int
        Rarer words are left out.

    Returns
    -------
    list of CandidateWord
    """
    texts = list(counts)
    total: Counter[tuple[int, ...]] = Counter()
    spelled: dict[tuple[int, ...], str] = {}
    for begin in range(0, len(texts), _BATCH):
        part = texts[begin : begin + _BATCH]
        encodings = tokenizer.tokenizer.encode_batch([f" {text}" for text in part], add_special_tokens=False)
        for text, encoding in zip(part, encodings, strict=True):
            ids = tuple(encoding.ids)
            if 2 <= len(ids) <= MOST_PIECES and not tokenizer.special_ids.intersection(ids):
                total[ids] += counts[text]
                spelled.setdefault(ids, text)
    found = [CandidateWord(spelled[ids], count, ids) for ids, count in total.items() if count >= min_count]
    found.sort(key=lambda word: (-word.saved, word.text))
    return [word for word in found if _is_text(tokenizer, word.pieces)]


def _is_text(tokenizer: LoadedTokenizer, ids: tuple[int, ...]) -> bool:
    """Whether the word, and every beginning of it of two pieces or more, ends with a whole character."""
    return not any(_BROKEN in tokenizer.tokenizer.decode(list(ids[:end])) for end in range(2, len(ids) + 1))


def read_word_list(path: str) -> list[str]:
    """The words of a file, one per line; empty lines and lines that start with # are ignored.

    Raises
    ------
    InputError
        No such file, a line of several words, or no word at all.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(f"--word-list: there is no file {path}")
    lines = (line.strip() for line in file.read_text(encoding="utf-8").splitlines())
    words = [line for line in lines if line and not line.startswith("#")]
    several = [word for word in words if len(word.split()) > 1]
    if several or not words:
        found = f"the line {several[0]!r}" if several else "no word"
        raise InputError(f"--word-list: {path} has {found}, expected one word per line")
    return words


def split_word_list(words: Iterable[str], tokenizer: LoadedTokenizer) -> tuple[list[CandidateWord], list[str]]:
    """The words of a list that can be added, in its order, and those that cannot: one token already, or no text."""
    order = list(dict.fromkeys(words))
    able = {word.text: word for word in split_words(dict.fromkeys(order, 0), tokenizer)}
    return [able[text] for text in order if text in able], [text for text in order if text not in able]
