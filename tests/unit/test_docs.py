"""The documentation as text: lines that fit a terminal, links that lead somewhere, pictures that are current."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")])


def prose(page: Path) -> list[tuple[int, str]]:
    """Numbered lines of a page without its tables and code."""
    lines, fenced = [], False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced and not line.startswith("|"):
            lines.append((number, line))
    return lines


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_lines_stay_below_120_characters(page):
    assert [(number, len(line)) for number, line in prose(page) if len(line) >= 120] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page):
    text = "\n".join(line for _, line in prose(page))
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)]
    missing = [target for target in targets if target and "://" not in target and not (page.parent / target).exists()]
    assert missing == []


def test_modules_that_the_documentation_names_exist():
    names = {
        name
        for page in PAGES
        for name in re.findall(r"`(?:wals_spark/)?((?:[a-z_]+/)+[a-z_]+)(?:\.py)?`", page.read_text())
    }
    packages = {path.name for path in (ROOT / "wals_spark").iterdir() if path.is_dir()}
    ours = {name for name in names if name.partition("/")[0] in packages}
    assert len(ours) > 10
    missing = [name for name in ours if not any((ROOT / "wals_spark" / f"{name}{end}").exists() for end in ("", ".py"))]
    assert missing == []


def test_the_picture_of_the_data_path_is_what_its_script_draws():
    drawn = runpy.run_path(str(ROOT / "scripts" / "draw_architecture.py"))["draw"]()
    assert (ROOT / "docs" / "architecture.svg").read_text(encoding="utf-8") == drawn
