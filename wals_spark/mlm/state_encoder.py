"""States of masked positions from a frozen masked-LM model of any class: one forward pass for each masking.

The state h_t is what the model's output embedding, a linear map, is given at position t. It is caught there by a hook,
so no name of a head's layers is needed; that the output embedding makes the model's logits of it is checked once for
each model. Logits are computed at masked positions only, in float32, from the states as they are stored (float16), in
blocks of bounded size.

In bfloat16 the states of BERT-base differ from those in float32 by 0.8 to 0.9 % (root mean square; 4 % at the worst of
2,368 positions of biomedical and court text), the loss of a position by 0.015 nats and the mean loss by 0.0002 or less.
On a processor with bfloat16 instructions (avx512_bf16) a pass takes 0.09 processor seconds instead of 0.25.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, Literal

import numpy as np

from wals_spark.errors import InputError
from wals_spark.mlm.data import SpecialIds
from wals_spark.mlm.hidden_states import CANDIDATES, MaskedStates
from wals_spark.mlm.masking import Maskings, is_special, masked_positions
from wals_spark.mlm.positions import longest_sequence
from wals_spark.mlm.text_sequences import TextSequences

logger = logging.getLogger(__name__)

Precision = Literal["fp32", "tf32", "bf16"]
LOGIT_BYTES = 64 << 20
"""Bytes of the logits that are in memory at a time on a processor."""
LOGIT_BYTES_CUDA = 1 << 30
"""The same on a GPU."""
BATCH_CPU = 16
BATCH_CUDA = 128
"""Masked sequences of a forward pass where the caller does not say."""
_PROBE_TOLERANCE = 1e-3


class StateEncoder:
    """A frozen masked-LM model that gives the states of masked positions.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        With a masked-LM head, on the device where it computes; set to evaluation mode.
    special : SpecialIds
        Of its tokenizer.
    precision : {"fp32", "tf32", "bf16"}
        Of the forward pass: float32; float32 with the matrix products of a GPU in TF32 (on a processor as fp32); or
        automatic mixed precision with bfloat16.
    candidates : int
        K: tokens kept of each position, at most all of the vocabulary.
    batch_size : int or None
        Masked sequences of a forward pass; None = `BATCH_CPU` or `BATCH_CUDA`.

    Raises
    ------
    InputError
        The model has no output embedding, or its logits are not that map of what the map is given.
    """

    def __init__(
        self,
        model: Any,
        special: SpecialIds,
        *,
        precision: Precision = "fp32",
        candidates: int = CANDIDATES,
        batch_size: int | None = None,
    ) -> None:
        self.model = model.eval()
        self.special = special
        self.precision = precision
        self.decoder = model.get_output_embeddings()
        if self.decoder is None:
            raise InputError(f"{type(model).__name__} has no masked-LM head: it predicts no tokens")
        self.device = self.decoder.weight.device
        self.size, self.width = self.decoder.weight.shape
        self.candidates = min(candidates, self.size)
        self.batch_size = batch_size or (BATCH_CUDA if self.device.type == "cuda" else BATCH_CPU)
        self._pad = getattr(model.config, "pad_token_id", None)
        self._is_special = is_special(special)
        self._check_head()

    def states(
        self, sequences: TextSequences, maskings: Maskings, done: Callable[[int], None] | None = None
    ) -> MaskedStates:
        """The states of every masking of every sequence.

        Parameters
        ----------
        sequences : TextSequences
        maskings : Maskings
        done : callable or None
            Called after each batch with the number of forward passes of a sequence so far.

        Returns
        -------
        MaskedStates
            By sequence, then masking, then position. Beyond rounding it does not depend on what other sequences there
            are, nor on the size of a batch.

        Raises
        ------
        InputError
            A token id or a sequence that the model does not have room for; states that are NaN, infinite, or beyond
            float16.
        """
        self._check_fits(sequences)
        masked = [masked_positions(sequences, index, maskings, self._is_special) for index in range(len(sequences))]
        counts = np.repeat([rows.shape[1] for rows in masked], maskings.count).astype(np.int64)
        ends = np.cumsum(counts)
        states = self._empty(int(ends[-1]) if len(ends) else 0)
        passes = np.arange(len(sequences) * maskings.count)[counts > 0]
        owner = passes // maskings.count
        order = np.argsort(-sequences.lengths[owner], kind="stable")
        for begin in range(0, len(order), self.batch_size):
            batch = passes[order[begin : begin + self.batch_size]]
            positions = [masked[item // maskings.count][item % maskings.count] for item in batch]
            pieces = [sequences.piece(item // maskings.count) for item in batch]
            rows = np.concatenate([np.arange(ends[item] - counts[item], ends[item]) for item in batch])
            states.target[rows] = np.concatenate([ids[at] for ids, at in zip(pieces, positions, strict=True)])
            states.document[rows] = np.repeat(sequences.document[batch // maskings.count], counts[batch])
            self._fill(states, rows, pieces, positions)
            if done is not None:
                done(begin + len(batch))
        return states

    def _empty(self, count: int) -> MaskedStates:
        return MaskedStates(
            np.empty((count, self.width), np.float16),
            np.empty(count, np.int32),
            np.empty(count, np.uint64),
            np.empty((count, self.candidates), np.int32),
            np.empty(count, np.float32),
            np.empty(count, np.float32),
        )

    def _fill(
        self, states: MaskedStates, rows: np.ndarray, pieces: list[np.ndarray], positions: list[np.ndarray]
    ) -> None:
        """One forward pass; writes what it gives into the rows of `states`, whose targets are there."""
        import torch

        length = max(map(len, pieces)) + 2
        inputs = np.full((len(pieces), length), self._pad or 0, np.int64)
        inputs[:, 0] = self.special.start
        for row, (piece, hidden) in enumerate(zip(pieces, positions, strict=True)):
            inputs[row, 1 : len(piece) + 1] = piece
            inputs[row, hidden + 1] = self.special.mask
            inputs[row, len(piece) + 1] = self.special.end
        sizes = np.array([len(piece) + 2 for piece in pieces])
        attended = np.arange(length) < sizes[:, None] if (sizes < length).any() else None
        flat = np.concatenate([row * length + hidden + 1 for row, hidden in enumerate(positions)])
        with torch.inference_mode():
            h = self._head_inputs(inputs, attended).flatten(0, 1)[torch.from_numpy(flat).to(self.device)]
            stored = h.half()
            self._check_finite(h, stored)
            states.hidden[rows] = stored.cpu().numpy()
            held = LOGIT_BYTES_CUDA if self.device.type == "cuda" else LOGIT_BYTES
            chunk = max(1, held // (4 * self.size))
            for begin in range(0, len(rows), chunk):
                at = rows[begin : begin + chunk]
                logits = self.decoder(stored[begin : begin + chunk].to(self.decoder.weight.dtype)).float()  # (c, V)
                target = torch.from_numpy(states.target[at].astype(np.int64)).to(self.device)
                states.candidates[at] = logits.topk(self.candidates, dim=1).indices.int().cpu().numpy()
                states.log_partition[at] = logits.logsumexp(1).cpu().numpy()
                states.target_logit[at] = logits.gather(1, target[:, None])[:, 0].cpu().numpy()

    def _head_inputs(self, inputs: np.ndarray, attended: np.ndarray | None) -> Any:
        """What the output embedding is given, float32 (b, L, d); the map itself is applied to nothing."""
        import torch

        caught: list[Any] = []

        def catch(module: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            caught.append(arguments[0])
            return (arguments[0][:, :0],)

        handle = self.decoder.register_forward_pre_hook(catch)
        try:
            with torch.inference_mode(), self._computing():
                mask = None if attended is None else torch.from_numpy(attended).to(self.device, torch.int64)
                self.model(input_ids=torch.from_numpy(inputs).to(self.device), attention_mask=mask)
        finally:
            handle.remove()
        return caught[0].float()

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """Matrix products of the forward pass at the precision asked for; the caller's setting comes back."""
        import torch

        before = torch.get_float32_matmul_precision()
        is_tf32 = self.precision == "tf32" and self.device.type == "cuda"
        torch.set_float32_matmul_precision("high" if is_tf32 else "highest")
        try:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                yield
        finally:
            torch.set_float32_matmul_precision(before)

    def _check_head(self) -> None:
        """Raise unless the model's logits are its output embedding of what a hook finds there."""
        import torch

        inputs = np.array([[self.special.start, self.special.mask, self.special.end]], np.int64)
        with torch.inference_mode(), self._computing():
            expected = self.model(input_ids=torch.from_numpy(inputs).to(self.device)).logits.float()
            found = self.decoder(self._head_inputs(inputs, None).to(self.decoder.weight.dtype)).float()
        if self.precision == "bf16" or not torch.isfinite(expected).all():
            return  # Not finite: `states` says so at the text. bfloat16: the fp32 model of the same class is checked.
        worst = float((found - expected).abs().max()) if found.shape == expected.shape else np.inf
        if worst > _PROBE_TOLERANCE * max(1.0, float(expected.abs().max())):
            raise InputError(
                f"{type(self.model).__name__}: its logits are not its output embedding of that layer's input (largest "
                f"difference {worst:.3g}): rows fitted to these states would not be rows of this head"
            )

    def _check_fits(self, sequences: TextSequences) -> None:
        largest = int(sequences.tokens.max(initial=0))
        if largest >= self.size:
            raise InputError(
                f"a token id {largest} is outside the model's vocabulary of {self.size}: the text was encoded with "
                "another tokenizer"
            )
        longest, allowed = int(sequences.lengths.max(initial=0)) + 2, longest_sequence(self.model.config.to_dict())
        if allowed is not None and longest > allowed:
            raise InputError(
                f"sequences of {longest} tokens do not fit the model's {allowed} positions: cut shorter ones"
            )

    def _check_finite(self, h: Any, stored: Any) -> None:
        import torch

        bad = int((~torch.isfinite(stored).all(1)).sum())
        if not bad:
            return
        broken = int((~torch.isfinite(h).all(1)).sum())
        if broken:
            raise InputError(
                f"the states of {broken} of {len(h)} masked positions of a batch are NaN or infinite: the checkpoint "
                f"holds such weights, or overflows in {self.precision} (then set states.precision to fp32)"
            )
        raise InputError(
            f"the states of {bad} of {len(h)} masked positions of a batch reach {float(h.abs().max()):.3g}, beyond the "
            "65,504 of float16, in which they are stored: rows cannot be fitted to this head; use inject.mode blend"
        )


def state_bytes(width: int, candidates: int = CANDIDATES) -> int:
    """Bytes of a stored position: 2 d + 4 K + 20."""
    scalars = len(fields(MaskedStates)) - 2
    assert scalars == 4, "target, document, log_partition, target_logit"
    return 2 * width + 4 * candidates + 20
