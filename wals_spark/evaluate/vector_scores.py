"""The vectors and their controls on every file of the configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from wals_spark.config import Config
from wals_spark.evaluate import controls
from wals_spark.evaluate.intrinsic import (
    AnalogyResult,
    SimilarityResult,
    VectorGeometry,
    score_vectors,
    vector_geometry,
)
from wals_spark.factors.store import Vectors
from wals_spark.factors.top_k import unit_rows
from wals_spark.stage import Context
from wals_spark.stage_outputs import TrainOutputs


@dataclass(frozen=True)
class VectorScores:
    """What was measured of the vectors: a result for each file, each with its controls, and their geometry."""

    similarities: list[SimilarityResult]
    analogies: list[AnalogyResult]
    geometry: VectorGeometry


def score_files(config: Config, vectors: Vectors, controls: Mapping[str, np.ndarray]) -> VectorScores:
    """The vectors, and the controls in their place, on every file of the configuration."""
    section = config.evaluate
    files = [*section.similarity, *section.analogies]

    def scored(matrix: np.ndarray) -> list[SimilarityResult | AnalogyResult]:
        return score_vectors(
            vectors.tokens,
            matrix,
            files,
            counts=vectors.counts,
            search=section.search_vocabulary,
            resamples=section.bootstrap,
            seed=config.seed,
        )

    others = {name: scored(matrix) for name, matrix in controls.items()}
    similarities, analogies = [], []
    for place, item in enumerate(scored(vectors.matrix)):
        beside = {name: found[place] for name, found in others.items()}
        if isinstance(item, SimilarityResult):
            rhos = {name: found.rho for name, found in beside.items() if isinstance(found, SimilarityResult)}
            similarities.append(replace(item, controls=rhos))
        else:
            accuracies = {name: found.add for name, found in beside.items() if isinstance(found, AnalogyResult)}
            analogies.append(replace(item, controls=accuracies))
    unit = unit_rows(vectors.matrix)
    return VectorScores(similarities, analogies, vector_geometry(unit, vectors.matrix, vectors.counts, config.seed))


def make_controls(context: Context, train: TrainOutputs, vectors: Vectors) -> dict[str, np.ndarray]:
    """The control vectors that the configuration names; none where there is no file to try them on."""
    section, seed = context.config.evaluate, context.config.seed
    if not (section.similarity or section.analogies):
        return {}
    makers: dict[str, Callable[[], np.ndarray]] = {
        "permuted": lambda: controls.permuted_vectors(vectors.matrix, vectors.counts, seed),
        "random": lambda: controls.random_vectors(vectors.matrix, seed),
        "svd": lambda: controls.svd_vectors(context, train, vectors.matrix.shape[1]),
    }
    return {name: makers[name]() for name in section.controls}
