"""An edit of a checkpoint in memory: the base, the rows and biases that change, and the tensors that result."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from wals_spark.checkpoints.checkpoint import (
    Checkpoint,
    companion_files,
    entries_left_behind,
    source_record,
    weight_files,
)
from wals_spark.checkpoints.raw_tensor import RawTensor, file_sha256, from_values, gather_rows, replace_rows

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokenFactors:
    """Vectors and counts of the corpus' T tokens, by token id.

    Attributes
    ----------
    matrix : float32 array of shape (T, k)
    counts : int64 array of shape (T,)
    """

    matrix: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True)
class EmbeddingEdit:
    """New values for rows of a checkpoint's token embedding and for its head bias.

    Attributes
    ----------
    ids : int64 array of shape (n,)
        Rows that change, ascending.
    rows : float32 array of shape (n, d)
        Their new values.
    head_bias : float64 array of shape (V,) or None
        The whole new head bias; None = untouched.
    share : float32 array of shape (T,)
        b_i, the share of each row that is new.
    map : dict of str to array
        What turns vectors into rows, such as W, mu_u, mu_e.
    facts : dict of str to object
        Figures of the fit for the manifest, plain JSON values.
    gate : dict of str to object or None
        The figures of the gate that let the edit pass, plain JSON values.
    origin : int64 array of shape (V',) or None
        The base's row that each row of the result comes from, -1 for a new one; None = the same rows. `ids`
        and `head_bias` are those of the result.
    inputs : dict of str to array
        What it was computed from beside vectors and their counts; recorded so that it can be computed again.
    """

    ids: np.ndarray
    rows: np.ndarray
    head_bias: np.ndarray | None
    share: np.ndarray
    map: dict[str, np.ndarray]
    facts: dict[str, Any] = field(default_factory=dict)
    gate: Mapping[str, Any] | None = None
    origin: np.ndarray | None = None
    inputs: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class BaseCheckpoint:
    """The checkpoint that an edit is applied to.

    Attributes
    ----------
    tensors : dict of str to RawTensor
    dropped : tuple of str
        Stored copies of tied tensors that are not written again.
    metadata : dict of str to str
        Of its safetensors file.
    config : dict of str to object
        The content of its config.json.
    embedding : str
        Name of the input embedding (V, d).
    head_bias : str or None
        Name of the head bias (V,).
    protected : int64 array of shape (p,)
        Ids whose rows must not change.
    files : tuple of Path
        Configuration and tokenizer files to copy.
    texts : dict of str to str
        Content of further files by name, or of files that are not copied as they are.
    source : dict of str to object
        Its description in the manifest.
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

    def companions(self) -> dict[str, bytes]:
        """Content of the configuration and tokenizer files of a result, by name."""
        found = {path.name: path.read_bytes() for path in self.files}
        return found | {name: text.encode() for name, text in self.texts.items()}


def base_of_checkpoint(opened: Checkpoint, source: str, protected: np.ndarray) -> BaseCheckpoint:
    """An opened checkpoint as the base of an edit, described by `source` and the hashes of its files."""
    left = entries_left_behind(opened.directory)
    if left:
        logger.warning("%s: %s are not carried along; copy what you need", opened.directory, ", ".join(left[:12]))
    return BaseCheckpoint(
        tensors=opened.tensors,
        dropped=opened.dropped,
        metadata=opened.metadata,
        config=opened.config,
        embedding=opened.embedding,
        head_bias=opened.head_bias,
        protected=protected,
        files=tuple(companion_files(opened.directory)),
        texts={},
        source={
            **source_record(source, opened.directory),
            "left_behind": left,
            "files": {path.name: file_sha256(path) for path in weight_files(opened.directory)},
        },
    )


def reindexed_tensors(base: BaseCheckpoint, edit: EmbeddingEdit) -> dict[str, RawTensor]:
    """The base's tensors, row i of embedding and head bias from the base's row ``origin[i]``, zeros for a new one."""
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
