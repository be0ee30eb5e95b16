"""The demonstration's masked-LM training: the same batches, masks and steps from three starts.

``random weights``: as the model class initialises them. ``head bias alone``: the same, the head bias set to the
log unigram frequency: the control that costs nothing. ``factors``: what ``inject --mode init`` wrote, that is, the
same with the head bias and the embedding rows from the factors.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from wals_spark import schemas, storage
from wals_spark.config import fingerprint
from wals_spark.evaluate.metrics import DIFFERENCE_PREFIX, PRETRAIN_PREFIX
from wals_spark.inject.frequency import log_unigram
from wals_spark.mlm.data import (
    MaskedSequences,
    PackedSequences,
    SpecialIds,
    encode,
    mask_tokens,
    pack_sequences,
    special_ids,
)
from wals_spark.mlm.loss import best_device, load_masked_lm, masked_lm_from_config
from wals_spark.mlm.pretrain import Schedule, evaluation_steps, pretrain
from wals_spark.mlm.statistics import Clusters, Interval
from wals_spark.runs import package_versions
from wals_spark.stage import Context, Metric, write_metrics
from wals_spark.tokenizer import load_tokenizer

logger = logging.getLogger(__name__)

RANDOM, BIAS, FACTORS = "random weights", "head bias alone", "factors"
ARMS = (RANDOM, BIAS, FACTORS)
MARKER = "training.json"
CURVE = "curve.npz"
POINTS = 7
UNSEEN_SEQUENCES = 96
SCHEDULE = Schedule(steps=400, batch=8, learning_rate=1.5e-3)


@dataclass(frozen=True)
class TrainingData:
    """What every arm trains on and is measured on."""

    train: PackedSequences
    unseen: MaskedSequences
    special: SpecialIds
    hash: str


@dataclass(frozen=True)
class ArmResult:
    """A finished arm: loss per unseen target at each measured step."""

    steps: list[int]
    nll: np.ndarray  # (points, t)
    seconds: float


def arm_directory(directory: str, arm: str) -> str:
    """Where an arm's checkpoint stands."""
    return os.path.join(directory, arm.replace(" ", "-"))


def read_data(context: Context, length: int) -> TrainingData:
    """Sequences of the counted documents to train on, and fixed masks of the held-out ones."""
    assert context.config.vocabulary.tokenizer is not None
    loaded = load_tokenizer(context.config.vocabulary.tokenizer)
    special = special_ids(loaded)
    batch = context.config.corpus.batch_id
    rows = []
    for data_file in context.tables.files(schemas.DOCUMENTS, {"batch_id": batch}):
        rows += data_file.read(["doc_id", "text", "held_out"]).to_pylist()
    rows.sort(key=lambda row: row["doc_id"])
    seen = encode(loaded, [row["text"] for row in rows if not row["held_out"]])
    held_out = encode(loaded, [row["text"] for row in rows if row["held_out"]])
    train = pack_sequences(seen, special, length)
    unseen = pack_sequences(held_out, special, length, limit=UNSEEN_SEQUENCES, round_robin=True)
    identity = fingerprint([loaded.hash, train.ids.shape, int(train.ids.sum()), unseen.ids.tolist()])
    return TrainingData(train, mask_tokens(unseen, special, 0.15, context.config.seed), special, identity)


def _model(arm: str, start: str, initial: str, counts: np.ndarray, seed: int) -> Any:
    import torch

    if arm == FACTORS:
        return load_masked_lm(initial)
    model = masked_lm_from_config(start, seed)
    if arm == BIAS:
        with torch.no_grad():
            model.lm_head.bias.copy_(torch.from_numpy(log_unigram(counts)).float())
    return model


def train_arm(
    arm: str,
    directory: str,
    data: TrainingData,
    *,
    start: str,
    initial: str,
    counts: np.ndarray,
    initial_hash: str,
    seed: int,
) -> tuple[ArmResult, bool]:
    """Train one arm unless its marker says that this very training is done; returns its curve and whether it ran.

    Parameters
    ----------
    arm : str
        One of `ARMS`.
    directory : str
        Of the arm's checkpoint; replaced when it is of another training.
    data : TrainingData
    start : str
        Directory of the model's configuration and tokenizer.
    initial : str
        Checkpoint that ``inject --mode init`` wrote.
    counts : int array of shape (V,)
        Of the tokens, for the head bias.
    initial_hash : str
        Of the checkpoint `initial`.
    seed : int

    Returns
    -------
    result : ArmResult
    ran : bool
    """
    packages = {name: version for name, version in package_versions().items() if name in ("torch", "transformers")}
    facts = {"arm": arm, "schedule": asdict(SCHEDULE), "seed": seed, "data": data.hash, "packages": packages}
    facts["initial"] = initial_hash if arm == FACTORS else ""
    expected = fingerprint(facts)
    finished = _finished_arm(directory, expected)
    if finished is not None:
        return finished, False
    model = _model(arm, start, initial, counts, seed).to(best_device())
    found = pretrain(
        model,
        data.train,
        data.special,
        SCHEDULE,
        seed,
        unseen=data.unseen,
        eval_steps=evaluation_steps(SCHEDULE.steps, POINTS),
        label=f"training from {arm}",
    )
    result = ArmResult(found.steps, np.stack(found.nll).astype(np.float32), found.seconds)
    _save_arm(directory, model, start, result, {"fingerprint": expected, **facts})
    return result, True


def _finished_arm(directory: str, expected: str) -> ArmResult | None:
    """The result of an arm whose marker carries the expected fingerprint."""
    marker = os.path.join(directory, MARKER)
    if not storage.exists(marker) or storage.read_json(marker).get("fingerprint") != expected:
        return None
    with np.load(os.path.join(directory, CURVE), allow_pickle=False) as stored:
        return ArmResult(stored["steps"].tolist(), stored["nll"], float(stored["seconds"]))


def _save_arm(directory: str, model: Any, start: str, result: ArmResult, marker: Mapping[str, Any]) -> None:
    """Write checkpoint, tokenizer, curve and marker beside `directory`, then put them in its place."""
    staging = f"{directory}.unfinished"
    shutil.rmtree(staging, ignore_errors=True)
    model.save_pretrained(staging)
    for name in os.listdir(start):
        if name.startswith(("tokenizer", "special_tokens")):
            shutil.copy(os.path.join(start, name), staging)
    np.savez(os.path.join(staging, CURVE), steps=result.steps, nll=result.nll, seconds=result.seconds)
    storage.write_json(os.path.join(staging, MARKER), marker)
    shutil.rmtree(directory, ignore_errors=True)
    os.replace(staging, directory)


def final_differences(
    curves: Mapping[str, ArmResult], clusters: Clusters, pairs: tuple[tuple[str, str], ...]
) -> dict[tuple[str, str], Interval]:
    """Loss after the last step of the first arm of each pair minus that of the second."""
    return {(a, b): clusters.difference(curves[a].nll[-1], curves[b].nll[-1]) for a, b in pairs}


PAIRS = ((FACTORS, RANDOM), (FACTORS, BIAS), (BIAS, RANDOM))


def report_metrics(
    context: Context, curves: Mapping[str, ArmResult], data: TrainingData
) -> dict[tuple[str, str], Interval]:
    """Put the curves and their final differences into the metrics table, where `evaluate` finds them."""
    clusters = Clusters(data.unseen.document, context.config.evaluate.bootstrap, context.config.seed)
    differences = final_differences(curves, clusters, PAIRS)
    for arm, curve in curves.items():
        metrics = [Metric("seconds", curve.seconds)]
        for step, nll in zip(curve.steps, curve.nll, strict=True):
            loss = clusters.mean(nll)
            metrics.append(Metric("loss", loss.value, loss.low, loss.high, step))
        for (after, before), difference in differences.items():
            if after == arm:
                name = f"{DIFFERENCE_PREFIX}{before}"
                metrics.append(Metric(name, difference.value, difference.low, difference.high))
        write_metrics(context, f"{PRETRAIN_PREFIX}{arm}", metrics)
    return differences
