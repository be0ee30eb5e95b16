"""Factors as files for other tools: word2vec text and binary, safetensors, npy.

==================  =========================================================================================
format              files
==================  =========================================================================================
word2vec            ``NAME.txt``: ``V k``, then ``token x_1 ... x_k`` per line (gensim, fastText, ...)
word2vec_binary     ``NAME.bin``: the same with float32 little-endian vectors
safetensors         ``NAME.safetensors``: ``vectors`` (V, k) float32, ``counts`` int64, ``bias`` float32
npy                 ``NAME.npy``: (V, k) float32
==================  =========================================================================================

The first two go by falling count and leave out tokens below `min_count`, since their readers take the
first rows as the most frequent words. The last two keep every id in its place; ``tokens.json`` beside
them is the list of tokens by id.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterator, Sequence

import numpy as np

from wals_spark import storage
from wals_spark.errors import InputError
from wals_spark.factors.store import Vectors

ROWS_PER_WRITE = 4096
_ESCAPED = re.compile(r"\\(\\|u[0-9a-f]{4}|U[0-9a-f]{8})")


def escape(token: str) -> str:
    r"""White space as ``\uXXXX`` (``\UXXXXXXXX`` above U+FFFF), and ``\`` as ``\\`` so that it can be undone."""
    return "".join(
        "\\\\" if c == "\\" else (f"\\u{ord(c):04x}" if ord(c) <= 0xFFFF else f"\\U{ord(c):08x}") if c.isspace() else c
        for c in token
    )


def unescape(token: str) -> str:
    """The inverse of `escape`."""
    return _ESCAPED.sub(lambda found: "\\" if found[1] == "\\" else chr(int(found[1][1:], 16)), token)


def word2vec_tokens(tokens: Sequence[str], white_space: str) -> list[str]:
    """Tokens as the word2vec formats can hold them.

    Parameters
    ----------
    white_space : {"refuse", "escape"}
        The formats separate by a space, so a token cannot hold one; ``escape`` writes all tokens through
        `escape` where at least one needs it.

    Raises
    ------
    InputError
        An empty token, one that is no UTF-8, or with ``refuse`` one that holds white space.
    """
    bad = [token for token in tokens if not token or any(c.isspace() for c in token)]
    if "" in bad:
        raise InputError("an empty token cannot be written as word2vec; use safetensors or npy")
    broken = [token for token in tokens if any("\ud800" <= c <= "\udfff" for c in token)]
    if broken:
        raise InputError(f"tokens that are no Unicode text cannot be written as word2vec: {broken[:4]!r}")
    if bad and white_space == "refuse":
        raise InputError(
            f"{len(bad)} tokens hold white space, which the word2vec formats cannot ({', '.join(map(repr, bad[:4]))}): "
            "set export.white_space to escape, or export safetensors or npy"
        )
    return [escape(token) for token in tokens] if bad else list(tokens)


def by_count(vectors: Vectors, min_count: int) -> np.ndarray:
    """Ids of the tokens to write, most frequent first, ties by id."""
    kept = np.nonzero(vectors.counts >= min_count)[0]
    return kept[np.argsort(-vectors.counts[kept], kind="stable")]


def export_word2vec(path: str, tokens: Sequence[str], matrix: np.ndarray, *, binary: bool) -> None:
    """Write one of the word2vec formats; the file appears under its name only when it is whole.

    The text keeps 9 significant digits, which give the same fp32 back.

    Parameters
    ----------
    path : str
    tokens : sequence of str
    matrix : float32 array of shape (V, k)
    binary : bool
        float32 little-endian instead of text.
    """

    def chunks() -> Iterator[bytes]:
        yield f"{len(tokens)} {matrix.shape[1]}\n".encode()
        for start in range(0, len(tokens), ROWS_PER_WRITE):
            part = np.ascontiguousarray(matrix[start : start + ROWS_PER_WRITE], "<f4")
            names = tokens[start : start + ROWS_PER_WRITE]
            if binary:
                yield b"".join(
                    name.encode() + b" " + row.tobytes() + b"\n" for name, row in zip(names, part, strict=True)
                )
            else:
                buffer = io.StringIO()
                for name, row in zip(names, part.tolist(), strict=True):
                    buffer.write(name)
                    buffer.write("".join([f" {x:.9g}" for x in row]))
                    buffer.write("\n")
                yield buffer.getvalue().encode()

    write_stream(path, chunks())


def write_stream(path: str, chunks: Iterator[bytes]) -> None:
    """Write a file of any size piece by piece, under a temporary name until it is whole."""
    temporary = f"{path}.part"
    fs, target = storage.filesystem(temporary)
    storage.make_directory(path.rpartition("/")[0])
    with storage.explained(f"cannot write {path}"):
        with fs.open_output_stream(target) as stream:
            for chunk in chunks:
                stream.write(chunk)
        storage.remove(path)
        storage.move(temporary, path)


def export_safetensors(path: str, vectors: Vectors, metadata: dict[str, str]) -> None:
    """Write ``vectors``, ``counts`` and ``bias`` with every id in its place; the same bytes from the same input.

    The library's writer puts the keys of `metadata` into an order that varies from run to run, so the header is
    written again with its keys sorted.
    """
    from safetensors.numpy import save

    tensors: dict[str, np.ndarray] = {
        "vectors": np.ascontiguousarray(vectors.matrix, np.float32),
        "counts": np.ascontiguousarray(vectors.counts, np.int64),
        "bias": np.ascontiguousarray(vectors.bias, np.float32),
    }
    content = save(tensors)
    start = 8 + int.from_bytes(content[:8], "little")
    header = {"__metadata__": dict(sorted(metadata.items())), **json.loads(content[8:start])}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    storage.write_bytes(path, len(text).to_bytes(8, "little") + text + content[start:])


def export_npy(path: str, matrix: np.ndarray) -> None:
    """Write the matrix alone."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(matrix, np.float32), allow_pickle=False)
    storage.write_bytes(path, buffer.getvalue())


def export_tokens(path: str, tokens: Sequence[str]) -> None:
    """Write the tokens by id as a JSON list."""
    storage.write_bytes(path, json.dumps(list(tokens), ensure_ascii=True).encode())


def sha256(path: str) -> str:
    """SHA-256 of a file, read piece by piece."""
    digest = hashlib.sha256()
    fs, target = storage.filesystem(path)
    with fs.open_input_stream(target) as stream:
        while piece := stream.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()


SUFFIX = {"word2vec": ".txt", "word2vec_binary": ".bin", "safetensors": ".safetensors", "npy": ".npy"}


def export_vectors(
    directory: str,
    name: str,
    vectors: Vectors,
    formats: Sequence[str],
    *,
    min_count: int,
    white_space: str,
    metadata: dict[str, str],
) -> list[str]:
    """Write the vectors in every format asked for.

    Parameters
    ----------
    directory : str
        Path or URI.
    name : str
        Stem of the file names.
    vectors : Vectors
    formats : sequence of {"word2vec", "word2vec_binary", "safetensors", "npy"}
    min_count : int
        The word2vec formats leave out rarer tokens.
    white_space : {"refuse", "escape"}
        See `word2vec_tokens`.
    metadata : dict of str -> str
        Put into the safetensors header.

    Returns
    -------
    list of str
        The paths written.

    Raises
    ------
    InputError
        No token is frequent enough, or a format cannot hold the tokens.
    """
    paths = []
    if {"word2vec", "word2vec_binary"} & set(formats):
        order = by_count(vectors, min_count)
        if len(order) == 0:
            raise InputError(f"no token has a count of {min_count} or more: lower export.min_count")
        tokens = word2vec_tokens([vectors.tokens[i] for i in order], white_space)
        matrix = vectors.matrix[order]  # (kept, k)
    for kind in formats:
        path = storage.join(directory, name + SUFFIX[kind])
        if kind in ("word2vec", "word2vec_binary"):
            export_word2vec(path, tokens, matrix, binary=kind == "word2vec_binary")
        elif kind == "safetensors":
            export_safetensors(path, vectors, metadata)
        else:
            export_npy(path, vectors.matrix)
        paths.append(path)
    if {"safetensors", "npy"} & set(formats):
        path = storage.join(directory, "tokens.json")
        export_tokens(path, vectors.tokens)
        paths.append(path)
    return paths
