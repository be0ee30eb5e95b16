"""A class-data archive of Spark's JVM: what it has loaded once, the next one maps into memory instead.

About half of the time until a local session's first result goes into loading, verifying and linking classes. Java can
write them to an archive when it exits (``-XX:ArchiveClassesAtExit``) and map that the next time
(``-XX:SharedArchiveFile``). One archive is kept per Java and pyspark in the user's cache directory. The first session
that finds none leaves one behind; Java itself refuses an archive that does not match and goes on without, in silence.

The `KEPT` archives that were used last are kept, for as many environments. ``WALS_SPARK_CLASS_ARCHIVE=off`` turns all
of this off.

References
----------
JEP 350, Dynamic CDS Archives.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

logger = logging.getLogger(__name__)

SWITCH = "WALS_SPARK_CLASS_ARCHIVE"
PREFIX = "spark-classes-"
MAGIC = b"\xa8\xab\x0b\xf0"
"""First bytes of a dynamic archive; Java writes them last, so a file that was cut short has none."""
QUIET_CDS = "-Xlog:cds=off -Xlog:cds+dynamic=off"
KEPT = 3
"""Archives, of about 180 MB each, that stay in the cache directory."""
MAKING_S = 600.0
"""How long a session that writes an archive may take before another one tries."""


def java_options() -> str:
    """Options of a JVM that is started here: use the archive, or leave one behind at exit; empty where neither can be.

    Returns
    -------
    str
    """
    path = archive_path()
    if path is None:
        return ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _adopt(path)
        if path.is_file():
            os.utime(path)
            return f"-XX:SharedArchiveFile={path} -Xshare:auto {QUIET_CDS}"
        if not _claim(path):
            return ""
    except OSError as error:
        logger.debug("no class archive: %s", error)
        return ""
    logger.info(
        "Spark's classes are kept in %s (about 180 MB): its JVM starts in half the time from the next run on", path
    )
    return f"-XX:ArchiveClassesAtExit={_draft(path)} {QUIET_CDS}"


def archive_path() -> Path | None:
    """Where the archive of this Java and this pyspark is kept; None where it is turned off or there is no Java.

    Returns
    -------
    Path or None
    """
    if os.environ.get(SWITCH, "").lower() in ("off", "0", "false", "no"):
        return None
    home = os.environ.get("JAVA_HOME")
    java = shutil.which(str(Path(home) / "bin" / "java") if home else "java")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    if java is None or any(character.isspace() for character in str(cache)):
        return None
    java = os.path.realpath(java)
    stat = os.stat(java)
    spark = Path(os.environ.get("SPARK_HOME") or str(metadata.distribution("pyspark").locate_file("pyspark"))).resolve()
    facts = (java, stat.st_mtime_ns, stat.st_size, str(spark), metadata.version("pyspark"))
    key = hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
    return cache / "wals_spark" / f"{PREFIX}{key}.jsa"


def _draft(path: Path) -> Path:
    return path.with_suffix(".draft")


def _lock(path: Path) -> Path:
    return path.with_suffix(".making")


def _adopt(path: Path) -> None:
    """Put a finished draft in place. Java writes its header last; what has none is still being written, or was cut."""
    draft = _draft(path)
    if path.is_file() or not draft.is_file():
        return
    with draft.open("rb") as stream:
        if stream.read(len(MAGIC)) == MAGIC:
            os.replace(draft, path)
            _lock(path).unlink(missing_ok=True)
            os.utime(path)
            used = sorted(path.parent.glob(f"{PREFIX}*.jsa"), key=lambda file: file.stat().st_mtime, reverse=True)
            for old in used[KEPT:]:
                old.unlink(missing_ok=True)


def _claim(path: Path) -> bool:
    """Whether this process is the one that lets its JVM write the archive."""
    lock = _lock(path)
    try:
        if time.time() - lock.stat().st_mtime < MAKING_S:
            return False
        lock.unlink()
    except FileNotFoundError:
        pass
    try:
        lock.touch(exist_ok=False)
    except FileExistsError:
        return False
    _draft(path).unlink(missing_ok=True)
    return True


def main() -> int:
    """Make the archive now, unless it is there: ``python -m wals_spark.cluster.class_archive``."""
    path = archive_path()
    if path is None or path.is_file():
        return 0
    code = (
        "from wals_spark.cluster.session import open_session\n"
        "from wals_spark.config import Config, SparkConfig\n"
        "conf = {'spark.master': 'local[2]', 'spark.ui.enabled': 'false'}\n"
        "spark = open_session(Config(spark=SparkConfig(conf=conf)))\n"
        "import tempfile\n"
        "with tempfile.TemporaryDirectory() as directory:\n"
        "    frame = spark.range(100).mapInArrow(lambda batches: batches, 'id long').repartition(2, 'id')\n"
        "    frame.write.mode('overwrite').parquet(directory)\n"
        "    spark.read.parquet(directory).groupBy('id').count().collect()\n"
        "spark.stop()\n"
    )
    # The pipe stays open as long as the JVM lives, which ends after its Python.
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    _adopt(path)
    if not path.is_file():
        sys.stderr.write(f"no class archive was made (exit code {done.returncode}); Spark starts without one\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
