"""Load a folder of format ``plugin`` through the stock classes in a fresh process, see `wals_spark.inject.reload`."""

from __future__ import annotations

import sys

from wals_spark.compress import plugin
from wals_spark.compress.artefact import VARIANT
from wals_spark.inject import reload

if __name__ == "__main__":
    plugin.register()
    sys.exit(reload.main(sys.argv[1:], VARIANT))
