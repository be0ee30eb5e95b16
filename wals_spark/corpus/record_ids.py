"""Ids that documents bring along: text or integers, never empty, valid UTF-8."""

from __future__ import annotations

from wals_spark.config import CorpusConfig
from wals_spark.errors import InputError


def text_id(value: str | bytes, where: str, config: CorpusConfig) -> str:
    """An id as text.

    Parameters
    ----------
    value : str or bytes
        A str may hold lone surrogates in place of bytes that are not UTF-8.
    where : str
        File and place, for messages.
    config : CorpusConfig

    Returns
    -------
    str

    Raises
    ------
    InputError
        An empty id, or one that is not UTF-8.
    """
    hint = "; correct it, or set corpus.corrupt_files=skip to leave the document out and count it"
    try:
        text = value.decode() if isinstance(value, bytes) else value
        text.encode()
    except UnicodeError:
        raise InputError(
            f"{where}: the id {value!a} (corpus.id_column {config.id_column!r}) is not UTF-8{hint}"
        ) from None
    if not text:
        raise InputError(f"{where}: the id (corpus.id_column {config.id_column!r}) is empty{hint}")
    return text
