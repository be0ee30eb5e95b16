"""What the evaluation found, in words: lines for the log, regressions for the gate."""

from __future__ import annotations

from wals_spark.evaluate.before_after import AFTER
from wals_spark.evaluate.masked_lm import MaskedLmResult
from wals_spark.evaluate.report import between, plain, signed, verdict
from wals_spark.evaluate.vector_scores import VectorScores


def regressions(result: MaskedLmResult, margin: float) -> list[str]:
    """What is clearly worse after injection, in words: losses whose 95 % interval lies above `margin`."""
    found = []
    change = result.differences[AFTER]["nll"]
    if change.low > margin:
        found.append(f"masked-LM loss {signed(change.value)} {between(change, sign=True)} nats")
    for bucket in result.buckets:
        change = bucket.differences[AFTER]["nll"]
        if change.low > margin:
            found.append(
                f"{bucket.probe} probe of tokens seen {bucket.name} times {signed(change.value)} "
                f"{between(change, sign=True)} nats"
            )
    return found


def summary_lines(scores: VectorScores, masked: MaskedLmResult | None) -> list[str]:
    """What a person reads at the end of the stage."""
    lines = []
    for item in scores.similarities:
        lines.append(
            f"{item.name}: Spearman {plain(item.rho.value)} {between(item.rho)}, {item.covered} of {item.pairs} pairs"
            + "".join(f", {name} {plain(rho.value)} {between(rho)}" for name, rho in item.controls.items())
        )
    for questions in scores.analogies:
        lines.append(
            f"{questions.name}: 3CosAdd {plain(questions.add.value)} {between(questions.add)}, 3CosMul "
            f"{plain(questions.mul.value)} {between(questions.mul)}, {questions.covered} of {questions.questions}"
        )
    if masked is None:
        return lines
    words = {"better": "better", "worse": "worse", "unclear": "not distinguishable"}
    for arm, figures in masked.differences.items():
        difference = figures["nll"]
        lines.append(
            f"masked-LM loss {plain(masked.arms[masked.base]['nll'].value)} -> {plain(masked.arms[arm]['nll'].value)} "
            f"nats, difference {signed(difference.value)} {between(difference, sign=True)}: "
            f"{words[verdict(difference, 'nll')]}"
        )
    for bucket in masked.buckets:
        for arm, figures in bucket.differences.items():
            difference = figures["nll"]
            lines.append(
                f"{bucket.probe} probe, tokens seen {bucket.name} times ({bucket.types} types): loss "
                f"{plain(bucket.arms[masked.base]['nll'].value)} -> {plain(bucket.arms[arm]['nll'].value)}, difference "
                f"{signed(difference.value)} {between(difference, sign=True)}: {words[verdict(difference, 'nll')]}"
            )
    return lines
