"""Load a folder of format ``plugin`` through the stock classes in a new process.

See `wals_spark.checkpoints.reload`.
"""

from __future__ import annotations

import sys

from wals_spark.checkpoints import reload
from wals_spark.compress import plugin
from wals_spark.compress.model_card import VARIANT

if __name__ == "__main__":
    plugin.register()
    sys.exit(reload.print_reload_report(sys.argv[1:], VARIANT))
