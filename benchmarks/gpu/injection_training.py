"""Continued pretraining of a masked-LM model, all of it or its embeddings only: what fitted rows are compared with.

AdamW (0.9, 0.98), eps 1e-6, weight decay 0.01 on matrices, norm of the gradient at most 1, batches of 16, the learning
rate rising over 6 % of the steps to 5e-5 (3e-4 for embeddings only) and then falling linearly to 0, dropout as in the
model's configuration. A step masks 15 % of each sequence's ordinary tokens, all by the mask token, others in every
step. Order, masks and dropout come from one seed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from wals_spark.errors import InputError
from wals_spark.mlm.data import SpecialIds
from wals_spark.mlm.masking import Maskings, is_special, masked_positions
from wals_spark.mlm.pretrain import Schedule, make_optimizer
from wals_spark.mlm.text_sequences import TextSequences

BATCH = 16
RATE_FULL, RATE_EMBEDDINGS = 5e-5, 3e-4
IGNORED = -100
"""A label that `torch.nn.functional.cross_entropy` passes over."""


def training_steps(sequences: int, epochs: float) -> int:
    """Steps of a number of epochs, at least 1."""
    return max(1, round(sequences * epochs / BATCH))


def batches(sequences: TextSequences, steps: int, seed: int) -> Iterator[np.ndarray]:
    """Numbers of the sequences of each step; every epoch is a permutation."""
    generator = np.random.default_rng([seed, 7])
    order = np.empty(0, np.int64)
    for _ in range(steps):
        while len(order) < BATCH:
            order = np.concatenate([order, generator.permutation(len(sequences))])
        yield order[:BATCH]
        order = order[BATCH:]


def masked_batch(
    sequences: TextSequences, chosen: np.ndarray, special: SpecialIds, seed: int, pad: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs with their masks.

    Parameters
    ----------
    sequences : TextSequences
    chosen : int64 array of shape (n,)
        Numbers of the batch's sequences.
    special : SpecialIds
    seed : int
        Of the masks of this step.
    pad : int
        The padding id.

    Returns
    -------
    inputs : int64 array of shape (n, L)
    labels : int64 array of shape (n, L)
        `IGNORED` where nothing is hidden.
    attended : bool array of shape (n, L)
        False at padding.
    """
    table, maskings = is_special(special), Maskings(1, 0.15, seed)
    length = int(sequences.lengths[chosen].max()) + 2
    inputs = np.full((len(chosen), length), pad, np.int64)
    labels = np.full((len(chosen), length), IGNORED, np.int64)
    for row, index in enumerate(chosen.tolist()):
        piece = sequences.piece(index)
        hidden = masked_positions(sequences, index, maskings, table)[0]
        inputs[row, 0], inputs[row, len(piece) + 1] = special.start, special.end
        inputs[row, 1 : len(piece) + 1] = piece
        inputs[row, hidden + 1] = special.mask
        labels[row, hidden + 1] = piece[hidden]
    attended = np.arange(length) < sequences.lengths[chosen][:, None] + 2
    return inputs, labels, attended


def train(
    model: Any,
    sequences: TextSequences,
    special: SpecialIds,
    epochs: float,
    seed: int,
    *,
    embeddings_only: bool = False,
    bf16: bool = False,
) -> float:
    """Train a model in place.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        With a masked-LM head; in evaluation mode afterwards.
    sequences : TextSequences
    special : SpecialIds
    epochs : float
    seed : int
    embeddings_only : bool
        Only token embeddings and the head's bias move, at `RATE_EMBEDDINGS`.
    bf16 : bool
        Automatic mixed precision with bfloat16; weights and AdamW stay float32.

    Returns
    -------
    float
        Seconds.

    Raises
    ------
    InputError
        No sequences, or a loss that is not finite.
    """
    if not len(sequences):
        raise InputError("there are no sequences to train on")
    device = next(model.parameters()).device
    moved = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().bias)}
    for parameter in model.parameters():
        parameter.requires_grad_(not embeddings_only or id(parameter) in moved)
    steps = training_steps(len(sequences), epochs)
    schedule = Schedule(steps, BATCH, RATE_EMBEDDINGS if embeddings_only else RATE_FULL)
    optimizer = make_optimizer(model, schedule)
    pad = getattr(model.config, "pad_token_id", None) or 0
    started = time.perf_counter()
    total = torch.zeros((), device=device)
    with torch.random.fork_rng(devices=[device.index or 0] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        model.train()
        for step, chosen in enumerate(batches(sequences, steps, seed)):
            arrays = masked_batch(sequences, chosen, special, (seed << 24) + step, pad)
            inputs, labels, attended = (torch.from_numpy(array).to(device) for array in arrays)
            for group in optimizer.param_groups:
                group["lr"] = schedule.learning_rate_at(step)
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                loss = masked_loss(model, inputs, labels, None if bool(arrays[2].all()) else attended)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), schedule.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            total += loss.detach()
        model.eval()
    if not bool(torch.isfinite(total)):
        raise InputError(
            "the training loss became infinite or NaN: the checkpoint's weights are not finite, or too large"
        )
    seconds = time.perf_counter() - started
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return seconds


def masked_loss(model: Any, inputs: Any, labels: Any, attended: Any) -> Any:
    """Mean of -log p(target) over the hidden positions; logits are made there only.

    Parameters
    ----------
    model : transformers.PreTrainedModel
    inputs, labels : int64 tensors of shape (n, L)
    attended : bool tensor of shape (n, L) or None

    Returns
    -------
    float32 tensor without dimensions
    """
    head = getattr(model, "lm_head", None) or getattr(model, "cls", None)
    base = getattr(model, model.base_model_prefix, None)
    mask = None if attended is None else attended.long()
    if head is None or base is None:
        logits = model(input_ids=inputs, attention_mask=mask).logits.flatten(0, 1)
        return torch.nn.functional.cross_entropy(logits.float(), labels.flatten(), ignore_index=IGNORED)
    hidden = base(input_ids=inputs, attention_mask=mask).last_hidden_state.flatten(0, 1)
    at = (labels.flatten() != IGNORED).nonzero()[:, 0]
    return torch.nn.functional.cross_entropy(head(hidden[at]).float(), labels.flatten()[at])
