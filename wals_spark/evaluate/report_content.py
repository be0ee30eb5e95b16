"""What the report of a run shows, as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from wals_spark.evaluate.charts import SeriesPoint
from wals_spark.evaluate.intrinsic import AnalogyResult, SimilarityResult, VectorGeometry
from wals_spark.evaluate.masked_lm import MaskedLmResult
from wals_spark.mlm.statistics import Interval


@dataclass(frozen=True)
class StageTime:
    """A stage of the run: seconds, when it ended, and its facts in words."""

    name: str
    seconds: float
    finished_at: str
    facts: str


@dataclass(frozen=True)
class TrainingCurve:
    """A masked-LM training run: its loss on unseen text by step."""

    name: str
    points: Sequence[SeriesPoint]


@dataclass(frozen=True)
class ReportData:
    """Everything the page shows.

    Attributes
    ----------
    run_id, mode, made_at, fingerprint : str
    subtitle : str
        One line that says what was run.
    loss : sequence of SeriesPoint
        Loss of the factorisation by half-sweep.
    objective : str
    trainings : sequence of TrainingCurve
    training_differences : sequence of (label, Interval)
    similarity, analogies, geometry, combine
        Of the vectors.
    masked : MaskedLmResult or None
    neighbours : mapping
        Content of neighbours.json.
    injection : mapping of fact -> text
    stages : sequence of StageTime
    versions : mapping of package -> version
    configuration : str
        YAML.
    """

    run_id: str
    mode: str
    made_at: str
    fingerprint: str
    subtitle: str
    loss: Sequence[SeriesPoint] = ()
    objective: str = ""
    trainings: Sequence[TrainingCurve] = ()
    training_differences: Sequence[tuple[str, Interval]] = ()
    similarity: Sequence[SimilarityResult] = ()
    analogies: Sequence[AnalogyResult] = ()
    geometry: VectorGeometry | None = None
    combine: str = "u"
    masked: MaskedLmResult | None = None
    neighbours: Mapping[str, Any] = field(default_factory=dict)
    injection: Mapping[str, str] = field(default_factory=dict)
    stages: Sequence[StageTime] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    configuration: str = ""
