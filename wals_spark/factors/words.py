"""Between token strings and what people write: display, and finding a word among the tokens.

Sub-word vocabularies mark where a word starts: byte-level BPE by a leading ``Ġ`` (each character
standing for one byte), SentencePiece by ``▁``, WordPiece marks the continuation by ``##``. Vocabularies of
words mark nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Literal

Style = Literal["byte_level", "sentencepiece", "wordpiece", "words"]

_SHARE = 0.02
"""A vocabulary is of the style whose mark at least this share of its tokens carries."""
CONTINUATION = "…"
"""Shown before a piece that does not start a word."""


def style_of(tokens: Sequence[str]) -> Style:
    """Which marks a vocabulary uses."""
    threshold = max(1.0, _SHARE * len(tokens))
    marks: tuple[tuple[str, Style], ...] = (("Ġ", "byte_level"), ("▁", "sentencepiece"), ("##", "wordpiece"))
    for mark, style in marks:
        if sum(token.startswith(mark) for token in tokens) >= threshold:
            return style
    return "words"


@cache
def _byte_of() -> dict[str, int]:
    """The byte-level alphabet: printable Latin-1 bytes stand for themselves, the rest for U+0100 and up, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in printable)
    table.update({chr(0x100 + number): byte for number, byte in enumerate(others)})
    return table


@cache
def _character_of() -> dict[int, str]:
    return {byte: character for character, byte in _byte_of().items()}


def to_byte_level(text: str) -> str:
    """How byte-level BPE spells a text: one character per UTF-8 byte, a space becoming ``Ġ``."""
    return "".join(_character_of()[byte] for byte in text.encode("utf-8", "surrogatepass"))


def readable(token: str, style: Style) -> str:
    """A token for people: no marks, ``…`` before what continues a word, control characters and spaces visible.

    Bytes that are no UTF-8 on their own are shown as ``<C3>``. Special tokens stay as they are.
    """
    if style == "byte_level" and all(character in _byte_of() for character in token):
        text = bytes(_byte_of()[character] for character in token).decode("utf-8", "backslashreplace")
        text = _hex_to_angles(text) if "\\x" in text else text
        return _marked(text, starts=text.startswith(" "), plain=text.removeprefix(" "))
    if style == "sentencepiece":
        return _marked(token, starts=token.startswith("▁"), plain=token.removeprefix("▁").replace("▁", " "))
    if style == "wordpiece":
        return _marked(token, starts=not token.startswith("##"), plain=token.removeprefix("##"))
    return _visible(token)


def _marked(text: str, *, starts: bool, plain: str) -> str:
    """The piece without its mark; punctuation and special tokens need no sign of continuation."""
    shown = _visible(plain)
    special = text.startswith("<") and text.endswith(">")
    continues = not starts and not special and plain[:1].isalnum()
    return f"{CONTINUATION}{shown}" if continues else shown


def _visible(text: str) -> str:
    if not text:
        return "␣"
    if text.isspace() and set(text) == {" "}:
        return "␣" * len(text)
    table = {"\n": "⏎", "\t": "⇥", "\r": "␍"}
    return "".join(
        table.get(c, c if c.isprintable() or c == " " else f"<U+{ord(c):04X}>" if ord(c) > 0xFF else f"<{ord(c):02X}>")
        for c in text
    )


def _hex_to_angles(text: str) -> str:
    parts = text.split("\\x")
    return parts[0] + "".join(f"<{part[:2].upper()}>{part[2:]}" for part in parts[1:])


class WordLookup:
    """Finds words among the tokens of a vocabulary.

    In a sub-word vocabulary a word is found where one token is the whole word, with the mark of a word's
    start; the bare piece, which mostly stands inside other words, comes second. The case as given comes
    first, then lower case, then a capital first letter.

    Parameters
    ----------
    tokens : sequence of str
        Token strings by id.
    """

    def __init__(self, tokens: Sequence[str]) -> None:
        self.style: Style = style_of(tokens)
        self._ids: dict[str, int] = {}
        for index, token in enumerate(tokens):
            self._ids.setdefault(token, index)

    def token(self, token: str) -> int | None:
        """The id of an exact token string."""
        return self._ids.get(token)

    def find(self, word: str) -> int | None:
        """The id of the token that is this word, or None."""
        for variant in dict.fromkeys((word, word.lower(), word[:1].upper() + word[1:])):
            for spelling in self._spellings(variant):
                index = self._ids.get(spelling)
                if index is not None:
                    return index
        return None

    def _spellings(self, word: str) -> tuple[str, ...]:
        if self.style == "byte_level":
            return to_byte_level(f" {word}"), to_byte_level(word)
        if self.style == "sentencepiece":
            return f"▁{word}", word
        return (word,)

    def starts_word(self, token: str) -> bool:
        """Whether a token carries the mark of a word's start; always, where there are no marks."""
        if self.style == "byte_level":
            return token.startswith("Ġ")
        if self.style == "sentencepiece":
            return token.startswith("▁")
        return self.style == "words" or not token.startswith("##")
