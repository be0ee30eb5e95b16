"""Save and load a model: pyspark.ml's metadata, and both sides as Parquet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyspark.ml.util import DefaultParamsReader, DefaultParamsWriter, MLReader, MLWriter

from wals_spark import storage
from wals_spark.objective import Objective
from wals_spark.wals.estimator.factor_files import FACTS

if TYPE_CHECKING:
    from wals_spark.wals.estimator.model import WALSModel


class ModelWriter(MLWriter):
    """``model.write()``."""

    def __init__(self, model: WALSModel) -> None:
        super().__init__()
        self.model = model

    def save(self, path: str) -> None:
        """Write a model to `path`; onto itself, only its parameters are written again, since the factors are there."""
        if self.shouldOverwrite and storage.absolute(path) == self.model.directory:
            metadata = storage.join(path, "metadata")
            storage.remove(metadata)
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
