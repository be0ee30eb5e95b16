r"""The strength of a fit with the encoder run again: a tied model reads the new rows too.

A fit moves the rows that the head multiplies states with; in a tied model the encoder reads the same rows, which a fit
on stored states does not see. Held-out sequences go through the model before and after, under the same masks, with the
rows E0 + t D and the biases b0 + t b for t = 1, 1/2, 1/4, 1/8 until the loss rises.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from wals_spark.checkpoints.edit import EmbeddingEdit
from wals_spark.mlm.data import SpecialIds
from wals_spark.mlm.loss import load_masked_lm, replaced_rows
from wals_spark.mlm.masking import Maskings
from wals_spark.mlm.state_encoder import StateEncoder
from wals_spark.mlm.statistics import Clusters, Interval
from wals_spark.mlm.text_sequences import TextSequences

RESAMPLES = 1000
STRENGTHS = (1.0, 0.5, 0.25, 0.125)


@dataclass(frozen=True)
class TiedChoice:
    """The best of the strengths that were tried.

    Attributes
    ----------
    edit : EmbeddingEdit
        At that strength.
    strength : float
        t.
    gain : Interval
        Mean loss of the base minus that of the edited model, nats per masked token, resampled by document.
    losses : dict of float to float
        Mean loss by strength, 0 being the base.
    """

    edit: EmbeddingEdit
    strength: float
    gain: Interval
    losses: dict[float, float]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        losses = {f"{strength:g}": loss for strength, loss in self.losses.items()}
        return {"strength": self.strength, "losses": losses, **self.gain.to_json()}


def choose_strength(
    checkpoint: Path, edit: EmbeddingEdit, sequences: TextSequences, special: SpecialIds, maskings: Maskings
) -> TiedChoice:
    """Choose the strength of an edit on held-out sequences.

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
    TiedChoice
    """
    model = load_masked_lm(str(checkpoint))
    encoder = StateEncoder(model, special, candidates=1)
    E0 = model.get_input_embeddings().weight.detach().numpy()[edit.ids]
    b0 = model.get_output_embeddings().bias.detach().numpy().astype(np.float64)
    base = encoder.states(sequences, maskings)
    best, best_loss, means = 0.0, base.base_loss, {0.0: float(base.base_loss.mean())}
    for strength in STRENGTHS:
        scaled = scaled_edit(edit, E0, b0, strength)
        with replaced_rows(model, scaled.ids, scaled.rows, scaled.head_bias):
            found = encoder.states(sequences, maskings).base_loss
        means[strength] = float(found.mean())
        if best and means[strength] >= means[best]:
            break
        best, best_loss = strength, found
    gain = Clusters(base.document, RESAMPLES, maskings.seed).difference(base.base_loss, best_loss)
    return TiedChoice(scaled_edit(edit, E0, b0, best), best, gain, means)


def scaled_edit(edit: EmbeddingEdit, E0: np.ndarray, b0: np.ndarray, strength: float) -> EmbeddingEdit:
    """An edit with its changes times a strength.

    Parameters
    ----------
    edit : EmbeddingEdit
    E0 : float32 array of shape (n, d)
        The base's rows of ``edit.ids``.
    b0 : float64 array of shape (V,)
        The base's head bias.
    strength : float

    Returns
    -------
    EmbeddingEdit
    """
    if strength == 1.0:
        return edit
    moved = None if edit.head_bias is None else b0 + strength * (edit.head_bias - b0)
    return replace(edit, rows=E0 + np.float32(strength) * (edit.rows - E0), head_bias=moved)
