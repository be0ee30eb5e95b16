"""spark-submit jobs/pipeline.py --config FILE [--run-id ID] [--set section.key=value]."""

import sys

from wals_spark.cli import main

if __name__ == "__main__":
    sys.exit(main(["pipeline", *sys.argv[1:]]))
