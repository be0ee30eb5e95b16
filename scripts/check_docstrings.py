#!/usr/bin/env python
"""Check the docstrings of the public API by numpydoc's rules; exits 1 and lists what is missing.

    scripts/check_docstrings.py [PATH ...]        default: wals_spark

A public function of `MANY` arguments or more describes each of them, with its type, and what it returns. A function
with a section of parameters describes no others than it has. Nothing is imported.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from numpydoc.hooks.validate_docstrings import process_file

MANY = 4
EVERYWHERE = {"PR02", "PR03", "PR04", "GL06", "GL07"}
"""No unknown parameter, their order, a type for each; known sections, in numpydoc's order."""
OF_MANY = {"PR01", "RT01", "YD01"}
"""All parameters, what is returned, what is yielded."""


def public_functions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef]]:
    """Dotted names of public functions and of public methods of public classes."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node.name, node
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and not method.name.startswith("_"):
                    yield f"{node.name}.{method.name}", method


def arguments(function: ast.FunctionDef) -> int:
    """The number of its arguments, `self` and `cls` left out."""
    every = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return sum(argument.arg not in ("self", "cls") for argument in every)


def problems(path: Path) -> list[str]:
    """A line for each problem of a file."""
    functions = dict(public_functions(ast.parse(path.read_text(encoding="utf-8"))))
    found = []
    for place, name, check, description in process_file(
        path, {"checks": EVERYWHERE | OF_MANY, "exclude": "", "overrides": {}}
    ):
        function = functions.get(name.removeprefix(f"{path.stem}."))
        if function is not None and (
            check in EVERYWHERE or (arguments(function) >= MANY and ast.get_docstring(function))
        ):
            found.append(f"{place}: {check} {function.name}: {description}")
    return found


def main(paths: list[str]) -> int:
    """Check files and directories."""
    files = [
        file
        for path in map(Path, paths or ["wals_spark"])
        for file in (sorted(path.rglob("*.py")) if path.is_dir() else [path])
    ]
    found = [line for file in files for line in problems(file)]
    sys.stdout.writelines(f"{line}\n" for line in found)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
