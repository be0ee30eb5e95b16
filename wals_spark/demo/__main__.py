"""``python -m wals_spark.demo [DIRECTORY]``."""

import sys

from wals_spark.cli import main

if __name__ == "__main__":
    sys.exit(main(["demo", *(["--directory", sys.argv[1]] if len(sys.argv) > 1 else [])]))
