"""An edit of a checkpoint in memory: the base, the rows and biases that edit, and the tensors that result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from wals_spark.checkpoints.raw_tensor import RawTensor, from_values, gather_rows, replace_rows


@dataclass(frozen=True)
class TokenFactors:
    """Vectors of the corpus' tokens, by token id.

    Attributes
    ----------
    matrix : float32 (T, k)
    counts : int64 (T,)
    """

    matrix: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True)
class EmbeddingEdit:
    """What is to change in a checkpoint: rows of its token embedding, and its head bias.

    Attributes
    ----------
    ids : int64 (n,)
        Rows that edit, ascending.
    rows : float32 (n, d)
        Their new values.
    head_bias : float64 (V,) or None
        The whole new head bias; None = untouched.
    share : float32 (T,)
        b_i: share of each row that comes from the factors.
    map : dict of name -> array
        What turns factors into rows: W, mu_u, mu_e.
    facts : dict
        For injection.json: fit, variances.
    gate : mapping or None
        The figures of the gate that let the edit pass, as plain JSON values.
    origin : int64 (V',) or None
        The base's row that each row of the result comes from, -1 for a new one; None = the same rows. `ids`
        and `head_bias` are those of the result.
    """

    ids: np.ndarray
    rows: np.ndarray
    head_bias: np.ndarray | None
    share: np.ndarray
    map: dict[str, np.ndarray]
    facts: dict[str, Any] = field(default_factory=dict)
    gate: Mapping[str, Any] | None = None
    origin: np.ndarray | None = None


@dataclass(frozen=True)
class BaseCheckpoint:
    """What the change is applied to.

    Attributes
    ----------
    tensors : dict of name -> RawTensor
    dropped : tuple of str
        Stored copies of tied tensors that are not written again.
    metadata : dict of str
        Of the base's safetensors file.
    config : dict
        Of its config.json.
    embedding : str
    head_bias : str or None
    protected : int64 array
        Ids whose rows must not move.
    files : list of Path
        Configuration and tokenizer files to copy.
    texts : dict of name -> str
        Content of further files, or of files that are not copied as they are.
    source : dict
        How the base is described in injection.json.
    """

    tensors: Mapping[str, RawTensor]
    dropped: tuple[str, ...]
    metadata: Mapping[str, str]
    config: Mapping[str, Any]
    embedding: str
    head_bias: str | None
    protected: np.ndarray
    files: tuple[Path, ...]
    texts: Mapping[str, str]
    source: Mapping[str, Any]


def reindexed_tensors(base: BaseCheckpoint, edit: EmbeddingEdit) -> dict[str, RawTensor]:
    """The base with its rows where the result has them: row i is the base's row ``origin[i]``, zeros for a new one."""
    tensors = dict(base.tensors)
    if edit.origin is not None:
        for name in (base.embedding, base.head_bias):
            if name is not None:
                tensors[name] = gather_rows(base.tensors[name], edit.origin)
    return tensors


def apply_edit(base: BaseCheckpoint, edit: EmbeddingEdit) -> dict[str, RawTensor]:
    """The tensors of the result: declared rows and the head bias replaced, every other bit kept."""
    tensors = reindexed_tensors(base, edit)
    tensors[base.embedding] = replace_rows(tensors[base.embedding], edit.ids, edit.rows)
    if edit.head_bias is not None:
        assert base.head_bias is not None
        tensors[base.head_bias] = from_values(edit.head_bias, base.tensors[base.head_bias].dtype)
    return tensors
