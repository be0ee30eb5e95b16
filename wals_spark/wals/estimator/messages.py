"""Messages of the engine, which names keys of a configuration and rows, in the words of the estimator."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from wals_spark.errors import WalsSparkError
from wals_spark.objective import configuration_keys

PARAMETERS = {
    "k": "rank", "sweeps": "maxIter", "tolerance": "tol", "precision": "precision", "regularization": "regParam",
    "alpha": "alpha", "objective": "objective", "workers": "numWorkers", "threads": "numThreads", "device": "device",
    "checkpoint_every": "checkpointInterval", "cells": "weightCol", "scratch": "the environment variable TMPDIR",
}  # fmt: skip
"""Key of the section ``train`` of a configuration -> what sets it here; keys of objectives are in objectiveParams."""
KEY = re.compile(r"\btrain\.(\w+)")
MATRIX_ADVICE = re.compile(r", or set cooccurrence\.min_pair_count to drop rare pairs")
SINGULAR = re.compile(r"side (row|col): (\d+) rows have no unique solution \(ids ([\d, ]*\d)")
SIDES = {"row": "users", "col": "items"}

IdLookup = Callable[[str, Sequence[int]], Mapping[int, object]]
"""A side and some of its numbers -> their ids in the data."""


def own_words(message: str, ids_of: IdLookup | None = None) -> str:
    """A message with parameters of the estimator in place of keys, and ids of users or items in place of rows.

    Parameters
    ----------
    message : str
    ids_of : callable, optional
        Finds the ids of rows ("row") or columns ("col").

    Returns
    -------
    str
    """

    def parameter(found: re.Match[str]) -> str:
        key = found[1]
        return PARAMETERS.get(key) or (f"objectiveParams[{key!r}]" if key in configuration_keys() else found[0])

    def ids(found: re.Match[str]) -> str:
        side, count, numbers = found[1], found[2], [int(number) for number in found[3].split(",")]
        known = ids_of(side, numbers) if ids_of is not None else {}
        shown = ", ".join(str(known.get(number, number)) for number in numbers)
        return f"{count} {SIDES[side]} have no unique solution (ids {shown}"

    return KEY.sub(parameter, SINGULAR.sub(ids, MATRIX_ADVICE.sub("", message)))


@contextmanager
def in_own_words(ids_of: IdLookup | None = None) -> Iterator[None]:
    """Errors of the package with their messages in the words of the estimator, see `own_words`."""
    try:
        yield
    except WalsSparkError as error:
        error.args = (own_words(str(error), ids_of), *error.args[1:])
        raise
