"""Functions that numba compiles, kept on disk until anything that they are made of changes.

Numba keeps compiled code as long as the file that defines a function stays the same, and does not notice a change of
what the function calls in other files: after an update a kernel would run as it was before. Here the key of the kept
code holds the sources of all modules of this package that the function's module imports, directly or not. And where
there is no place to keep code (an installation that only root may write to, a user without a home), numba refuses to
compile at all; here every process compiles for itself, and a warning says so.

Importing this module imports numba.
"""

from __future__ import annotations

import ast
import hashlib
import logging
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

from numba import njit
from numba.core.caching import FunctionCache

logger = logging.getLogger(__name__)

PACKAGE = __name__.partition(".")[0]


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """`numba.njit` with a cache on disk; options as there, without ``cache``."""

    def compile_lazily(function: Callable[..., Any]) -> Any:
        dispatcher = njit(**options)(function)
        if hasattr(dispatcher, "enable_caching"):  # a plain function under NUMBA_DISABLE_JIT
            try:
                dispatcher._cache = _CacheOfSources(function)
            except RuntimeError:
                _warn_once()
        return dispatcher

    return compile_lazily


class _CacheOfSources(FunctionCache):
    """Numba's cache on disk, with `sources_hash` in the key of every entry."""

    def _index_key(self, signature: Any, codegen: Any) -> tuple[Any, ...]:
        return (*super()._index_key(signature, codegen), sources_hash(self._py_func.__module__))


@cache
def sources_hash(module: str) -> str:
    """SHA-256 of the sources of a module and of those of `PACKAGE` that it imports, directly or not."""
    sources: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in sources:
            sources[name] = _source(name)
            waiting += _imports(name)
    text = "".join(f"{name}\0{sources[name]}\0" for name in sorted(sources))
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def _source(module: str) -> str:
    spec = sys.modules[module].__spec__
    get_source = getattr(spec.loader if spec else None, "get_source", lambda name: None)  # reads from zip files as well
    return get_source(module) or ""


@cache
def _imports(module: str) -> list[str]:
    """Modules of this package that a module imports when it is imported itself."""
    found = []
    for node in ast.parse(_source(module)).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    return [name for name in found if name.startswith(f"{PACKAGE}.") and name in sys.modules]


@cache
def _warn_once() -> None:
    logger.warning(
        "compiled kernels cannot be kept on disk, so every process compiles them again, a minute or more: neither the "
        "installed package nor a cache directory of the user can be written to; set NUMBA_CACHE_DIR to one that can"
    )
