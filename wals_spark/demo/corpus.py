"""A corpus without a download: the docstrings of installed packages, read with `ast`, nothing imported.

A document is a Python file: its docstrings in the order of the file, without their doctest examples.
A docstring that stood in an earlier file is left out. Order is by package, then path, so that the same
versions give the same bytes.
"""

from __future__ import annotations

import ast
import json
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib import metadata
from typing import Any

from wals_spark import storage
from wals_spark.errors import InputError
from wals_spark.progress import Progress

PACKAGES = ("scipy", "pandas", "numpy", "matplotlib", "networkx")
"""Packages with the most text about one field: this one depends on them, or its extra ``demo`` does."""
MIN_CHARACTERS = 80
_FILES_PER_TASK = 40
_TEST_DIRECTORY = re.compile(r"(^|/)(tests?|testing|_testing)/")


def without_examples(text: str) -> str:
    """A docstring without its doctest blocks, each reaching from a ``>>>`` line to the next blank one."""
    kept, inside = [], False
    for line in text.splitlines():
        if line.lstrip().startswith(">>>"):
            inside = True
        elif not line.strip():
            inside = False
        if not inside:
            kept.append(line)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip()


def docstrings(path: str) -> list[str]:
    """The docstrings of a file, in its order; none where it does not parse."""
    try:
        with open(path, "rb") as source:
            tree = ast.parse(source.read())
    except (SyntaxError, ValueError, RecursionError):
        return []
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text and len(text) >= MIN_CHARACTERS:
                line = 0 if isinstance(node, ast.Module) else node.lineno
                found.append((line, without_examples(text)))
    return [text for _, text in sorted(found, key=lambda item: item[0]) if len(text) >= MIN_CHARACTERS]


def source_files(package: str) -> list[tuple[str, str]]:
    """(name, path) of the Python files of an installed package, its tests left out, by name."""
    try:
        files = metadata.distribution(package).files or []
    except metadata.PackageNotFoundError:
        return []
    names = sorted({str(file) for file in files if file.suffix == ".py" and not _TEST_DIRECTORY.search(str(file))})
    located = {str(file): str(file.locate()) for file in files}
    return [(name, located[name]) for name in names if not name.startswith("..") and os.path.isfile(located[name])]


def versions(packages: Sequence[str]) -> dict[str, str]:
    """The versions of those of the packages that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def require(packages: Sequence[str]) -> None:
    """Refuse to start where one of the packages is missing: the corpus would be another one.

    Raises
    ------
    InputError
        Names the missing packages and what installs them.
    """
    missing = [package for package in packages if package not in versions(packages)]
    if missing:
        raise InputError(
            f"the demonstration reads the documentation of {', '.join(packages)}, and {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not installed: pip install 'wals_spark[demo]'"
        )


def _read(files: Sequence[tuple[str, str]]) -> list[tuple[str, list[str]]]:
    return [(name, docstrings(path)) for name, path in files]


def documents(packages: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(id, text) of every file with docstrings that no earlier one has."""
    files = [file for package in packages for file in source_files(package)]
    tasks = [files[start : start + _FILES_PER_TASK] for start in range(0, len(files), _FILES_PER_TASK)]
    seen: set[str] = set()
    with ProcessPoolExecutor(min(8, os.cpu_count() or 1)) as pool, Progress("corpus", len(tasks), "tasks") as progress:
        for done, found in enumerate(pool.map(_read, tasks), 1):
            for name, texts in found:
                new = list(dict.fromkeys(text for text in texts if text not in seen))
                seen.update(new)
                if new:
                    yield name, "\n\n".join(new)
            progress.update(done)


def write_corpus(path: str, packages: Sequence[str]) -> dict[str, Any]:
    """Write the corpus as JSON lines (``doc_id``, ``text``); returns its facts.

    Raises
    ------
    InputError
        None of the packages is installed with its sources.
    """
    lines, characters = [], 0
    for name, text in documents(packages):
        lines.append(json.dumps({"doc_id": name, "text": text}, ensure_ascii=False))
        characters += len(text)
    if not lines:
        raise InputError(f"no docstrings found in {', '.join(packages)}: install them with their sources")
    storage.write_bytes(path, ("\n".join(lines) + "\n").encode())
    return {"documents": len(lines), "characters": characters, "packages": versions(packages)}


def read_corpus(path: str) -> Iterator[str]:
    """The texts of a corpus that `write_corpus` wrote."""
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)["text"]
