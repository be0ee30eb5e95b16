"""What the evaluation found, in words: lines for the log, regressions for the gate."""

from __future__ import annotations

from wals_spark.evaluate.before_after import AFTER
from wals_spark.evaluate.masked_lm import MaskedLmResult
from wals_spark.evaluate.number_format import (
    VERDICT_WORDS,
    format_difference,
    format_estimate,
    format_value,
    verdict,
)
from wals_spark.evaluate.vector_scores import VectorScores


def regressions(result: MaskedLmResult, margin: float) -> list[str]:
    """What is clearly worse after injection, in words: losses whose 95 % interval lies above `margin`."""
    found = []
    change = result.differences[AFTER]["nll"]
    if change.low > margin:
        found.append(f"masked-LM loss {format_difference(change)} nats")
    for bucket in result.buckets:
        change = bucket.differences[AFTER]["nll"]
        if change.low > margin:
            found.append(f"{bucket.probe} probe of tokens seen {bucket.name} times {format_difference(change)} nats")
    return found


def summary_lines(scores: VectorScores, masked: MaskedLmResult | None) -> list[str]:
    """What a person reads at the end of the stage."""
    lines = []
    for item in scores.similarities:
        lines.append(
            f"{item.name}: Spearman {format_estimate(item.rho)}, {item.covered} of {item.pairs} pairs"
            + "".join(f", {name} {format_estimate(rho)}" for name, rho in item.controls.items())
        )
    for questions in scores.analogies:
        lines.append(
            f"{questions.name}: 3CosAdd {format_estimate(questions.add)}, 3CosMul "
            f"{format_estimate(questions.mul)}, {questions.covered} of {questions.questions}"
        )
    if masked is None:
        return lines
    for arm, figures in masked.differences.items():
        difference = figures["nll"]
        lines.append(
            f"masked-LM loss {format_value(masked.arms[masked.base]['nll'].value)} -> "
            f"{format_value(masked.arms[arm]['nll'].value)} nats, difference {format_difference(difference)}: "
            f"{VERDICT_WORDS[verdict(difference, 'nll')]}"
        )
    for bucket in masked.buckets:
        for arm, figures in bucket.differences.items():
            difference = figures["nll"]
            lines.append(
                f"{bucket.probe} probe, tokens seen {bucket.name} times ({bucket.types} types): loss "
                f"{format_value(bucket.arms[masked.base]['nll'].value)} -> "
                f"{format_value(bucket.arms[arm]['nll'].value)}, "
                f"difference {format_difference(difference)}: {VERDICT_WORDS[verdict(difference, 'nll')]}"
            )
    return lines
