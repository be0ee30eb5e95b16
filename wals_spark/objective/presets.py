"""Presets: objectives by name, with their published defaults and where these are from.

A new objective is one more call of `register_preset` here. Where its target or weight is new, so is a subclass of
`wals_spark.objective.targets.Target` or `wals_spark.objective.weights.Weight`, in any module that is imported with
this package. The configuration, its error texts and docs/objectives.md follow (``make docs``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from wals_spark.objective.objective import SOFTPLUS_CURVATURE, Objective

DEFAULT_PRESET = "ppmi"

PRESETS: dict[str, Objective] = {}
"""Name -> the objective with its published defaults."""

SOURCES: dict[str, str] = {}
"""Name -> the source of the defaults, in Markdown."""

DEPENDENT: dict[str, Mapping[str, Callable[[Any], dict[str, Any]]]] = {}
"""Name -> key -> the fields that follow from a value of that key."""


def register_preset(
    objective: Objective,
    source: str,
    dependent: Mapping[str, Callable[[Any], dict[str, Any]]] | None = None,
) -> None:
    """Make an objective a preset, by its name.

    Parameters
    ----------
    objective : Objective
    source : str
        Of the defaults, in Markdown.
    dependent : mapping of str to function, optional
        Key -> the fields that follow from its value.
    """
    PRESETS[objective.name] = objective
    SOURCES[objective.name] = source
    DEPENDENT[objective.name] = dependent or {}


register_preset(
    Objective(
        "ppmi",
        target="pmi",
        weight="power",
        additive=True,
        rho=0.0025,
        popularity_exponent=0.75,
        regularization=300.0,
        regularization_exponent=-0.5,
        unobserved_regularize=False,
        clipped=True,
    ),
    source="`benchmarks/vectors.py` on half of the pairs and questions, see below",
)
register_preset(
    Objective(
        "sppmi",
        target="pmi",
        weight="constant",
        additive=False,
        rho=1.0,
        popularity_exponent=0.0,
        regularization=1e-3,
        clipped=True,
        shift=5.0,
    ),
    source="Levy and Goldberg 2014: truncated SVD of the shifted PPMI, here with a trace of ridge",
)
register_preset(
    Objective(
        "pu",
        target="pmi",
        weight="power",
        additive=False,
        rho=0.0625,
        popularity_exponent=0.0,
        regularization=2.0**-11,
        regularization_exponent=1.0,
        unobserved_regularize=False,
        bias="free",
        clipped=True,
        clipped_are_unobserved=True,
        weight_exponent=0.75,
        context_smoothing=0.75,
    ),
    source="Jiang, Yu, Hsieh and Chang 2018, their code (rho 1/16, ridge 2^-11 per cell)",
)
register_preset(
    Objective(
        "glove",
        target="log",
        weight="power",
        additive=False,
        rho=0.0,
        popularity_exponent=0.0,
        regularization=0.1,
        bias="free",
        weight_exponent=0.75,
    ),
    source="Pennington, Socher and Manning 2014; x_max of their demo; no ridge there, which leaves short rows without "
    "a solution",
)
register_preset(
    Objective(
        "log_conditional",
        target="log_conditional",
        weight="power",
        additive=False,
        rho=0.0,
        popularity_exponent=0.0,
        regularization=0.1,
        x_max=100.0,
        weight_exponent=1.0,
    ),
    source="optimum of skip-gram with a softmax; weights near x are its second-order expansion",
)
register_preset(
    Objective(
        "log_conditional_smoothed",
        target="smoothed_conditional",
        weight="power",
        additive=True,
        rho=0.005,
        popularity_exponent=0.75,
        regularization=10.0,
    ),
    source="the same with Laplace smoothing, which gives unobserved cells a target too",
)
register_preset(
    Objective(
        "swivel_like",
        target="pmi",
        weight="root",
        additive=True,
        rho=0.05,
        popularity_exponent=0.5,
        regularization=10.0,
    ),
    source="Shazeer et al. 2016, separable surrogate: **not** Swivel's own loss",
)
register_preset(
    Objective(
        "swivel",
        target="pmi",
        weight="root",
        additive=False,
        rho=SOFTPLUS_CURVATURE,  # the curvature of the bound, not a choice
        popularity_exponent=0.0,
        regularization=1e-3,
        marginal_smoothing=1.0,
        unobserved="softplus",
    ),
    source="Shazeer et al. 2016 and their code (no ridge there)",
)
register_preset(
    Objective(
        "squared_norm",
        target="log",
        weight="power",
        additive=False,
        rho=0.0,
        popularity_exponent=0.0,
        regularization=0.01,
        x_max=100.0,
        weight_exponent=0.75,
        prediction="squared_norm",
    ),
    source="Arora et al. 2016 and their code (one table, no ridge there)",
)
register_preset(
    Objective(
        "implicit",
        target="one",
        weight="confidence",
        additive=True,
        rho=1.0,
        popularity_exponent=0.0,
        regularization=0.01,
    ),
    source="Hu, Koren and Volinsky 2008, with the confidence of MLlib",
)
register_preset(
    # sum_observed (s - 1)^2 + rho sum_all s^2 + lambda (n_i + rho n)^nu |u|^2, up to a constant
    Objective(
        "ials",
        target="one",
        weight="constant",
        additive=True,
        rho=0.1,
        popularity_exponent=0.0,
        regularization=0.003,
        regularization_exponent=1.0,
        scale=1.0 / 1.1,
    ),
    source="Rendle et al. 2022; the target is 1/(1 + rho)",
    dependent={"rho": lambda rho: {"scale": 1.0 / (1.0 + rho)}},
)
register_preset(
    Objective(
        "explicit",
        target="value",
        weight="constant",
        additive=False,
        rho=0.0,
        popularity_exponent=0.0,
        regularization=0.1,
        regularization_exponent=1.0,
        unobserved_regularize=False,
    ),
    source="Zhou et al. 2008 (ALS-WR); MLlib's explicit preferences",
)
register_preset(
    Objective(
        "custom", target="value", weight="column", additive=False, rho=0.0, popularity_exponent=0.0, regularization=0.1
    ),
    source="your own",
)
