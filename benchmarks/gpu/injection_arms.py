"""The arms of `injection.py`: ways to bring a domain's text into a masked-LM model, and what each gains and loses.

Gains are base minus arm, nats per masked token, on test sequences that go through the encoder with the arm's rows
(tied), under one masking that is the same in all arms. A forward-equivalent is a forward pass of the sample; a training
step costs three of its batch. Fits hold 10 % of the sample's documents out to choose their penalty, trainings use all
of it. The states of a seed are computed once, under the most maskings that an arm asks for; an arm of fewer takes the
first of them, and its share of the seconds.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from injection_text import GENERAL, SplitText
from injection_training import train
from safetensors import safe_open
from safetensors.torch import load_model, save_model

from wals_spark.cluster.process_group import LocalGroup
from wals_spark.errors import InputError
from wals_spark.inject.fit.fit_rows import FitSettings, FittedRows, FitTexts, FitTokens, fit_rows
from wals_spark.inject.fit.softmax_loss import OutputLayer, SoftmaxLoss
from wals_spark.mlm.data import SpecialIds
from wals_spark.mlm.hidden_states import CANDIDATES, MaskedStates
from wals_spark.mlm.masking import Maskings, is_special, masked_positions
from wals_spark.mlm.state_encoder import Precision, StateEncoder
from wals_spark.mlm.statistics import Clusters, Interval
from wals_spark.mlm.text_sequences import TextSequences, validation_documents

VALIDATION_SHARE = 0.1
"""Of the training documents, on which a fit chooses its penalty."""
TEST_MASKINGS = Maskings(1, 0.15, 0x7465)
BANDS = (0, 1, 5, 20, 100)
"""Band i holds tokens that the domain's sample has from BANDS[i] up to below BANDS[i + 1] times."""
RESAMPLES = 1000
TOP = 10
ADAPTED = 4000
"""General sequences that the adapted base is trained on first; the general control takes those after them."""

Kind = Literal["base", "bias", "fit", "full", "embeddings", "general"]


@dataclass(frozen=True)
class Arm:
    """An arm.

    Attributes
    ----------
    name : str
        Such as ``fit-4`` (maskings) and ``full-0.5`` (epochs).
    kind : {"base", "bias", "fit", "full", "embeddings", "general"}
    amount : float
        Maskings of a fit, epochs of a training.
    """

    name: str
    kind: Kind
    amount: float = 0

    @property
    def forward_equivalents(self) -> float:
        """Forward passes of the sample that the arm costs."""
        return self.amount if self.kind in ("base", "bias", "fit") else 3 * self.amount


def parse_arm(name: str) -> Arm:
    """An arm by its name: base, bias, fit-M, full-E, embeddings-E, general-E.

    Raises
    ------
    InputError
        No such arm.
    """
    if name in ("base", "bias"):
        return Arm(name, name, float(name == "bias"))  # type: ignore[arg-type]
    kind, _, amount = name.partition("-")
    is_number = amount.replace(".", "", 1).isdigit() and float(amount) > 0
    if kind not in ("fit", "full", "embeddings", "general") or not is_number or (kind == "fit" and "." in amount):
        raise InputError(
            f"no arm is called {name!r}: expected base, bias, fit-M (M maskings), full-E, embeddings-E or general-E (E "
            "epochs), such as fit-4 or full-0.5"
        )
    return Arm(name, kind, float(amount))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Setting:
    """What all arms of a run share.

    Attributes
    ----------
    special : SpecialIds
    protected : int64 array of shape (p,)
        Ids whose rows no fit moves.
    sequences : int
        Of the sample.
    precision : {"fp32", "tf32", "bf16"}
        Of states and evaluation.
    bf16_training : bool
    threads : int
    """

    special: SpecialIds
    protected: np.ndarray
    sequences: int
    precision: Precision = "fp32"
    bf16_training: bool = False
    threads: int = 1


@dataclass
class _Sample:
    """States of a domain's sample under the most maskings that an arm asks for, with the time they took."""

    states: MaskedStates
    masking: np.ndarray
    """Of each position: the number of the masking that hides it."""
    maskings: int
    seconds: float


class Comparison:
    """One base model and its arms.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        The base, on its device; it is back at the base's weights after each arm.
    texts : dict of str to SplitText
        The domains and ``general``.
    setting : Setting

    Raises
    ------
    InputError
        The model's head has rows of its own, or no bias.
    """

    def __init__(self, model: Any, texts: dict[str, SplitText], setting: Setting) -> None:
        self.model, self.texts, self.setting = model, texts, setting
        decoder = model.get_output_embeddings()
        if decoder is None or decoder.weight is not model.get_input_embeddings().weight or decoder.bias is None:
            raise InputError(
                f"{type(model).__name__}: expected a masked-LM head with a bias whose rows are the token embeddings"
            )
        self.device = decoder.weight.device
        self._weights = self._copy()
        self._base: dict[str, MaskedStates] = {}
        self._samples: dict[tuple[str, int], _Sample] = {}

    def lines(self, arm: Arm, domains: Sequence[str], seed: int, most: int) -> Iterator[dict[str, Any]]:
        """The results of an arm, a domain after the other.

        Parameters
        ----------
        arm : Arm
        domains : sequence of str
        seed : int
            Of masks, order and dropout.
        most : int
            Maskings of the states that this and later fits share.

        Yields
        ------
        dict of str to object
            Plain JSON values.
        """
        if arm.kind == "general":
            yield from self._general_lines(arm, domains, seed)
            return
        for domain in domains:
            before = {name: self._base_states(name) for name in (domain, GENERAL)}
            facts: dict[str, Any] = {}
            if arm.kind in ("bias", "fit"):
                facts = self._fitted(arm, domain, seed, most)
            elif arm.kind != "base":
                seconds = self._train(self._sample_text(domain), arm, seed)
                facts = {"seconds": {"training": round(seconds, 2)}}
            found = before if arm.kind == "base" else {name: self._test_states(name) for name in before}
            yield self._result(arm, domain, facts, found)
            self._restore(arm)

    def _general_lines(self, arm: Arm, domains: Sequence[str], seed: int) -> Iterator[dict[str, Any]]:
        """One model for all domains."""
        training = self.texts[GENERAL].training
        later = training.take(np.arange(ADAPTED, min(ADAPTED + self.setting.sequences, len(training))))
        if len(later) < self.setting.sequences:
            raise InputError(
                f"the general text has {len(training)} training sequences, the general control needs "
                f"{ADAPTED + self.setting.sequences}: prepare more with --general-train"
            )
        before = {name: self._base_states(name) for name in (*domains, GENERAL)}
        facts = {"seconds": {"training": round(self._train(later, arm, seed), 2)}}
        found = {name: self._test_states(name) for name in before}
        for domain in domains:
            yield self._result(arm, domain, facts, found)
        self._restore(arm)

    def adapt(self, seed: int, held: Path) -> None:
        """Make the model, trained on `ADAPTED` general sequences for one epoch, the base.

        Parameters
        ----------
        seed : int
        held : Path
            A file of its weights: read where it is there and is of the same base and text, otherwise written.

        Raises
        ------
        InputError
            The file is of another base or text.
        """
        training = self.texts[GENERAL].training.take(np.arange(min(ADAPTED, len(self.texts[GENERAL].training))))
        rows = self.model.get_output_embeddings().weight.detach().cpu().numpy()
        digest = hashlib.blake2b(rows.tobytes() + training.tokens.tobytes(), digest_size=16).hexdigest()
        identity = {"base_and_text": digest, "seed": str(seed), "bf16": str(self.setting.bf16_training)}
        if held.exists():
            with safe_open(held, "pt") as file:
                found = file.metadata()
            if {name: found.get(name) for name in identity} != identity:
                raise InputError(f"{held} is of {found}, expected {identity}: remove it, or give another --output")
            load_model(self.model, held, device=str(self.device))
        else:
            train(self.model, training, self.setting.special, 1, seed, bf16=self.setting.bf16_training)
            save_model(self.model, str(held), identity)
        self._weights = self._copy()
        self._base.clear()
        self._samples.clear()

    def _copy(self) -> dict[str, torch.Tensor]:
        """The weights as they are."""
        return {name: value.detach().clone() for name, value in self.model.state_dict().items()}

    def _sample_text(self, domain: str) -> TextSequences:
        training = self.texts[domain].training
        if len(training) < self.setting.sequences:
            raise InputError(
                f"{domain} has {len(training)} training sequences, {self.setting.sequences} are asked for: prepare "
                "more, or lower --sequences"
            )
        return training.take(np.arange(self.setting.sequences))

    def _train(self, sequences: TextSequences, arm: Arm, seed: int) -> float:
        return train(
            self.model, sequences, self.setting.special, arm.amount, seed,
            embeddings_only=arm.kind == "embeddings", bf16=self.setting.bf16_training,
        )  # fmt: skip

    def _restore(self, arm: Arm) -> None:
        if arm.kind != "base":
            self.model.load_state_dict(self._weights)

    def _encode(self, sequences: TextSequences, maskings: Maskings, candidates: int) -> tuple[MaskedStates, float]:
        started = time.perf_counter()
        encoder = StateEncoder(
            self.model, self.setting.special, precision=self.setting.precision, candidates=candidates
        )
        states = encoder.states(sequences, maskings)
        return states, time.perf_counter() - started

    def _test_states(self, name: str) -> MaskedStates:
        """States of a text's test sequences, the likeliest tokens with them."""
        return self._encode(self.texts[name].test, TEST_MASKINGS, TOP)[0]

    def _base_states(self, name: str) -> MaskedStates:
        """The same of the base, which the model must be; computed once."""
        if name not in self._base:
            self._base[name] = self._test_states(name)
        return self._base[name]

    def _result(self, arm: Arm, domain: str, facts: dict[str, Any], found: dict[str, MaskedStates]) -> dict[str, Any]:
        before, after = self._base[domain], found[domain]
        text = self._sample_text(domain)
        counts = np.bincount(text.tokens, minlength=int(before.target.max()) + 1)
        return {
            "domain": domain,
            "forward_equivalents": arm.forward_equivalents,
            "loss": round(float(after.base_loss.mean()), 4),
            "general_loss": round(float(found[GENERAL].base_loss.mean()), 4),
            "gain": _gain(before, after),
            "general": _gain(self._base[GENERAL], found[GENERAL]),
            "bands": gain_by_band(before, after.base_loss, counts),
            "accuracy_1": accuracy(after, 1),
            "accuracy_10": accuracy(after, TOP),
            **facts,
        }

    def _states(self, domain: str, seed: int, maskings: int) -> _Sample:
        """The states of a domain's sample; computed once for a seed."""
        key = (domain, seed)
        held = self._samples.get(key)
        if held is None or held.maskings < maskings:
            for other in [other for other in self._samples if other[1] != seed]:
                del self._samples[other]
            sequences, chosen = self._sample_text(domain), Maskings(maskings, 0.15, seed + 1)
            states, seconds = self._encode(sequences, chosen, CANDIDATES)
            table = is_special(self.setting.special)
            sizes = [masked_positions(sequences, index, chosen, table).shape for index in range(len(sequences))]
            numbers = np.concatenate([np.repeat(np.arange(count), size) for count, size in sizes])
            held = self._samples[key] = _Sample(states, numbers, maskings, seconds)
        return held

    def _fitted(self, arm: Arm, domain: str, seed: int, most: int) -> dict[str, Any]:
        """Fit and put the rows into the model."""
        maskings = int(arm.amount)
        held = self._states(domain, seed, max(most, maskings))
        states = held.states.take(held.masking < maskings)
        validation = validation_documents(states.document, VALIDATION_SHARE)
        decoder = self.model.get_output_embeddings()
        base = OutputLayer(decoder.weight.detach().cpu().numpy(), decoder.bias.detach().cpu().numpy())
        texts = FitTexts(states.take(~validation), states.take(validation))
        settings = FitSettings(rows="bias" if arm.kind == "bias" else "free", seed=seed)
        started = time.perf_counter()
        fitted = fit_rows(
            texts, base, FitTokens(self.setting.protected), settings, LocalGroup(),
            device=str(self.device), threads=self.setting.threads,
        )  # fmt: skip
        seconds = time.perf_counter() - started
        untied = self._untied(fitted, base, domain)
        with torch.no_grad():
            ids = torch.from_numpy(fitted.ids).to(self.device)
            self.model.get_input_embeddings().weight[ids] += torch.from_numpy(fitted.rows).to(self.device)
            decoder.bias[ids] += torch.from_numpy(fitted.bias).to(self.device)
        share = maskings / held.maskings
        return {
            "seconds": {"states": round(held.seconds * share, 2), "fit": round(seconds, 2)},
            "states_measured_at": held.maskings,
            "lambda_rows": round(fitted.facts["lambda_rows"], 2),
            "moved_rows": fitted.facts["moved_rows"],
            "positions": fitted.facts["positions"],
            "evaluations": fitted.facts["evaluations"],
            "converged": fitted.facts["converged"],
            "untied": untied,
        }

    def _untied(self, fitted: FittedRows, base: OutputLayer, domain: str) -> dict[str, Any]:
        """The gain at the base's states of the test sequences: only the head reads the rows."""
        found: dict[str, Any] = {}
        for name, key in ((domain, "gain"), (GENERAL, "general")):
            states = self._base[name]
            loss = SoftmaxLoss(states, base, fitted.ids, 1.0, str(self.device))
            D = np.concatenate([fitted.rows, fitted.bias[:, None]], 1).astype(np.float32)
            after = loss.losses(torch.from_numpy(D).to(self.device))
            found[key] = interval_json(Clusters(states.document, RESAMPLES, 0).difference(states.base_loss, after))
        return found


def interval_json(found: Interval) -> dict[str, Any]:
    """Plain JSON values; null where there is no number."""
    value, low, high = (None if not np.isfinite(x) else round(x, 4) for x in (found.value, found.low, found.high))
    return {"value": value, "low": low, "high": high, "targets": found.n, "documents": found.clusters}


def _gain(before: MaskedStates, after: MaskedStates) -> dict[str, Any]:
    return interval_json(Clusters(before.document, RESAMPLES, 0).difference(before.base_loss, after.base_loss))


def band_names() -> tuple[str, ...]:
    """``0``, ``1-4``, ... ``100+``, in the order of `BANDS`."""
    closed = (str(low) if low == high - 1 else f"{low}-{high - 1}" for low, high in pairwise(BANDS))
    return (*closed, f"{BANDS[-1]}+")


def gain_by_band(before: MaskedStates, after_loss: np.ndarray, counts: np.ndarray) -> dict[str, Any]:
    """The gain at targets of each band of frequency in the domain's sample.

    Parameters
    ----------
    before : MaskedStates
        The base's, of the test sequences.
    after_loss : float64 array of shape (n,)
        The arm's losses at the same positions.
    counts : int64 array of shape (V,)
        Of each token in the sample.

    Returns
    -------
    dict of str to dict
        By the names of `band_names`.
    """
    band = np.searchsorted(BANDS, counts[before.target], side="right") - 1
    found = {}
    for number, name in enumerate(band_names()):
        inside = band == number
        clusters = Clusters(before.document[inside], RESAMPLES, 0)
        found[name] = interval_json(clusters.difference(before.base_loss[inside], after_loss[inside]))
    return found


def accuracy(states: MaskedStates, top: int) -> float:
    """The share of positions whose token is among the `top` likeliest."""
    return round(float((states.candidates[:, :top] == states.target[:, None]).any(axis=1).mean()), 4)
