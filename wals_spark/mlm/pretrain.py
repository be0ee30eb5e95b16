"""Short masked-LM training: AdamW, a fixed number of steps, warm-up and linear decay, a loss curve on unseen text.

Everything random (order of sequences, masks of every step, dropout) comes from one seed, so that two arms
that start from different weights see the same batches with the same masks.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from wals_spark.errors import InputError
from wals_spark.mlm.data import MaskedSequences, PackedSequences, SpecialIds, mask_tokens
from wals_spark.mlm.loss import Scores, masked_logits, score
from wals_spark.mlm.statistics import Clusters, Interval
from wals_spark.progress import Progress


@dataclass(frozen=True)
class Schedule:
    """How to train.

    Attributes
    ----------
    steps : int
    batch : int
        Sequences per step.
    learning_rate : float
        Its peak, reached after `warmup` of the steps, then falling linearly to 0.
    warmup : float
        Share of the steps.
    weight_decay : float
        Not applied to biases and layer norms.
    clip : float
        Largest norm of the gradient.
    mask_fraction : float
    """

    steps: int
    batch: int = 16
    learning_rate: float = 1e-3
    warmup: float = 0.06
    weight_decay: float = 0.01
    clip: float = 1.0
    mask_fraction: float = 0.15

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of the step `step` (0-based)."""
        warm = max(1, round(self.warmup * self.steps))
        if step < warm:
            return self.learning_rate * (step + 1) / warm
        return self.learning_rate * (self.steps - step) / max(1, self.steps - warm)


@dataclass
class LossCurve:
    """A loss curve on unseen text.

    Attributes
    ----------
    steps : list of int
        Optimiser steps done at each point; the first is 0.
    nll : list of float64 arrays of shape (t,)
        Loss per target at each point: two arms on the same targets can be paired.
    rank : list of int32 arrays of shape (t,)
        Rank of the right id at each point, 0 where it has the largest logit.
    seconds : float
        Of training, without the evaluations.
    """

    steps: list[int] = field(default_factory=list)
    nll: list[np.ndarray] = field(default_factory=list)
    rank: list[np.ndarray] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, step: int, scores: Scores) -> float:
        """Add a point; returns its mean loss."""
        self.steps.append(step)
        self.nll.append(scores.nll)
        self.rank.append(scores.rank)
        return float(scores.nll.mean())

    def points(self, clusters: Clusters) -> list[tuple[int, Interval]]:
        """(step, mean loss with its interval)."""
        return [(step, clusters.mean(nll)) for step, nll in zip(self.steps, self.nll, strict=True)]


def evaluation_steps(steps: int, points: int) -> tuple[int, ...]:
    """0, `steps`, and steps between them that lie closer together at the start, where the loss falls fast."""
    return tuple(sorted({round(steps * (i / points) ** 1.5) for i in range(points + 1)}))


def pretrain(
    model: Any,
    packed: PackedSequences,
    special: SpecialIds,
    schedule: Schedule,
    seed: int,
    *,
    unseen: MaskedSequences | None = None,
    eval_steps: tuple[int, ...] = (),
    stop: int | None = None,
    label: str = "pretrain",
    on_evaluation: Callable[[int, float], None] | None = None,
) -> LossCurve:
    """AdamW on the masked-LM cross-entropy of ``packed``, in place, with a loss curve on ``unseen``.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        With a masked-LM head.
    packed : PackedSequences
        The training sequences, in a new random order per epoch.
    special : SpecialIds
    schedule : Schedule
    seed : int
        Of order, masks and dropout.
    unseen : MaskedSequences or None
        Fixed masks of documents that are not in `packed`.
    eval_steps : tuple of int
        Steps after which the loss on `unseen` is measured.
    stop : int or None
        Steps after which training ends, its learning rate still that of the whole schedule; None trains all steps.
    label : str
        Shown in the progress.
    on_evaluation : callable or None
        Called with (step, loss) at each measurement.

    Returns
    -------
    LossCurve

    Raises
    ------
    InputError
        Fewer sequences than a batch, or a loss that is NaN (the learning rate is too high).

    References
    ----------
    Loshchilov and Hutter (2019), Decoupled Weight Decay Regularization, ICLR.
    """
    import torch

    if len(packed) < schedule.batch:
        raise InputError(
            f"{len(packed)} training sequences are fewer than a batch of {schedule.batch}: "
            "give more text, shorter sequences or a smaller batch"
        )
    device = next(model.parameters()).device
    optimizer = make_optimizer(model, schedule)
    batches = masked_batches(packed, special, schedule, seed)
    curve = LossCurve()

    def evaluate(step: int) -> None:
        if unseen is None or step not in eval_steps:
            return
        loss = curve.add(step, score(model, unseen, batch_size=32))
        progress.update(step, line=True, unseen=loss)
        if on_evaluation is not None:
            on_evaluation(step, loss)

    devices = [device.index or 0] if device.type == "cuda" else []
    steps = schedule.steps if stop is None else min(stop, schedule.steps)
    with Progress(label, steps, "steps") as progress, torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        evaluate(0)
        model.train()
        for step in range(steps):
            started = time.perf_counter()
            loss = train_step(model, optimizer, next(batches), schedule, step)
            curve.seconds += time.perf_counter() - started
            progress.update(step + 1, loss=loss)
            evaluate(step + 1)
    model.eval()
    return curve


def make_optimizer(model: Any, schedule: Schedule) -> Any:
    """AdamW with betas (0.9, 0.98) and eps 1e-6; no weight decay on vectors, that is, biases and layer norms."""
    import torch

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": schedule.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=schedule.learning_rate, betas=(0.9, 0.98), eps=1e-6, fused=True)


def masked_batches(
    packed: PackedSequences, special: SpecialIds, schedule: Schedule, seed: int
) -> Iterator[MaskedSequences]:
    """Batches without end: a new permutation of the sequences per epoch, new masks per step, all from the seed.

    Parameters
    ----------
    packed : PackedSequences
    special : SpecialIds
    schedule : Schedule
        Gives the size of a batch and the share that is masked.
    seed : int

    Yields
    ------
    MaskedSequences
    """
    order = np.empty(0, np.int64)
    epochs = itertools.count()
    for step in itertools.count():
        while len(order) < schedule.batch:
            order = np.r_[order, np.random.default_rng([seed, 4, next(epochs)]).permutation(len(packed))]
        taken, order = order[: schedule.batch], order[schedule.batch :]
        part = PackedSequences(packed.ids[taken], packed.document[taken], packed.documents)
        yield mask_tokens(part, special, schedule.mask_fraction, _step_seed(seed, step))


def train_step(model: Any, optimizer: Any, masked: MaskedSequences, schedule: Schedule, step: int) -> float:
    """One step of gradient descent on a batch: its loss before the step, nats.

    Parameters
    ----------
    model : transformers.PreTrainedModel
    optimizer : torch.optim.Optimizer
    masked : MaskedSequences
    schedule : Schedule
        Gives the learning rate of the step and the largest norm of the gradient.
    step : int
        0-based.

    Returns
    -------
    float

    Raises
    ------
    InputError
        The loss is not finite.
    """
    import torch

    loss = cross_entropy(model, masked)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), schedule.clip)
    for group in optimizer.param_groups:
        group["lr"] = schedule.learning_rate_at(step)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    value = float(loss.detach())
    if not math.isfinite(value):
        raise InputError(
            f"the training loss is {value} at step {step}: the learning rate "
            f"{schedule.learning_rate} is too high for this model, or its weights are not finite"
        )
    return value


def _step_seed(seed: int, step: int) -> int:
    """The seed of a step's masks."""
    return int(np.random.SeedSequence([seed, 5, step]).generate_state(1, np.uint64)[0] >> 1)


def cross_entropy(model: Any, masked: MaskedSequences) -> Any:
    """Mean of -log p(target) over the hidden positions, nats, as a tensor with a gradient."""
    import torch

    device = next(model.parameters()).device
    length = masked.inputs.shape[1]
    inputs = torch.from_numpy(masked.inputs.astype(np.int64)).to(device)
    flat = torch.from_numpy(masked.row.astype(np.int64) * length + masked.column).to(device)
    target = torch.from_numpy(masked.target.astype(np.int64)).to(device)
    return torch.nn.functional.cross_entropy(masked_logits(model, inputs, flat), target)
