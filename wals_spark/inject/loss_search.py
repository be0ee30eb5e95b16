"""A grid search over strengths by masked-LM loss on the corpus' own text.

The text is a sample of counted documents. Its tokens are taken out of the counts that candidates are made from, so
that a strength is not chosen for remembering the sample; the documents held out for evaluation stay unseen. Every
candidate sees the same masks, and strength 0, no change, is always a candidate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wals_spark import token_shards
from wals_spark.errors import InputError
from wals_spark.mlm.data import MaskedSequences, SpecialIds, mask_tokens, pack_sequences
from wals_spark.mlm.loss import load_masked_lm, replaced_rows, score
from wals_spark.mlm.statistics import Clusters, Interval

MASK_FRACTION = 0.15
RESAMPLES = 1000
_LEAST_DOCUMENTS = 8


@dataclass(frozen=True)
class TextSample:
    """A masked sample of text to choose strengths on.

    Attributes
    ----------
    masked : MaskedSequences
    counts : int64 array of shape (V,)
        Tokens of the sampled documents, to be taken out of the corpus' counts.
    """

    masked: MaskedSequences
    counts: np.ndarray


def sample_text(
    directories: Sequence[str], special: SpecialIds, *, sequences: int, length: int, seed: int
) -> TextSample:
    """Sequences from documents drawn evenly over all shards of encoded batches.

    Parameters
    ----------
    directories : sequence of str
        Of token shards.
    special : SpecialIds
        Of the tokenizer.
    sequences : int
        How many at most.
    length : int
        Tokens of a sequence, its two special ones included.
    seed : int
        Of the draw and of the masks.

    Returns
    -------
    TextSample

    Raises
    ------
    InputError
        Fewer than 8 documents: too little text to choose on.
    """
    shards = [shard for directory in directories for shard in token_shards.list_shards(directory)]
    body = length - 2
    wanted = 2 * sequences  # some documents are shorter than a sequence
    total = max(1, sum(shard.documents for shard in shards))
    generator = np.random.default_rng([seed, 15])
    documents: list[np.ndarray] = []
    for shard in shards:
        quota = max(1, round(wanted * shard.documents / total))
        chosen = set(generator.choice(shard.documents, min(quota, shard.documents), replace=False).tolist())
        documents += _read(shard.path, chosen, body)
    documents = [documents[index] for index in generator.permutation(len(documents))]
    packed = pack_sequences(documents, special, length, limit=sequences, round_robin=True)
    if packed.documents < _LEAST_DOCUMENTS:
        raise InputError(
            f"{packed.documents} documents are too few to choose strengths on, expected at least {_LEAST_DOCUMENTS}: "
            "set inject.strengths to fitted and inject.head_bias to a number"
        )
    ordinary = packed.ids[packed.document >= 0]
    counts = np.bincount(ordinary, minlength=special.size).astype(np.int64)
    return TextSample(mask_tokens(packed, special, MASK_FRACTION, seed), counts)


def _read(path: str, chosen: set[int], body: int) -> Iterable[np.ndarray]:
    """The first `body` tokens of some documents of a shard, by their number in it."""
    number = -1
    for chunk in token_shards.read_shards([path]):
        for index in range(len(chunk.offsets) - 1):
            if index == 0 and chunk.first > 0:
                continue
            number += 1
            if number in chosen:
                ids = chunk.tokens[chunk.offsets[index] : chunk.offsets[index + 1]]
                yield ids[ids >= 0][:body]


class LossScorer:
    """A checkpoint's loss with other rows and another head bias.

    Parameters
    ----------
    source : str
        Directory of the checkpoint.
    masked : MaskedSequences
        Text under fixed masks.
    batch_size : int
        Sequences per forward pass.
    """

    def __init__(self, source: str, masked: MaskedSequences, batch_size: int = 16) -> None:
        self.model = load_masked_lm(source)
        self.masked = masked
        self.batch_size = batch_size

    def __call__(
        self, ids: np.ndarray | None = None, rows: np.ndarray | None = None, bias: np.ndarray | None = None
    ) -> np.ndarray:
        """Loss per target, float64 (t,), with rows `ids` and the head bias replaced; the model is restored."""
        with replaced_rows(self.model, ids, rows, bias):
            return score(self.model, self.masked, batch_size=self.batch_size).nll


@dataclass(frozen=True)
class GridSearchResult:
    """The best strength of a grid.

    Attributes
    ----------
    best : float
        The strength; 0 = no change.
    losses : dict of float to float
        Mean loss in nats by strength.
    gain : Interval
        Loss at 0 minus loss at the best, resampled by document.
    """

    best: float
    losses: dict[float, float]
    gain: Interval

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        gain = self.gain
        return {
            "best": self.best,
            "losses": {f"{strength:g}": loss for strength, loss in self.losses.items()},
            "gain": {"value": gain.value, "low": gain.low, "high": gain.high, "targets": gain.n},
        }


def best_strength(losses: Mapping[float, np.ndarray], documents: np.ndarray, seed: int) -> GridSearchResult:
    """The strength with the smallest mean loss, 0 unless its gain over 0 is clearly positive.

    Parameters
    ----------
    losses : dict of float to float64 array of shape (t,)
        Loss per target by strength; 0 must be among them.
    documents : int array of shape (t,)
        Document of each target, the unit of resampling.
    seed : int
        Of the bootstrap.

    Returns
    -------
    GridSearchResult
    """
    means = {strength: float(nll.mean()) for strength, nll in losses.items()}
    best = min(means, key=lambda strength: (means[strength], strength))
    clusters = Clusters(documents, RESAMPLES, seed)
    gain = clusters.difference(losses[0.0], losses[best])
    if best != 0.0 and not gain.low > 0:
        best = 0.0
        gain = clusters.difference(losses[0.0], losses[0.0])
    return GridSearchResult(best, means, gain)


def grid_search(
    grid: Sequence[float],
    at_zero: np.ndarray,
    loss_at: Callable[[float], np.ndarray],
    documents: np.ndarray,
    seed: int,
) -> tuple[GridSearchResult, np.ndarray]:
    """Search a grid of strengths whose first is 0.

    Parameters
    ----------
    grid : sequence of float
    at_zero : float64 array of shape (t,)
        Loss per target at strength 0, known before.
    loss_at : callable
        Loss per target, float64 (t,), at another strength.
    documents : int array of shape (t,)
        Document of each target.
    seed : int
        Of the bootstrap.

    Returns
    -------
    found : GridSearchResult
    loss : float64 array of shape (t,)
        Loss per target at the best strength.
    """
    losses = {0.0: at_zero, **{strength: loss_at(strength) for strength in grid[1:]}}
    found = best_strength(losses, documents, seed)
    return found, losses[found.best]


def mean_difference(worse: np.ndarray, better: np.ndarray, documents: np.ndarray, seed: int) -> Interval:
    """Mean of ``worse - better`` per target, resampled by document.

    Parameters
    ----------
    worse : float64 array of shape (t,)
    better : float64 array of shape (t,)
    documents : int array of shape (t,)
        Document of each target.
    seed : int
        Of the bootstrap.

    Returns
    -------
    Interval
    """
    return Clusters(documents, RESAMPLES, seed).difference(worse, better)
