"""A setter for every parameter, as MLlib's classes have them; each returns the object itself."""

# each sets the parameter that it is named after

from __future__ import annotations

from typing import Any, Self

from pyspark.ml.param import Params


class ModelSetters(Params):
    """Setters of what the estimator and its model have in common."""

    def setUserCol(self, value: str) -> Self:
        return self._set(userCol=value)

    def setItemCol(self, value: str) -> Self:
        return self._set(itemCol=value)

    def setPredictionCol(self, value: str) -> Self:
        return self._set(predictionCol=value)

    def setColdStartStrategy(self, value: str) -> Self:
        return self._set(coldStartStrategy=value)

    def setBlockSize(self, value: int) -> Self:
        return self._set(blockSize=value)


class EstimatorSetters(ModelSetters):
    """Setters of the estimator."""

    def setRank(self, value: int) -> Self:
        return self._set(rank=value)

    def setMaxIter(self, value: int) -> Self:
        return self._set(maxIter=value)

    def setRegParam(self, value: float) -> Self:
        return self._set(regParam=value)

    def setImplicitPrefs(self, value: bool) -> Self:
        return self._set(implicitPrefs=value)

    def setAlpha(self, value: float) -> Self:
        return self._set(alpha=value)

    def setNonnegative(self, value: bool) -> Self:
        return self._set(nonnegative=value)

    def setRatingCol(self, value: str) -> Self:
        return self._set(ratingCol=value)

    def setSeed(self, value: int) -> Self:
        return self._set(seed=value)

    def setCheckpointInterval(self, value: int) -> Self:
        return self._set(checkpointInterval=value)

    def setNumUserBlocks(self, value: int) -> Self:
        return self._set(numUserBlocks=value)

    def setNumItemBlocks(self, value: int) -> Self:
        return self._set(numItemBlocks=value)

    def setNumBlocks(self, value: int) -> Self:
        return self._set(numUserBlocks=value, numItemBlocks=value)

    def setIntermediateStorageLevel(self, value: str) -> Self:
        return self._set(intermediateStorageLevel=value)

    def setFinalStorageLevel(self, value: str) -> Self:
        return self._set(finalStorageLevel=value)

    def setTol(self, value: float) -> Self:
        return self._set(tol=value)

    def setObjective(self, value: str) -> Self:
        return self._set(objective=value)

    def setObjectiveParams(self, value: dict[str, Any]) -> Self:
        return self._set(objectiveParams=value)

    def setDuplicates(self, value: str) -> Self:
        return self._set(duplicates=value)

    def setNumWorkers(self, value: int) -> Self:
        return self._set(numWorkers=value)

    def setNumThreads(self, value: int) -> Self:
        return self._set(numThreads=value)

    def setDevice(self, value: str) -> Self:
        return self._set(device=value)

    def setPrecision(self, value: str) -> Self:
        return self._set(precision=value)

    def setWorkDir(self, value: str) -> Self:
        return self._set(workDir=value)

    def setWeightCol(self, value: str) -> Self:
        return self._set(weightCol=value)
