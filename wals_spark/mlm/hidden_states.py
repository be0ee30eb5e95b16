r"""Hidden states of a masked language model at its masked positions: what fitted rows are a regression on.

For a masked position t of a sequence::

    h_t = transform(encoder(x)_t)                      the head's dense layer, activation and LayerNorm
    z_t = E0 h_t + b0,   log Z_t = logsumexp(z_t)      logits over the V tokens at the checkpoint's own rows

Kept per position: h_t in float16, the token that stood there, the tokens of the K largest logits, and log Z_t. At
d = 768 and K = 64 these are 1,812 bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

CANDIDATES = 64
"""K: tokens that are kept of each position."""


@dataclass(frozen=True)
class MaskedStates:
    """States of n masked positions, with what the base model says there.

    Attributes
    ----------
    hidden : float16 array of shape (n, d)
        h_t.
    target : int32 array of shape (n,)
        y_t, the token that was masked.
    document : uint64 array of shape (n,)
        `wals_spark.token_shards.document_key` of the position's document.
    candidates : int32 array of shape (n, K)
        Tokens of the K largest logits, largest first.
    log_partition : float32 array of shape (n,)
        log Z_t at the base.
    target_logit : float32 array of shape (n,)
        z_ty at the base; the base's loss is log_partition - target_logit.
    """

    hidden: np.ndarray
    target: np.ndarray
    document: np.ndarray
    candidates: np.ndarray
    log_partition: np.ndarray
    target_logit: np.ndarray

    def __len__(self) -> int:
        return len(self.target)

    def take(self, index: np.ndarray) -> MaskedStates:
        """The positions of an index or of a mask."""
        return MaskedStates(*(getattr(self, field.name)[index] for field in fields(self)))

    @property
    def base_loss(self) -> np.ndarray:
        """-log p(y_t) of the base model, nats, float64 (n,)."""
        return self.log_partition.astype(np.float64) - self.target_logit


def concatenate_states(parts: Sequence[MaskedStates]) -> MaskedStates:
    """The positions of several parts, in their order."""
    names = [field.name for field in fields(MaskedStates)]
    return MaskedStates(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))
