"""``python -m wals_spark.demo [DIRECTORY]``: the same as ``wals-spark demo --directory DIRECTORY``."""

import logging
import sys

from wals_spark.demo import run_demo
from wals_spark.errors import WalsSparkError
from wals_spark.progress import setup_logging


def main() -> int:
    """Run the demonstration; returns the exit code."""
    setup_logging()
    try:
        run_demo(sys.argv[1] if len(sys.argv) > 1 else "demo")
    except WalsSparkError as error:
        logging.getLogger("wals_spark").error("%s: %s", type(error).__name__, error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
