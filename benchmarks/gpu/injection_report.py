"""The results of `injection.py` as Markdown tables and as a picture.

Several seeds of an arm become the mean with the range over seeds; one seed is shown with its interval by document.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Line = dict[str, Any]
STYLES = {  # kind of arm -> (label, colour, marker)
    "base": ("unchanged", "#6b7280", "x"),
    "bias": ("head bias", "#3b82f6", "D"),
    "fit": ("fitted rows, by maskings", "#c2410c", "o"),
    "embeddings": ("embedding-only training, by epochs", "#7c3aed", "^"),
    "full": ("full training, by epochs", "#15803d", "s"),
    "general": ("full training on general text", "#a3a3a3", "v"),
}
BANDS = "0", "1-4", "5-19", "20-99", "100+"


def kind_of(arm: str) -> str:
    """``fit`` of ``fit-4``."""
    return arm.partition("-")[0]


def cases(lines: Sequence[Line]) -> dict[tuple[Any, ...], list[Line]]:
    """Lines that may stand in one table, by (checkpoint, adapted, sequences)."""
    found: dict[tuple[Any, ...], list[Line]] = {}
    for line in lines:
        found.setdefault((line["checkpoint"], line["adapted"], line["sequences"]), []).append(line)
    return found


def ordered(values: Iterable[Any]) -> list[Any]:
    """Different values in the order in which they come."""
    return list(dict.fromkeys(values))


def of_arm(lines: Sequence[Line], arm: str, domain: str) -> list[Line]:
    """The seeds of an arm on a domain."""
    return [line for line in lines if line["arm"] == arm and line["domain"] == domain]


def mean(lines: Sequence[Line], *path: str) -> float:
    """The mean over seeds of a figure, NaN where there is none."""
    found = []
    for line in lines:
        value: Any = line
        for name in path:
            value = None if value is None else value.get(name)
        if value is not None:
            found.append(float(value))
    return float(np.mean(found)) if found else float("nan")


def shown(lines: Sequence[Line], name: str) -> str:
    """A gain with its interval by document, or its range over seeds."""
    if not lines:
        return ""
    low, high = mean(lines, name, "low"), mean(lines, name, "high")
    if len(lines) > 1:
        values = [line[name]["value"] for line in lines]
        low, high = min(values), max(values)
    return f"{mean(lines, name, 'value'):+.3f} [{low:+.3f}, {high:+.3f}]"


def number(value: float, form: str) -> str:
    """A number, or nothing where there is none."""
    return "" if np.isnan(value) else format(value, form)


def row(cells: Iterable[str]) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def gains(lines: Sequence[Line], arms: Sequence[str], domains: Sequence[str]) -> list[str]:
    """Gain, general text, accuracy, cost of each arm."""
    head = ["arm", "passes"]
    for domain in domains:
        head += [f"{domain}: gain", "general", "right at 1 / 10", "lambda", "states + fit or training, s"]
    table = [row(head), row(["---"] * len(head))]
    for arm in arms:
        cells = [arm, number(mean([line for line in lines if line["arm"] == arm], "forward_equivalents"), "g")]
        for domain in domains:
            found = of_arm(lines, arm, domain)
            times = [number(mean(found, "seconds", name), ".1f") for name in ("states", "fit", "training")]
            right = [number(mean(found, f"accuracy_{top}"), ".3f") for top in (1, 10)]
            ridge = number(mean(found, "lambda_rows"), ".0f")
            cells += [shown(found, "gain"), shown(found, "general"), " / ".join(filter(None, right)), ridge]
            cells.append(" + ".join(filter(None, times)))
        table.append(row(cells))
    return table


def bands(lines: Sequence[Line], arms: Sequence[str], domains: Sequence[str]) -> list[str]:
    """Gain by the frequency of the target in the sample."""
    head = ["arm", *(f"{domain}: {band}" for domain in domains for band in BANDS)]
    table = [row(head), row(["---"] * len(head))]
    targets = [
        number(mean([line for line in lines if line["domain"] == domain], "bands", band, "targets"), ".0f")
        for domain in domains
        for band in BANDS
    ]
    table.append(row(["targets", *targets]))
    for arm in arms:
        cells = [
            number(mean(of_arm(lines, arm, domain), "bands", band, "value"), "+.3f")
            for domain in domains
            for band in BANDS
        ]
        table.append(row([arm, *cells]))
    return table


def markdown(lines: Sequence[Line]) -> str:
    """All results as tables.

    Parameters
    ----------
    lines : sequence of dict
        Of one or more files of results.

    Returns
    -------
    str
    """
    parts = []
    for (checkpoint, adapted, sequences), found in cases(lines).items():
        arms, domains = ordered(line["arm"] for line in found), ordered(line["domain"] for line in found)
        seeds = ordered(line["seed"] for line in found)
        base = {domain: mean(of_arm(found, "base", domain), "loss") for domain in domains}
        losses = [f"{domain} {number(base[domain], '.3f')}" for domain in domains]
        general = number(mean([line for line in found if line["arm"] == "base"], "general_loss"), ".3f")
        first = f"{checkpoint}, {'adapted' if adapted else 'plain'} base, {sequences:,} sequences"
        parts += [
            f"### {first}",
            "",
            f"Nats per masked token; the base's losses: {', '.join([*losses, f'general {general}'])}. Passes are "
            f"forward-equivalents of the sample. {'One seed' if len(seeds) == 1 else f'{len(seeds)} seeds'}.",
            "",
            *gains(found, arms, domains),
            "",
            "Gain by how often the sample has the target:",
            "",
            *bands(found, arms, domains),
            "",
        ]
    return "\n".join(parts)


def draw(lines: Sequence[Line], output: Path) -> None:
    """Two panels for each base and domain: gain against general text, and against forward passes.

    Parameters
    ----------
    lines : sequence of dict
    output : Path
        A .png or .svg file.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    mpl.rcParams.update({"svg.hashsalt": "wals_spark", "font.size": 9, "font.family": "DejaVu Sans"})
    panels = [
        (case, domain, found)
        for case, found in cases(lines).items()
        for domain in ordered(line["domain"] for line in found)
    ]
    figure, axes = plt.subplots(
        2, len(panels), figsize=(max(4.6 * len(panels), 6.0), 7.6), squeeze=False, layout="constrained",
        sharex="row", sharey="row",
    )  # fmt: skip
    for column, (case, domain, found) in enumerate(panels):
        draw_panel(axes[0][column], found, domain, ("general", "value"))
        draw_panel(axes[1][column], found, domain, ("forward_equivalents",))
        checkpoint, adapted, sequences = case
        kind = "adapted base" if adapted else "plain base"
        axes[0][column].set_title(f"{domain}, {sequences:,} sequences\n{checkpoint}, {kind}", loc="left", fontsize=10)
        axes[0][column].axvline(0, color="#9ca3af", linewidth=0.8)
        axes[0][column].set_xlabel("gain on general text, nats (left of 0: forgotten)")
        axes[1][column].set_xlabel("cost, forward passes of the sample")
    for across in axes:
        across[0].set_ylabel("gain on the domain, nats per masked token")
    present = ordered(kind_of(line["arm"]) for line in lines)
    handles = [
        mpl.lines.Line2D([], [], color=STYLES[kind][1], marker=STYLES[kind][2], linestyle="", label=STYLES[kind][0])
        for kind in STYLES
        if kind in present
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(output, dpi=140, metadata={"Date": None} if output.suffix == ".svg" else None)
    plt.close(figure)


def draw_panel(axes: Any, lines: Sequence[Line], domain: str, across: tuple[str, ...]) -> None:
    """Gains on a domain against another figure, arms of a kind joined by their amount.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
    lines : sequence of dict
        Of one base.
    domain : str
    across : tuple of str
        Where in a line the other figure is.
    """
    for kind, (_, colour, marker) in STYLES.items():
        arms = ordered(line["arm"] for line in lines if kind_of(line["arm"]) == kind and line["domain"] == domain)
        points = []
        for arm in sorted(arms, key=lambda arm: float(arm.partition("-")[2] or 0)):
            found = of_arm(lines, arm, domain)
            x, y = mean(found, *across), mean(found, "gain", "value")
            low, high = mean(found, "gain", "low"), mean(found, "gain", "high")
            points.append((x, y))
            if np.isfinite([low, high]).all():
                axes.plot([x, x], [low, high], color=colour, linewidth=1, alpha=0.5)
            amount = arm.partition("-")[2]
            if amount:
                axes.annotate(amount, (x, y), xytext=(5, 4), textcoords="offset points", color=colour, fontsize=8)
        if points:
            axes.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=6, linewidth=1, alpha=0.9)
    axes.axhline(0, color="#9ca3af", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#eef0f2", linewidth=0.8)
    axes.set_axisbelow(True)
