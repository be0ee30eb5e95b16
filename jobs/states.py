"""spark-submit jobs/states.py --config FILE [--run-id ID] [--set section.key=value]."""

import sys

from wals_spark.cli import main

if __name__ == "__main__":
    sys.exit(main(["states", *sys.argv[1:]]))
