"""What injection gains on a domain, step 3: the loss along continued pretraining as a picture.

    python benchmarks/arms_score.py --directory DIR --results DIR --report > gains-biomedical.jsonl
    python benchmarks/arms_plot.py gains-biomedical.jsonl gains-scotus.jsonl --output docs/injection.svg

One panel per domain: mean over seeds of the loss on unseen text against the step, for the base, the head bias alone
and the whole injection; dotted, the step at which the injected model is where the base ends.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt

ARMS = {  # arm -> (label, colour, points that the label is raised by: the first two end close together)
    "base": ("as it was", "#6b7280", 4),
    "bias": ("head bias alone", "#3b82f6", -5),
    "blend + shift + bias": ("blend, shift, head bias", "#c2410c", 0),
}
INJECTED = "blend + shift + bias"

Curve = dict[int, float]


def read_report(path: Path) -> tuple[str, dict[str, Curve], dict[str, Any]]:
    """Domain, arm -> step -> mean loss over seeds, and the last gain of the whole injection over the base.

    Raises
    ------
    ValueError
        The report holds no continued pretraining of all `ARMS`.
    """
    losses: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    gain: dict[str, Any] = {}
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    chosen = [line for line in lines if line.get("loss_per") == "token" and line.get("text") == "domain"]
    longest = max((line["of"] for line in chosen), default=0)
    for line in chosen:
        if line["of"] not in (0, longest) or line["arm"] not in ARMS:
            continue
        if line["case"] == "arm":
            losses[line["arm"]][line["steps"]].append(line["nats"])
        elif line["arm"] == INJECTED and line["over"] == "base" and line["steps"] == longest:
            gain = line
    missing = [arm for arm in ARMS if set(losses[arm]) != set(losses["base"]) or longest not in losses[arm]]
    if missing or not gain:
        raise ValueError(f"{path} has no losses along continued pretraining of {', '.join(missing) or 'any arm'}")
    curves = {arm: {step: float(np.mean(found)) for step, found in sorted(losses[arm].items())} for arm in ARMS}
    return gain["domain"], curves, gain


def crossing(curve: Curve, level: float) -> float | None:
    """The step at which a falling curve reaches a level, linear in log(1 + step) between its points; None = never."""
    steps, values = list(curve), list(curve.values())
    below = next((i for i, value in enumerate(values) if value <= level), None)
    if below is None or below == 0:
        return None if below is None else float(steps[0])
    share = (values[below - 1] - level) / (values[below - 1] - values[below])
    ends = np.log1p(steps[below - 1 : below + 1])
    return float(np.expm1(ends[0] + share * (ends[1] - ends[0])))


def draw(axes: Any, domain: str, curves: dict[str, Curve], gain: dict[str, Any]) -> None:
    """One panel."""
    last = max(curves["base"])
    for arm, (label, colour, raised) in ARMS.items():
        curve = curves[arm]
        axes.plot(list(curve), list(curve.values()), color=colour, marker="o", markersize=4, linewidth=2)
        axes.annotate(
            f"{curve[last]:.2f}  {label}",
            (last, curve[last]),
            xytext=(8, raised),
            textcoords="offset points",
            color=colour,
            va="center",
            annotation_clip=False,
        )
    level, colour = curves["base"][last], ARMS["base"][1]
    reached = crossing(curves[INJECTED], level)
    if reached is not None:
        axes.plot([reached, last], [level, level], color=colour, linewidth=1, linestyle=":")
        axes.annotate(
            f"≈ {reached:.0f} steps",
            (reached, level),
            xytext=(-4, -4),
            textcoords="offset points",
            color=ARMS[INJECTED][1],
            ha="right",
            va="top",
        )
    interval = f"{gain['gain']:.2f} [{gain['gain_low']:.2f}, {gain['gain_high']:.2f}]"
    axes.set_title(f"{domain}: {interval} nats better after {last} steps", loc="left", fontsize=11)
    axes.set_xlabel("steps of continued pretraining (4,096 tokens each)")
    axes.set_xticks(list(curves["base"]))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)


def main() -> int:
    """Draw the reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reports", type=Path, nargs="+", help="outputs of arms_score.py --report, a domain each")
    parser.add_argument("--output", type=Path, required=True, help="an .svg or .png file")
    options = parser.parse_args()
    panels = [read_report(path) for path in options.reports]
    mpl.rcParams.update({"svg.hashsalt": "wals_spark", "font.size": 10, "font.family": "DejaVu Sans"})
    figure, axes = plt.subplots(1, len(panels), figsize=(6.2 * len(panels), 4.0), squeeze=False, layout="constrained")
    for each, panel in zip(axes[0], panels, strict=True):
        draw(each, *panel)
    axes[0][0].set_ylabel("masked-LM loss on unseen text, nats")
    figure.savefig(options.output, metadata={"Date": None} if options.output.suffix == ".svg" else None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
