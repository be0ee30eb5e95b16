"""Verification of an injected checkpoint: its files, and with the base at hand everything that its mode computes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from wals_spark.checkpoints.artifact import FACTORS
from wals_spark.checkpoints.checkpoint import WEIGHTS
from wals_spark.checkpoints.safetensors_file import read_raw_tensors
from wals_spark.checkpoints.verification_report import VerificationReport
from wals_spark.checkpoints.verify import proof_problem, read_manifest, verify_checkpoint
from wals_spark.errors import InputError
from wals_spark.inject.recompute import MODES, check_recomputed


def verify_injection(
    directory: str | Path, base: str | None = None, *, reload: bool = True, texts: Sequence[str] = ()
) -> VerificationReport:
    """Verify an injected checkpoint, and with its base compute the edit again.

    Parameters
    ----------
    directory : str or Path
        Of the checkpoint.
    base : str, optional
        The checkpoint it was made from, a directory or hub name; without it the recorded hashes stand in.
    reload : bool
        Load it through the stock classes in a new process.
    texts : sequence of str
        Of a corpus: segmented before and after a change of the vocabulary.

    Returns
    -------
    VerificationReport

    Raises
    ------
    InputError
        See `wals_spark.checkpoints.verify.verify_checkpoint`.
    """
    directory = Path(directory)
    manifest = read_manifest(directory)
    report = verify_checkpoint(directory, base, reload=reload)
    if base is None or manifest["mode"] not in MODES:
        return report
    try:
        tensors, _ = read_raw_tensors(directory / WEIGHTS)
        proof, _ = read_raw_tensors(directory / FACTORS)
    except (InputError, FileNotFoundError):
        return report  # which says so
    if proof_problem(tensors, proof, manifest) is None:
        check_recomputed(report, directory, manifest, tensors, proof, base, texts)
    return report
