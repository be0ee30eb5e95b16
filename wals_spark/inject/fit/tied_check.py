r"""The gain of fitted rows with the encoder run again: a tied model reads the new rows too.

A fit moves the rows that the head multiplies states with; in a tied model the encoder reads the same rows, which a fit
on stored states does not see. Held-out sequences go through the model before and after, under the same masks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from wals_spark.checkpoints.edit import EmbeddingEdit
from wals_spark.mlm.data import SpecialIds
from wals_spark.mlm.loss import load_masked_lm
from wals_spark.mlm.masking import Maskings
from wals_spark.mlm.state_encoder import StateEncoder
from wals_spark.mlm.statistics import Clusters, Interval
from wals_spark.mlm.text_sequences import TextSequences

RESAMPLES = 1000


def tied_gain(
    checkpoint: Path, edit: EmbeddingEdit, sequences: TextSequences, special: SpecialIds, maskings: Maskings
) -> Interval:
    """Mean loss of the base minus that of the edited model, nats per masked token, resampled by document.

    Parameters
    ----------
    checkpoint : Path
        The base.
    edit : EmbeddingEdit
    sequences : TextSequences
        Held out of the fit.
    special : SpecialIds
        Of the tokenizer.
    maskings : Maskings

    Returns
    -------
    Interval
    """
    import torch

    model = load_masked_lm(str(checkpoint))
    before = StateEncoder(model, special, candidates=1).states(sequences, maskings)
    with torch.no_grad():
        model.get_input_embeddings().weight[torch.from_numpy(edit.ids)] = torch.from_numpy(edit.rows)
        if edit.head_bias is not None:
            _head_bias(model).copy_(torch.from_numpy(edit.head_bias.astype(np.float32)))
    after = StateEncoder(model, special, candidates=1).states(sequences, maskings)
    return Clusters(before.document, RESAMPLES, maskings.seed).difference(before.base_loss, after.base_loss)


def _head_bias(model: Any) -> Any:
    return model.get_output_embeddings().bias
