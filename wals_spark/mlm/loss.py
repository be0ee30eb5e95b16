"""Loss and accuracy of a masked language model on fixed masks.

For a target t at a masked position with logits z: nll = logsumexp(z) - z_t (nats), rank = number of ids
with a larger logit. Logits are made for the masked positions only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from wals_spark.errors import InputError
from wals_spark.mlm.data import MaskedSequences
from wals_spark.mlm.positions import longest_sequence
from wals_spark.progress import Progress


@dataclass(frozen=True)
class Scores:
    """What a model says at the targets of a `MaskedSequences`, in their order.

    Attributes
    ----------
    nll : float64 array of shape (t,)
        Negative log-probability of the right id, nats.
    rank : int32 array of shape (t,)
        0 where the right id has the largest logit.
    """

    nll: np.ndarray
    rank: np.ndarray


def load_masked_lm(source: str) -> Any:
    """A masked-LM model from a checkpoint directory or hub name, in fp32, in evaluation mode.

    Raises
    ------
    InputError
        Nothing there, or weights of the head are missing (a model without a masked-LM head).
    """
    import torch
    from transformers import AutoModelForMaskedLM
    from transformers.utils import logging as transformers_logging

    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        model, info = AutoModelForMaskedLM.from_pretrained(source, dtype=torch.float32, output_loading_info=True)
    except Exception as error:  # classes raise nearly every kind on an edited config.json
        raise InputError(f"cannot load a masked-LM model from {source}: {type(error).__name__}: {error}") from error
    finally:
        if bars:
            transformers_logging.enable_progress_bar()
    if info["missing_keys"]:
        raise InputError(
            f"{source} lacks {len(info['missing_keys'])} weights of a masked-LM model "
            f"({', '.join(sorted(info['missing_keys'])[:4])}): it was saved without its head; "
            "give a checkpoint with one"
        )
    model.eval()
    try:
        with torch.no_grad():
            model(input_ids=torch.zeros(1, 2, dtype=torch.int64))
    except Exception as error:  # classes raise nearly every kind on an edited config.json
        raise InputError(
            f"the masked-LM model of {source} computes nothing ({type(error).__name__}: {error!s:.200}): its "
            "config.json does not fit its class"
        ) from error
    return model


@contextmanager
def replaced_rows(
    model: Any, ids: np.ndarray | None = None, rows: np.ndarray | None = None, bias: np.ndarray | None = None
) -> Iterator[None]:
    """Rows of a model's token embedding and its head bias replaced while a block of code runs, then as they were.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        With a masked-LM head.
    ids : int64 array of shape (n,), optional
    rows : float array of shape (n, d), optional
        Of `ids`.
    bias : float array of shape (V,), optional
    """
    import torch

    E, b = model.get_input_embeddings().weight, model.get_output_embeddings().bias
    index = None if ids is None or rows is None else torch.from_numpy(ids).to(E.device)
    with torch.no_grad():
        E_before = None if index is None else E[index].clone()
        b_before = None if bias is None else b.clone()
        if index is not None and rows is not None:
            E[index] = torch.from_numpy(rows.astype(np.float32)).to(E.device)
        if bias is not None:
            b.copy_(torch.from_numpy(bias.astype(np.float32)))
    try:
        yield
    finally:
        with torch.no_grad():
            if index is not None:
                E[index] = E_before
            if bias is not None:
                b.copy_(b_before)


def masked_lm_from_config(source: str, seed: int) -> Any:
    """A masked-LM model with random weights from a config.json, the same for the same seed.

    Raises
    ------
    InputError
        There is no configuration that transformers reads.
    """
    import torch
    from transformers import AutoConfig, AutoModelForMaskedLM

    try:
        config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read a model configuration from {source}: {error}") from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForMaskedLM.from_config(config, dtype=torch.float32).eval()


def best_device() -> Any:
    """The first GPU that torch sees, else the CPU."""
    import torch

    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def masked_logits(model: Any, inputs: Any, flat: Any) -> Any:
    """Logits at chosen positions only.

    Parameters
    ----------
    model : a transformers masked-LM model
    inputs : int64 tensor of shape (b, L)
    flat : int64 tensor of shape (t,)
        Positions in the flattened (b L) order.

    Returns
    -------
    tensor of shape (t, V)
    """
    head = getattr(model, "lm_head", None) or getattr(model, "cls", None)
    base = getattr(model, model.base_model_prefix, None)
    if head is None or base is None:
        return model(inputs).logits.flatten(0, 1)[flat]
    hidden = base(inputs).last_hidden_state  # (b, L, d)
    return head(hidden.flatten(0, 1)[flat])


def score(model: Any, masked: MaskedSequences, *, batch_size: int = 16, label: str | None = None) -> Scores:
    """-log p(target) and rank of every target of fixed masks, in evaluation mode; the model keeps its mode.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        With a masked-LM head.
    masked : MaskedSequences
    batch_size : int
        Sequences per forward pass.
    label : str or None
        Shown in the progress; None shows none.

    Returns
    -------
    Scores

    Raises
    ------
    InputError
        Ids outside the model's vocabulary, sequences longer than its positions, or a loss that is NaN.
    """
    import torch

    _check_fits(model, masked)
    nll = np.empty(len(masked), np.float64)
    rank = np.empty(len(masked), np.int32)
    length = masked.inputs.shape[1]
    starts = np.searchsorted(masked.row, np.arange(0, len(masked.inputs) + batch_size, batch_size))
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    progress = Progress(label, len(starts) - 1, "batches") if label else None
    with torch.inference_mode():
        for number, (start, stop) in enumerate(pairwise(starts)):
            if start == stop:
                continue
            first = number * batch_size
            inputs = torch.from_numpy(masked.inputs[first : first + batch_size].astype(np.int64)).to(device)
            flat = (masked.row[start:stop].astype(np.int64) - first) * length + masked.column[start:stop]
            target = torch.from_numpy(masked.target[start:stop].astype(np.int64)).to(device)
            logits = masked_logits(model, inputs, torch.from_numpy(flat).to(device)).float()  # (t, V)
            right = logits.gather(1, target[:, None])  # (t, 1)
            nll[start:stop] = (logits.logsumexp(1) - right[:, 0]).double().cpu().numpy()
            rank[start:stop] = (logits > right).sum(1).int().cpu().numpy()
            if progress:
                progress.update(number + 1)
    if progress:
        progress.close()
    model.train(was_training)
    if not np.isfinite(nll).all():
        raise InputError(
            f"the masked-LM loss is not finite at {int((~np.isfinite(nll)).sum())} of {len(nll)} targets: "
            "the checkpoint holds NaN or infinite weights"
        )
    return Scores(nll, rank)


def _check_fits(model: Any, masked: MaskedSequences) -> None:
    size = model.get_input_embeddings().num_embeddings
    largest = int(max(masked.inputs.max(initial=0), masked.target.max(initial=0)))
    if largest >= size:
        raise InputError(
            f"a token id {largest} is outside the model's vocabulary of {size}: "
            "the tokenizer is not the one the model was made with"
        )
    positions = longest_sequence(model.config.to_dict())
    if positions is not None and masked.inputs.shape[1] > positions:
        raise InputError(
            f"sequences of {masked.inputs.shape[1]} tokens do not fit the model's {positions} positions: "
            "lower evaluate.sequence_length"
        )


def unigram_nll(masked: MaskedSequences, counts: np.ndarray) -> np.ndarray:
    """The loss of a model that knows only (counts + 1) / (N + V), per target: the level a head bias can reach."""
    smoothed = np.asarray(counts, np.float64) + 1.0
    return np.log(smoothed.sum()) - np.log(smoothed[masked.target])


def target_metrics(scores: Scores) -> dict[str, np.ndarray]:
    """The figures per target: ``nll``, ``top1``, ``top5``, ``mrr``."""
    return {
        "nll": scores.nll,
        "top1": (scores.rank == 0).astype(np.float64),
        "top5": (scores.rank < 5).astype(np.float64),
        "mrr": 1.0 / (scores.rank + 1.0),
    }
