"""Modes ``fit`` and ``auto``: from states to the edit of a checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from wals_spark import storage
from wals_spark.checkpoints import checkpoint as ckpt
from wals_spark.checkpoints.edit import BaseCheckpoint, EmbeddingEdit, TokenFactors, base_of_checkpoint
from wals_spark.cluster.preflight import preflight
from wals_spark.config import Config
from wals_spark.errors import GateError, InputError
from wals_spark.factors.store import Vectors
from wals_spark.inject.fit.fit_job import FitTask, run_fit, write_factors
from wals_spark.inject.fit.fit_rows import FitSettings, FittedRows
from wals_spark.inject.fit.penalty_choice import RESAMPLES
from wals_spark.inject.fit.softmax_loss import OutputLayer, SoftmaxLoss
from wals_spark.inject.fit.stages import check_checkpoint
from wals_spark.inject.fit.states_job import SEQUENCES
from wals_spark.inject.fit.tied_check import choose_strength
from wals_spark.mlm.data import special_ids
from wals_spark.mlm.masking import Maskings
from wals_spark.mlm.state_files import VALIDATION, list_state_parts, load_states, read_sequences
from wals_spark.mlm.statistics import Clusters, Interval
from wals_spark.mlm.text_sequences import TextSequences
from wals_spark.stage import StageRun
from wals_spark.stage_outputs import StatesOutputs

logger = logging.getLogger(__name__)

Blend = Callable[[], EmbeddingEdit]


@dataclass(frozen=True)
class Candidate:
    """An edit that could be written, with its gain on held-out documents at stored states."""

    name: str
    edit: EmbeddingEdit
    gain: Interval


def fit_edit(
    stage_run: StageRun, vectors: Vectors | None, blend: Blend | None = None
) -> tuple[BaseCheckpoint, EmbeddingEdit, TokenFactors | None]:
    """Fit, compare in mode ``auto``, and check with the encoder that the gain is there.

    Parameters
    ----------
    stage_run : StageRun
        Of the stage ``inject``, with states among its inputs.
    vectors : Vectors or None
        The run's factors, where ``fit.rows`` needs them.
    blend : callable, optional
        Computes the edit of mode ``blend``, for ``auto``.

    Returns
    -------
    base : BaseCheckpoint
    edit : EmbeddingEdit
    factors : TokenFactors or None

    Raises
    ------
    GateError
        Held-out text does not support the gain.
    InputError
        The states are of another checkpoint.
    """
    config = stage_run.context.config
    opened, tokenizer = check_checkpoint(config)
    protected = ckpt.protected_ids(tokenizer, opened.config, opened.vocab_size)
    runs = _Fits(stage_run, opened, protected, vectors)
    chosen = runs.fitted(config.fit.rows) if config.inject.mode == "fit" else _best(runs, blend)
    sequences = _held_out_sequences(runs.states, config.fit.check_sequences)
    edit = chosen.edit
    if len(sequences):
        maskings = Maskings(1, config.states.mask_fraction, config.seed)
        found = choose_strength(opened.directory, edit, sequences, special_ids(tokenizer), maskings)
        logger.info(
            "fit: through the encoder it gains %.4f [%.4f, %.4f] nats at strength %g",
            found.gain.value, found.gain.low, found.gain.high, found.strength,
        )  # fmt: skip
        edit = replace(found.edit, facts={**edit.facts, "through_the_encoder": found.to_json()})
        _gate(config, edit, found.gain)
    runs.remove()
    factors = None if vectors is None else TokenFactors(vectors.matrix, vectors.counts.astype(np.int64))
    return base_of_checkpoint(opened, str(config.inject.checkpoint), protected), edit, factors


class _Fits:
    """Fits of one stage run, one for each choice of what moves."""

    def __init__(
        self, stage_run: StageRun, opened: ckpt.Checkpoint, protected: np.ndarray, vectors: Vectors | None
    ) -> None:
        self.stage_run, self.opened, self.protected, self.vectors = stage_run, opened, protected, vectors
        self.states = stage_run.outputs(StatesOutputs)
        self.home = stage_run.context.run.path(f"fit-{stage_run.fingerprint}")
        self.E = ckpt.embedding_values(opened)
        assert opened.head_bias is not None
        self.bias = opened.tensors[opened.head_bias].values().astype(np.float64)

    def fitted(self, rows: str) -> Candidate:
        """The fit with some choice of what moves."""
        context = self.stage_run.context
        wanted = context.config.fit
        plan = preflight(context.spark, workers=wanted.workers, device=wanted.device, section="fit")
        task = FitTask(
            states=self.states["directory"],
            directory=storage.join(self.home, rows),
            checkpoint=str(self.opened.directory.absolute()),
            checkpoint_sha256=self.states["checkpoint_sha256"],
            settings=fit_settings(context.config, rows),
            protected=tuple(self.protected.tolist()),
            timeout_s=wanted.timeout_s,
            threads=wanted.threads,
            device=plan.device,
        )
        if rows in ("factors", "both"):
            if self.vectors is None:
                raise InputError(f"fit.rows is {rows}, but the run has no factors: run `wals-spark train`")
            write_factors(task, self.vectors.matrix, self.vectors.counts)
        positions = int(sum(split["positions"] for split in self.states["splits"].values()))
        logger.info(
            "fit: %s positions on %d ranks (%s): about %.0f MB of states a rank, and 8 arrays of the rows that move",
            f"{positions:,}", plan.ranks, plan.device, self.states["bytes"] / plan.ranks / 1e6,
        )  # fmt: skip
        fitted = run_fit(context.spark, task, plan, wanted.max_attempts)
        found = fitted.facts["held_out"]
        gain = Interval.from_json(found["gain"]) if found else Interval(np.nan, np.nan, np.nan, 0, 0)
        return Candidate(rows, edit_of_fit(fitted, self.E, self.bias), gain)

    def remove(self) -> None:
        """Remove what the fits left for a run that goes on."""
        storage.remove(self.home)

    def gain_of(self, edit: EmbeddingEdit) -> Interval:
        """The gain of any edit at the states of held-out documents."""
        import torch

        states = load_states(list_state_parts(self.states["directory"], VALIDATION))
        b = self.bias if edit.head_bias is None else edit.head_bias
        ids = np.union1d(edit.ids, np.flatnonzero(b != self.bias))
        rows = self.E[ids]
        rows[np.searchsorted(ids, edit.ids)] = edit.rows
        D = np.concatenate([rows - self.E[ids], (b - self.bias)[ids, None]], 1).astype(np.float32)
        loss = SoftmaxLoss(states, OutputLayer(self.E, self.bias.astype(np.float32)), ids, 1.0)
        after = loss.losses(torch.from_numpy(D))
        before = loss.losses(torch.zeros(loss.shape))
        return Clusters(states.document, RESAMPLES, self.stage_run.context.config.seed).difference(before, after)


def fit_settings(config: Config, rows: str) -> FitSettings:
    """The section ``fit`` as the mathematics takes it."""
    fit = config.fit
    ridge = None if fit.lambda_rows == "auto" else fit.lambda_rows
    ratio = FitSettings.factor_ratio
    if ridge is not None and fit.lambda_factors != "auto":
        ratio = fit.lambda_factors / ridge
    return FitSettings(
        rows=rows,  # type: ignore[arg-type]
        lambda_rows=ridge,
        lambda_bias=None if fit.lambda_bias == "auto" else fit.lambda_bias,
        factor_ratio=ratio,
        factor_min_count=fit.factor_min_count,
        tolerance=fit.tolerance,
        iterations=fit.iterations,
        seed=config.seed,
    )


def edit_of_fit(fitted: FittedRows, E: np.ndarray, bias: np.ndarray) -> EmbeddingEdit:
    """Fitted changes as an edit of a checkpoint.

    Parameters
    ----------
    fitted : FittedRows
    E : float32 array of shape (V, d)
    bias : float64 array of shape (V,)

    Returns
    -------
    EmbeddingEdit
    """
    moved = bias.copy()
    moved[fitted.ids] += fitted.bias
    changed = fitted.rows.any(axis=1)
    ids = fitted.ids[changed]
    share = np.zeros(len(E), np.float32)
    share[ids] = 1.0
    return EmbeddingEdit(ids, E[ids] + fitted.rows[changed], moved, share, {}, {"fit": fitted.facts})


def _best(runs: _Fits, blend: Blend | None) -> Candidate:
    """Of none, bias, blend and fit, the one with the largest clear gain on held-out documents."""
    config = runs.stage_run.context.config
    found = [runs.fitted(rows) for rows in dict.fromkeys(("bias", config.fit.rows))]
    reasons: dict[str, str] = {}
    if blend is not None:
        try:
            edit = blend()
            found.append(Candidate("blend", edit, runs.gain_of(edit)))
        except (GateError, InputError) as error:  # the other candidates need no factors
            reasons["blend"] = str(error)
    else:
        reasons["blend"] = "the run has no factors"
    clear = [candidate for candidate in found if candidate.gain.low > 0]
    table = {candidate.name: candidate.gain.to_json() for candidate in found}
    for candidate in found:
        gain = candidate.gain
        logger.info("auto: %s gains %.4f [%.4f, %.4f] nats", candidate.name, gain.value, gain.low, gain.high)
    if not clear:
        raise GateError(
            "inject: the gate refused, nothing was written: on held-out documents neither bias nor blend nor fit gains "
            "anything clear over the checkpoint as it is",
            details={"auto": {"candidates": table, "left_out": reasons}},
        )
    best = max(clear, key=lambda candidate: candidate.gain.value)
    logger.info("auto: %s is taken", best.name)
    facts = {**best.edit.facts, "auto": {"chosen": best.name, "candidates": table, "left_out": reasons}}
    return replace(best, edit=replace(best.edit, facts=facts))


def _gate(config: Config, edit: EmbeddingEdit, gain: Interval) -> None:
    if gain.low > 0 or not config.inject.gate or config.inject.force:
        return
    raise GateError(
        f"inject: the gate refused, nothing was written: on {gain.n} masked tokens of {gain.clusters} held-out "
        f"documents the model gains {gain.value:.4f} nats, 95 % interval [{gain.low:.4f}, {gain.high:.4f}]: nothing "
        "clear. More text (states.sequences, states.maskings) may help, unless the model knows this text already; "
        "--set inject.force=true writes in spite of it and records that",
        details={"fit": edit.facts},
    )


def _held_out_sequences(states: StatesOutputs, limit: int) -> TextSequences:
    sequences, splits = read_sequences(storage.join(states["directory"], SEQUENCES))
    return sequences.take(np.flatnonzero(np.array(splits) == VALIDATION)[:limit])
