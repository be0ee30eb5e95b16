#!/usr/bin/env python
"""Rewrite the tables of a page on objectives from the code.

scripts/document_objectives.py [PAGE]        default: docs/objectives.md
"""

from __future__ import annotations

import sys
from pathlib import Path

from wals_spark.objective.markdown import with_objectives


def main(page: Path) -> None:
    """Rewrite the page where it is out of date."""
    page.write_text(with_objectives(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/objectives.md"))
