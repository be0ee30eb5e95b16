r"""Statistics of text for an embedding: token frequencies, the second moment of the head's input, Fisher information.

::

    H    = mean over targets of h^T h                      h: the input of the output embedding
    F_ij = sum_targets ((p_i - y_i) h_j)^2  +  sum_positions with token i  (dL / d input_j)^2

F is the sum of squared gradients of the masked-LM loss with respect to e_ij, per target where the matrix is the head
and per position where it is the input; the first is a product of two matrices, so no gradient of V x d numbers is
ever formed per example.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from wals_spark import storage
from wals_spark.errors import InputError
from wals_spark.inject.frequency import SMOOTHING, read_counts
from wals_spark.mlm import data, loss
from wals_spark.progress import Progress
from wals_spark.tokenizer import LoadedTokenizer

MASKED_FRACTION = 0.15
BATCH_SEQUENCES = 8


@dataclass(frozen=True)
class Sensitivity:
    """Averages over text by which errors of the embedding weigh.

    Attributes
    ----------
    second_moment : float64 array of shape (d, d)
        H.
    fisher : float32 array of shape (V, d)
        F.
    targets : int
        Masked positions.
    """

    second_moment: np.ndarray
    fisher: np.ndarray
    targets: int


def read_texts(path: str, key: str) -> Iterator[str]:
    """Documents of a text file (one per line) or of a Parquet file or directory (column ``text``).

    Raises
    ------
    InputError
        There is nothing at `path`, or no such column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not storage.exists(path):
        raise InputError(f"{key}: there is nothing at {path}; expected a text file or Parquet with a column text")
    if path.endswith(".txt"):
        try:
            text = storage.read_bytes(path).decode("utf-8")
        except (UnicodeDecodeError, OSError) as error:
            raise InputError(
                f"{key}: {path} is not a file of UTF-8 text ({error}); convert it, such as with iconv -t UTF-8"
            ) from None
        for line in text.splitlines():
            if line.strip():
                yield line
        return
    fs, inner = storage.filesystem(path)
    try:
        table = pq.read_table(inner, filesystem=fs)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(key, path, error) from None
    if "text" not in table.column_names:
        raise InputError(f"{key}: {path} has the columns {', '.join(table.column_names)}, expected text")
    for value in table["text"]:
        if value.is_valid:
            yield str(value)


def _unreadable(key: str, path: str, error: Exception) -> InputError:
    return InputError(
        f"{key}: {path} is neither a .txt file nor Parquet ({str(error).splitlines()[0]:.120}); unpack or convert it: "
        "a line per document in a .txt file, or Parquet with a column text"
    )


def read_frequencies(path: str, size: int, tokenizer: LoadedTokenizer | None) -> np.ndarray:
    """The count of each token plus 1/2.

    Parameters
    ----------
    path : str
        A table with token_id and count (Parquet, or CSV), or text as for `read_texts`, which is counted.
    size : int
        V.
    tokenizer : LoadedTokenizer or None
        Of the checkpoint; needed for text.

    Returns
    -------
    float64 array of shape (V,)

    Raises
    ------
    InputError
        The table or the text cannot be read, or there is text without a tokenizer.
    """
    if path.endswith(".csv") or _is_table(path):
        return read_counts(path, size, "--frequencies") + SMOOTHING
    ids = data.encode(_tokenizer(tokenizer, "--frequencies"), read_texts(path, "--frequencies"))
    return np.bincount(np.concatenate(ids) if ids else np.zeros(0, np.int64), minlength=size) + SMOOTHING


def _is_table(path: str) -> bool:
    import pyarrow as pa
    import pyarrow.dataset as ds

    if path.endswith(".txt") or not storage.exists(path):
        return False
    fs, inner = storage.filesystem(path)
    try:
        return "token_id" in ds.dataset(inner, filesystem=fs, format="parquet").schema.names
    except (pa.ArrowException, OSError) as error:
        raise _unreadable("--frequencies", path, error) from None


def _tokenizer(tokenizer: LoadedTokenizer | None, key: str) -> LoadedTokenizer:
    if tokenizer is None:
        raise InputError(f"{key} gives text, but the checkpoint has no tokenizer.json to read it with; put it there")
    return tokenizer


def masked_text(
    path: str, tokenizer: LoadedTokenizer | None, sequences: int, length: int, seed: int, key: str = "--text"
) -> data.MaskedSequences:
    """Masked sequences of text, a piece of every document before the second of any.

    Parameters
    ----------
    path : str
        Text as for `read_texts`.
    tokenizer : LoadedTokenizer or None
        Of the checkpoint.
    sequences : int
        At most.
    length : int
        Tokens of a sequence.
    seed : int
        Of the masks.
    key : str
        The option that gave the path, for messages.

    Returns
    -------
    MaskedSequences

    Raises
    ------
    InputError
        There is less text than one sequence.
    """
    loaded = _tokenizer(tokenizer, key)
    special = data.special_ids(loaded)
    packed = data.pack_sequences(
        data.encode(loaded, read_texts(path, key)), special, length, limit=sequences, round_robin=True
    )
    if not len(packed):
        raise InputError(f"{key}: {path} has fewer than {length} tokens, not one sequence; give more text")
    return data.mask_tokens(packed, special, MASKED_FRACTION, seed)


def measure_sensitivity(directory: str | Path, masked: data.MaskedSequences) -> Sensitivity:
    """H and F of a masked-LM checkpoint on masked text.

    Raises
    ------
    InputError
        The checkpoint has no masked-LM head, or its loss is not finite.
    """
    import torch

    model = loss.load_masked_lm(str(directory)).requires_grad_(False)
    inputs, decoder = model.get_input_embeddings(), model.get_output_embeddings()
    V, d = inputs.weight.shape
    captured: dict[str, Any] = {}

    def looked_up(module: Any, arguments: Any, output: Any) -> Any:
        captured["input"] = output.requires_grad_(True)
        return captured["input"]

    def multiplied(module: Any, arguments: Any) -> None:
        captured["hidden"] = arguments[0]

    hooks = [inputs.register_forward_hook(looked_up), decoder.register_forward_pre_hook(multiplied)]
    fisher = torch.zeros(V, d)
    moment = torch.zeros(d, d, dtype=torch.float64)
    length = masked.inputs.shape[1]
    bounds = np.searchsorted(masked.row, np.arange(0, len(masked.inputs) + BATCH_SEQUENCES, BATCH_SEQUENCES))
    with Progress("squared gradients", len(masked.inputs), "sequences") as progress:
        for number, (start, stop) in enumerate(pairwise(bounds)):
            first = number * BATCH_SEQUENCES
            ids = torch.from_numpy(masked.inputs[first : first + BATCH_SEQUENCES].astype(np.int64))
            flat = torch.from_numpy(
                (masked.row[start:stop].astype(np.int64) - first) * length + masked.column[start:stop]
            )
            target = torch.from_numpy(masked.target[start:stop].astype(np.int64))
            logits = loss.masked_logits(model, ids, flat)  # (t, V)
            torch.nn.functional.cross_entropy(logits, target, reduction="sum").backward()
            with torch.no_grad():
                hidden = captured["hidden"].reshape(-1, d)
                hidden = hidden if len(hidden) == len(flat) else hidden[flat]  # (t, d)
                error = logits.softmax(1)  # p - y, (t, V)
                error[torch.arange(len(target)), target] -= 1
                fisher += error.square_().T @ hidden.square()
                fisher.index_add_(0, ids.flatten(), captured["input"].grad.flatten(0, 1).square())
                moment += (hidden.T @ hidden).double()
            progress.update(first + len(ids))
    for hook in hooks:
        hook.remove()
    if not bool(torch.isfinite(fisher).all()):
        raise InputError(f"{directory}: the masked-LM loss or its gradient is not finite on the text")
    return Sensitivity((moment / len(masked)).numpy(), fisher.numpy(), len(masked))
