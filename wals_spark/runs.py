"""Stage manifests, completion markers, locks: what makes a rerun safe.

A stage's output is *done* when its manifest says ``state: complete`` and carries the fingerprint that
the configuration and the inputs give now. The manifest is set to ``running`` before the first byte of
an output changes and to ``complete`` after the last one is published, so an interrupted stage is never
mistaken for a finished one.

Layout, below the warehouse::

    _manifests/<stage>/<key>.json     key: a batch id, a run id or "current"
    runs/<run_id>/                    status.json, config.yaml, checkpoints, exports, the report
    runs/<run_id>/_lock               locked while a command works on the run
"""

from __future__ import annotations

import os
import platform
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from wals_spark import storage
from wals_spark.errors import InputError, TransientError

FORMAT_VERSION = 1
RENEW_LEASE_S = 20.0
STALE_AFTER_S = 300.0
_PACKAGES = ("wals_spark", "pyspark", "deltalake", "torch", "transformers", "tokenizers", "numpy", "scipy", "pyarrow")


def now() -> str:
    """The current time in ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that can change a result."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


@dataclass(frozen=True)
class Manifest:
    """What a stage made, from what, and whether it was finished.

    Attributes
    ----------
    stage, key : str
        Which stage and which of its outputs (a batch id, a run id or "current").
    state : {"running", "complete", "refused"}
        refused: a quality gate said no; ``outputs["refused"]`` has the reason.
    fingerprint : str
        Of the configuration sections and the inputs that determine the output.
    run_id : str
        The run that made it.
    inputs : mapping
        Fingerprints of the manifests read, and identities of external inputs.
    outputs : mapping
        Facts that later stages need: table versions, row counts, units, paths, checksums.
    """

    stage: str
    key: str
    state: str
    fingerprint: str
    run_id: str
    inputs: Mapping[str, Any] = field(default_factory=dict)
    outputs: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    config_fingerprint: str = ""
    started_at: str = ""
    finished_at: str | None = None
    seconds: float | None = None
    packages: Mapping[str, str] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    @property
    def complete(self) -> bool:
        """Whether the output is whole."""
        return self.state == "complete"


class ManifestStore:
    """The manifests of one warehouse."""

    def __init__(self, warehouse: str) -> None:
        self.warehouse = warehouse
        self.root = storage.join(warehouse, "_manifests")

    def path(self, stage: str, key: str) -> str:
        """Where the manifest of an output stands."""
        return storage.join(self.root, stage, f"{key}.json")

    def find(self, stage: str, key: str) -> Manifest | None:
        """The manifest, complete or not, or None."""
        path = self.path(stage, key)
        if not storage.exists(path):
            return None
        data = storage.read_json(path)
        if data.get("format_version", 0) > FORMAT_VERSION:
            raise InputError(
                f"{path} has format {data['format_version']}, this version reads up to {FORMAT_VERSION}: "
                "use the wals_spark that wrote it, or a newer one"
            )
        try:
            return Manifest(**data)
        except TypeError as error:
            raise InputError(f"{path} is not a manifest of wals_spark: {error}; remove it and run again") from None

    def require(self, stage: str, key: str) -> Manifest:
        """The complete manifest, or an `InputError` that says which command makes it."""
        manifest = self.find(stage, key)
        if manifest is None:
            raise InputError(
                f"{stage} {key!r} is not in the warehouse {self.warehouse}; run `wals-spark {stage}` "
                "(or `wals-spark pipeline`) with this configuration first"
            )
        if manifest.state == "refused":
            raise InputError(
                f"{stage} {key!r} in {self.warehouse} was refused by its quality gate in run {manifest.run_id!r}: "
                f"{manifest.outputs.get('refused')}"
            )
        if not manifest.complete:
            raise InputError(
                f"{stage} {key!r} in {self.warehouse} was started by run {manifest.run_id!r} at {manifest.started_at} "
                f"and not finished; run `wals-spark {stage}` again"
            )
        return manifest

    def keys(self, stage: str) -> list[str]:
        """Keys of the complete manifests of a stage, sorted."""
        names = [
            os.path.basename(info.path).removesuffix(".json")
            for info in storage.list_files(storage.join(self.root, stage))
            if info.path.endswith(".json")
        ]
        return [name for name in sorted(names) if (found := self.find(stage, name)) is not None and found.complete]

    def write(self, manifest: Manifest) -> None:
        """Publish a manifest atomically."""
        storage.write_json(self.path(manifest.stage, manifest.key), asdict(manifest))

    def remove(self, stage: str, key: str) -> None:
        """Forget an output; its data must be gone or about to be replaced."""
        storage.remove(self.path(stage, key))


class RunLock:
    """One command at a time on a run.

    On local file systems an ``flock`` that dies with its process; elsewhere a lease that is renewed
    every `RENEW_LEASE_S` seconds and counts as abandoned after `STALE_AFTER_S`.
    """

    def __init__(self, directory: str, what: str) -> None:
        self.path = storage.join(directory, "_lock")
        self.what = what
        self._descriptor: int | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def _owner(self) -> dict[str, Any]:
        return {"host": socket.gethostname(), "pid": os.getpid(), "at": now(), "beat": time.time()}

    def acquire(self) -> None:
        """Take the lock or raise `TransientError` naming the holder."""
        if storage.is_local(self.path):
            self._acquire_local()
        else:
            self._acquire_lease()

    def _acquire_local(self) -> None:
        import fcntl

        path = storage.local_path(self.path)
        with storage.explained(f"cannot lock {self.what}"):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.read(descriptor, 4096).decode(errors="replace").strip()
                os.close(descriptor)
                raise TransientError(
                    f"{self.what} is being worked on by another command ({holder or 'unknown'}); "
                    "wait for it to end, or use another --run-id"
                ) from None
            os.ftruncate(descriptor, 0)
            owner = self._owner()
            os.write(descriptor, f"host {owner['host']}, pid {owner['pid']}, since {owner['at']}\n".encode())
        self._descriptor = descriptor

    def _acquire_lease(self) -> None:
        if storage.exists(self.path):
            holder = storage.read_json(self.path)
            age = time.time() - float(holder.get("beat", 0.0))
            if age < STALE_AFTER_S:
                raise TransientError(
                    f"{self.what} is being worked on by host {holder.get('host')}, pid {holder.get('pid')}, since "
                    f"{holder.get('at')} (last sign of life {age:.0f} s ago); wait for its end, use another --run-id, "
                    f"or remove {self.path} if that process is gone"
                )
        owner = self._owner()
        storage.write_json(self.path, owner)

        def beat() -> None:
            while not self._stop.wait(RENEW_LEASE_S):
                storage.write_json(self.path, {**owner, "beat": time.time()})

        self._thread = threading.Thread(target=beat, name="wals-spark-lease", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Give the lock back."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        elif self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._thread = None
            storage.remove(self.path)

    def __enter__(self) -> RunLock:
        self.acquire()
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()


class Run:
    """One run: its directory, its lock, its status file."""

    def __init__(self, warehouse: str, run_id: str) -> None:
        self.warehouse = warehouse
        self.run_id = run_id
        self.directory = storage.join(warehouse, "runs", run_id)
        self.started = time.monotonic()

    def path(self, *parts: str) -> str:
        """A path below the run's directory."""
        return storage.join(self.directory, *parts)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of the run."""
        with RunLock(self.directory, f"run {self.run_id!r} of {self.warehouse}"):
            yield

    def status(self, **facts: Any) -> None:
        """Rewrite status.json: what a scheduler or a person polls."""
        elapsed = round(time.monotonic() - self.started, 3)
        storage.write_json(self.path("status.json"), {"run_id": self.run_id, "at": now(), "seconds": elapsed, **facts})
