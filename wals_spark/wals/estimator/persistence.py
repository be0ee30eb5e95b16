"""Save and load a model, and an estimator with the model that it starts from: pyspark.ml's metadata, and Parquet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyspark.ml.util import DefaultParamsReader, DefaultParamsWriter, MLReader, MLWriter

from wals_spark import storage
from wals_spark.objective import Objective
from wals_spark.wals.estimator.factor_files import FACTS

if TYPE_CHECKING:
    from wals_spark.wals.estimator.estimator import WALS
    from wals_spark.wals.estimator.model import WALSModel


class ModelWriter(MLWriter):
    """``model.write()``."""

    def __init__(self, model: WALSModel) -> None:
        super().__init__()
        self.model = model

    def save(self, path: str) -> None:
        """Write a model to `path`; onto itself, only its parameters are written again, since the factors are there."""
        if self.shouldOverwrite and storage.absolute(path) == self.model.directory:
            storage.remove(storage.join(path, "metadata"))
            self._save_metadata(path)
            return
        super().save(path)

    def _save_metadata(self, path: str) -> None:
        model = self.model
        assert model.objective is not None
        facts = {"rank": model.rank, "objective": model.objective.to_dict(), "losses": model.losses}
        DefaultParamsWriter.saveMetadata(model, path, self.sparkSession, extraMetadata={"wals": facts})

    def saveImpl(self, path: str) -> None:
        """Write the factors, which lie in a work directory until now."""
        model = self.model
        self._save_metadata(path)
        for side in ("row", "col"):
            model.side_factors(side).write.parquet(storage.join(path, side))
        storage.write_json(storage.join(path, FACTS), model.training_facts)


class ModelReader(MLReader["WALSModel"]):
    """``WALSModel.read()``."""

    def __init__(self, kind: type[WALSModel]) -> None:
        super().__init__()
        self.kind = kind

    def load(self, path: str) -> WALSModel:
        """The model that a `ModelWriter` wrote to `path`, where its factors stay."""
        metadata = DefaultParamsReader.loadMetadata(path, self.sparkSession)
        facts = metadata["wals"]
        model = self.kind(storage.absolute(path), facts["rank"], Objective(**facts["objective"]), facts["losses"])
        model._resetUid(metadata["uid"])
        DefaultParamsReader.getAndSetParams(model, metadata)
        return model


INITIAL = "initial"
"""Beside an estimator's metadata: the model that it starts from, where there is one."""


class EstimatorWriter(MLWriter):
    """``estimator.write()``."""

    def __init__(self, estimator: WALS) -> None:
        super().__init__()
        self.estimator = estimator

    def save(self, path: str) -> None:
        """Write to `path`; where the model to start from is there already, only the parameters are written again."""
        model = self.estimator.initialModel
        if (
            self.shouldOverwrite
            and model is not None
            and storage.absolute(storage.join(path, INITIAL)) == model.directory
        ):
            storage.remove(storage.join(path, "metadata"))
            self._save_metadata(path)
            return
        super().save(path)

    def _save_metadata(self, path: str) -> None:
        facts = {"warmStart": self.estimator.initialModel is not None}
        DefaultParamsWriter.saveMetadata(self.estimator, path, self.sparkSession, extraMetadata={"wals": facts})

    def saveImpl(self, path: str) -> None:
        """Write the parameters and the model to start from."""
        self._save_metadata(path)
        if self.estimator.initialModel is not None:
            self.estimator.initialModel.save(storage.join(path, INITIAL))


class EstimatorReader(MLReader["WALS"]):
    """``WALS.read()``."""

    def __init__(self, kind: type[WALS]) -> None:
        super().__init__()
        self.kind = kind

    def load(self, path: str) -> WALS:
        """The estimator that an `EstimatorWriter` wrote to `path`, where its model to start from stays."""
        from wals_spark.wals.estimator.model import WALSModel

        metadata = DefaultParamsReader.loadMetadata(path, self.sparkSession)
        estimator = self.kind()
        estimator._resetUid(metadata["uid"])
        DefaultParamsReader.getAndSetParams(estimator, metadata)
        if metadata.get("wals", {}).get("warmStart"):
            estimator.warmStart(WALSModel.load(storage.join(path, INITIAL)))
        return estimator
