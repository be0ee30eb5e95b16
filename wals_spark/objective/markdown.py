"""Tables of presets, targets and weights in Markdown, made from what these declare: a part of docs/objectives.md."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence

from wals_spark.errors import InputError
from wals_spark.objective.configuration import configuration_keys
from wals_spark.objective.keys import keys_of
from wals_spark.objective.objective import Objective
from wals_spark.objective.presets import DEFAULT_PRESET, PRESETS, SOURCES
from wals_spark.objective.targets import TARGETS, Target
from wals_spark.objective.weights import WEIGHTS, Weight

BEGIN, END = "<!-- made by `make docs` from wals_spark/objective -->", "<!-- end of what `make docs` makes -->"
LINE_LENGTH = 118


def objectives_markdown() -> str:
    """The tables of presets, targets and weights, with their keys and sources."""
    columns = ("preset", "target m", "weight w", "unobserved", "ridge", "biases")
    keys = ", ".join(f"`{name}`" for name in configuration_keys())
    parts = [
        _table(columns, map(preset_cells, PRESETS.values())),
        f"The default is `{DEFAULT_PRESET}`. The numbers are from:",
        _list(SOURCES),
        _wrapped(
            f"Each is a key of the section `train`: {keys}. A key that a preset does not use is refused. "
            "These targets and weights have keys of their own:"
        ),
        _table(("target", "m", "keys"), _formulas(TARGETS)),
        _list({name: cls.source for name, cls in TARGETS.items()}),
        _table(("weight", "w", "keys"), _formulas(WEIGHTS)),
        _list({name: cls.source for name, cls in WEIGHTS.items()}),
    ]
    return "\n\n".join(parts) + "\n"


def with_objectives(text: str) -> str:
    """A page with the part between `BEGIN` and `END` made anew.

    Raises
    ------
    InputError
        The page has no such part.
    """
    before, begin, rest = text.partition(BEGIN + "\n")
    _, end, after = rest.partition(END + "\n")
    if not begin or not end:
        raise InputError(f"the page has no part between the lines {BEGIN} and {END}")
    return f"{before}{begin}\n{objectives_markdown()}\n{end}{after}"


def preset_cells(objective: Objective) -> tuple[str, ...]:
    """Name, target, weight, unobserved cells, ridge and biases of a preset, in words."""
    squared_norm = objective.prediction == "squared_norm"
    target = [
        objective.target_function.text,
        *(
            ["clipped at 0" + (" (unobserved)" if objective.clipped_are_unobserved else "")]
            if objective.clipped
            else []
        ),
        *(["predicted by z + |u + v|^2"] if squared_norm else []),
    ]
    return (
        f"`{objective.name}`",
        ", ".join(target),
        objective.weight_function.text + (", additive" if objective.additive else ""),
        _unobserved(objective),
        _ridge(objective),
        "z" if squared_norm else objective.bias,
    )


def _unobserved(objective: Objective) -> str:
    if objective.unobserved == "softplus":
        return "ln(1 + exp(s - PMI*)), see below"
    if objective.rho == 0:
        return "none"
    exponent = f", exponent {objective.popularity_exponent:g}" if objective.popularity_exponent else ""
    floor = f", floor {objective.popularity_floor:g}" if objective.popularity_floor else ""
    return f"rho {objective.rho:g}{exponent}{floor}"


def _ridge(objective: Objective) -> str:
    value, exponent = f"{objective.regularization:g}", objective.regularization_exponent
    counted = "n_i + rho n" if objective.unobserved_regularize else "n_i"
    if exponent == 0:
        return value
    if exponent == -0.5:
        return f"{value} / sqrt({counted})"
    base = f"({counted})" if objective.unobserved_regularize else counted
    return f"{value} {base}" + (f"^{exponent:g}" if exponent != 1 else "")


def _formulas(registry: Mapping[str, type[Target]] | Mapping[str, type[Weight]]) -> Iterable[tuple[str, ...]]:
    """Name, formula and keys with their defaults."""
    for name, cls in registry.items():
        yield f"`{name}`", cls.formula, ", ".join(f"`{key}` {getattr(cls, key):g}" for key in keys_of(cls))


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    escaped = ([cell.replace("|", r"\|") for cell in row] for row in rows)
    lines = [f"| {' | '.join(row)} |".replace("|  |", "| |") for row in [header, *escaped]]
    return "\n".join([lines[0], "|" + "---|" * len(header), *lines[1:]])


def _list(sources: Mapping[str, str]) -> str:
    """An item for each name that has a source."""
    return "\n".join(_wrapped(f"- `{name}`: {source}.", "  ") for name, source in sources.items() if source)


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text, LINE_LENGTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
