"""Short masked-LM training: AdamW, a fixed number of steps, warm-up and linear decay, a loss curve on unseen text.

Everything random (order of sequences, masks of every step, dropout) comes from one seed, so that two arms
that start from different weights see the same batches with the same masks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from wals_spark.errors import InputError
from wals_spark.mlm.data import Masked, Packed, SpecialIds, mask_tokens
from wals_spark.mlm.loss import masked_logits, score
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

    def rate(self, step: int) -> float:
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

    def points(self, clusters: Clusters) -> list[tuple[int, Interval]]:
        """(step, mean loss with its interval)."""
        return [(step, clusters.mean(nll)) for step, nll in zip(self.steps, self.nll, strict=True)]


def evaluation_steps(steps: int, points: int) -> tuple[int, ...]:
    """0, `steps`, and steps between them that lie closer together at the start, where the loss falls fast."""
    return tuple(sorted({round(steps * (i / points) ** 1.5) for i in range(points + 1)}))


def pretrain(
    model: Any,
    packed: Packed,
    special: SpecialIds,
    schedule: Schedule,
    seed: int,
    *,
    unseen: Masked | None = None,
    at: tuple[int, ...] = (),
    stop: int | None = None,
    label: str = "pretrain",
    on_point: Callable[[int, float], None] | None = None,
) -> LossCurve:
    """Train `model` in place.

    Parameters
    ----------
    model : a transformers masked-LM model
    packed : the training sequences; gone through in a new random order per epoch
    seed : of order, masks and dropout
    unseen : fixed masks of documents that are not in `packed`
    at : steps after which the loss on `unseen` is measured
    stop : steps after which training ends, its rate still that of the whole schedule; None = all
    on_point : called with (step, loss) at each of them

    Raises
    ------
    InputError
        Fewer sequences than a batch, or a loss that is NaN (the learning rate is too high).
    """
    import torch

    if len(packed) < schedule.batch:
        raise InputError(
            f"{len(packed)} training sequences are fewer than a batch of {schedule.batch}: "
            "give more text, shorter sequences or a smaller batch"
        )
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(
        _parameter_groups(model, schedule.weight_decay),
        lr=schedule.learning_rate,
        betas=(0.9, 0.98),
        eps=1e-6,
        fused=True,
    )
    curve = LossCurve()

    def measure(step: int) -> None:
        if unseen is None or step not in at:
            return
        scores = score(model, unseen, batch_size=32)
        loss = float(scores.nll.mean())
        curve.steps.append(step)
        curve.nll.append(scores.nll)
        curve.rank.append(scores.rank)
        progress.update(step, line=True, unseen=loss)
        if on_point is not None:
            on_point(step, loss)

    devices = [device.index or 0] if device.type == "cuda" else []
    steps = schedule.steps if stop is None else min(stop, schedule.steps)
    with Progress(label, steps, "steps") as progress, torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        measure(0)
        model.train()
        order = np.empty(0, np.int64)
        epoch = 0
        for step in range(steps):
            started = time.perf_counter()
            while len(order) < schedule.batch:
                order = np.r_[order, np.random.default_rng([seed, 4, epoch]).permutation(len(packed))]
                epoch += 1
            taken, order = order[: schedule.batch], order[schedule.batch :]
            part = Packed(packed.ids[taken], packed.document[taken], packed.documents)
            masked = mask_tokens(part, special, schedule.mask_fraction, _step_seed(seed, step))
            loss = _loss(model, masked, device)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), schedule.clip)
            for group in optimizer.param_groups:
                group["lr"] = schedule.rate(step)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            value = float(loss.detach())
            if not math.isfinite(value):
                raise InputError(
                    f"the training loss is {value} at step {step}: the learning rate "
                    f"{schedule.learning_rate} is too high for this model, or its weights are not finite"
                )
            curve.seconds += time.perf_counter() - started
            progress.update(step + 1, loss=value)
            measure(step + 1)
    model.eval()
    return curve


def _step_seed(seed: int, step: int) -> int:
    """The seed of a step's masks."""
    return int(np.random.SeedSequence([seed, 5, step]).generate_state(1, np.uint64)[0] >> 1)


def _loss(model: Any, masked: Masked, device: Any) -> Any:
    import torch

    length = masked.inputs.shape[1]
    inputs = torch.from_numpy(masked.inputs.astype(np.int64)).to(device)
    flat = torch.from_numpy(masked.row.astype(np.int64) * length + masked.column).to(device)
    target = torch.from_numpy(masked.target.astype(np.int64)).to(device)
    return torch.nn.functional.cross_entropy(masked_logits(model, inputs, flat), target)


def _parameter_groups(model: Any, weight_decay: float) -> list[dict[str, Any]]:
    matrices = [parameter for parameter in model.parameters() if parameter.requires_grad and parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.requires_grad and parameter.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
