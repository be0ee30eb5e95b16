"""Imports run strictly downward, and the mathematics needs no Spark."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import wals_spark

PACKAGE = Path(wals_spark.__file__).parent
BASE_ORDER = [
    "errors",
    "compiled",
    "splitmix64",
    "schemas",
    "objective",
    "config",
    "storage",
    "runs",
    "stage_outputs",
    "progress",
    "heartbeat",
    "tokenizer",
    "token_shards",
]
LEVELS = [
    {*BASE_ORDER},
    {"cluster", "tables", "matrix"},
    {"stage"},
    {"factors", "mlm", "checkpoints"},
    {"corpus", "cooccurrence", "wals", "inject", "evaluate"},
    {"pipeline", "compress"},
    {"demo"},
    {"cli"},
]
PARTS = {
    "cluster": [{"class_archive", "failures", "process_group", "profile"}, {"preflight", "session"}, {"barrier"}],
    "tables": [{"base", "delta_log"}, {"delta", "parquet", "vocabulary"}, {"count_facts"}],
    "factors": [{"foldin", "gauge", "store", "top_k", "words"}, {"export", "neighbours", "query_tokens"}, {"stages"}],
    "mlm": [
        {"data", "hidden_states", "positions", "statistics", "text_sequences"},
        {"loss", "masking", "rare", "state_files"},
        {"pretrain", "state_encoder"},
    ],
    "checkpoints": [
        {"json_file", "model_card", "raw_tensor", "reload", "row_quantisation", "verification_report"},
        {"from_scratch", "row_comparison", "safetensors_file", "special_tokens"},
        {"checkpoint"},
        {"base_files", "edit", "outliers", "reload_check"},
        {"artifact"},
        {"domain_pack"},
        {"pack_sum"},
        {"pack_check"},
        {"output_check", "verify"},
        {"atomic_directory", "pack_making"},
        {"pack_application"},
        {"pack_command"},
    ],
    "evaluate": [
        {"controls", "intrinsic", "masked_lm"},
        {"before_after", "number_format", "vector_scores"},
        {"charts", "metrics", "summary"},
        {"report_content"},
        {"report", "report_data"},
        {"stages"},
    ],
    "compress": [
        {"alternating", "elementwise", "lowrank", "model_card", "modeling_factorised", "plugin", "quantise"},
        {"artifact", "closed_form", "reload", "text_statistics"},
        {"methods", "rank_choice", "verify"},
        {"comparison"},
        {"compress_checkpoint"},
        {"command"},
    ],
    "demo": [{"corpus", "model", "settings", "training"}, {"run"}, {"__main__"}],
    "cooccurrence": [
        {"kernels", "semantics"},
        {"merge"},
        {"window"},
        {"plan", "counting"},
        {"explain", "batches", "count_matrix"},
        {"stages"},
    ],
    "token_shards": [{"layout"}, {"local_ids", "writer"}, {"reader"}],
    "matrix": [{"array_file", "coo", "kernels", "list_column", "placement", "scipy_matrix"}, {"csr"}],
    "corpus": [
        {"document_batch", "listing", "record_ids", "shuffle", "utf8", "word_rules"},
        {"byte_strings", "clean", "duplicate_ids", "sentences", "source", "token_counter", "versions"},
        {"byte_stream"},
        {"csv_records"},
        {"read"},
        {"words", "writing"},
        {"boilerplate", "byte_level_bpe", "minhash", "vocabulary"},
        {"duplicate_texts", "subword_encoder"},
        {"documents", "encoding"},
        {"stages"},
    ],
    "objective": [
        {"keys", "marginals"},
        {"targets", "weights"},
        {"objective"},
        {"presets"},
        {"configuration"},
        {"markdown"},
    ],
    "wals": [
        {"partition.memory_plan", "partition.blocking", "solvers.cache_lines", "solvers.row_block", "conventions"},
        {"partition.halo", "partition.redistribute", "solvers.system", "solvers.kernels"},
        {"partition.side", "solvers.cpu"},
        {"partition.build", "solvers.row_update", "solvers.gpu"},
        {"solvers.majorization", "solvers.gauss_newton", "solvers.nonnegative"},
        {"solvers.non_quadratic"},
        {"engine"},
        {"estimator", "stages"},
    ],
    "inject": [
        {"align", "blend", "csls", "frequency", "initial_rows", "loss_search"},
        {"gate", "domain_shift", "vocabulary", "fit"},
        {"distributed", "proposal"},
        {"modes"},
        {"strength_search", "transfer"},
        {"prepare"},
        {"recompute"},
        {"verify"},
        {"stages"},
    ],
}
"""Within a package: its modules and subpackages from the bottom to the top."""
SPARK_FREE = [
    "checkpoints.artifact",
    "checkpoints.pack_application",
    "checkpoints.pack_making",
    "checkpoints.verify",
    "compress.closed_form",
    "compress.methods",
    "compress.plugin",
    "compress.compress_checkpoint",
    "config",
    "cooccurrence.window",
    "inject.fit.states_job",
    "inject.modes",
    "matrix.csr",
    "mlm",
    "objective",
    "runs",
    "stage_outputs",
    "storage",
    "token_shards",
    "wals.engine.collectives",
    "wals.engine.rank",
    "wals.partition.build",
    "wals.solvers.cpu",
]


def dotted(path: Path) -> str:
    """Of a module: its name below the package, without ``__init__``."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def part_of(package: str, name: str) -> tuple[int, str] | None:
    """The level and the part of a module within its package; None where it belongs to no part."""
    for index, parts in enumerate(PARTS[package]):
        for part in parts:
            if name == part or name.startswith(part + "."):
                return index, part
    return None


def imported_modules(path: Path) -> set[str]:
    """Modules of this package that a module imports, dotted."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("wals_spark."):
            base = node.module.removeprefix("wals_spark.")
            names |= {f"{base}.{alias.name}" for alias in node.names} | {base}
    return names


def level(package: str) -> int:
    """Of a package, or of a module that stands beside the packages."""
    return next(index for index, packages in enumerate(LEVELS) if package in packages)


def imported_packages(path: Path) -> set[str]:
    packages = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "wals_spark":
            parts = node.module.split(".")
            packages |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            packages |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("wals_spark.")}
    return {name for name in packages if (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file()}


MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_downward(path):
    relative = path.relative_to(PACKAGE)
    own = relative.parts[0].removesuffix(".py")
    for other in imported_packages(path) - {own}:
        same = level(other) == level(own)
        if same and level(own) == 0:
            assert BASE_ORDER.index(other) < BASE_ORDER.index(own), f"{relative} imports {other}"
        else:
            assert level(other) < level(own), f"{relative} imports {other}, which is not below it"


@pytest.mark.parametrize("package", PARTS)
def test_imports_run_downward_within_a_package(package):
    for path in sorted((PACKAGE / package).rglob("*.py")):
        name = dotted(path).removeprefix(package).removeprefix(".")
        own = part_of(package, name)
        if own is None:
            assert path.name == "__init__.py", f"{package}.{name} is in none of the PARTS of {package}"
            continue
        for other in imported_modules(path):
            theirs = part_of(package, other.removeprefix(f"{package}.")) if other.startswith(f"{package}.") else None
            below = theirs is None or theirs == own or theirs[0] < own[0]
            assert below, f"{package}.{name} imports {other}, which is not below it"


def test_delta_is_imported_by_one_module():
    importers = {
        str(path.relative_to(PACKAGE))
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("delta", "deltalake"))
        or (
            isinstance(node, ast.Import)
            and any(alias.name.split(".")[0] in ("delta", "deltalake") for alias in node.names)
        )
    }
    assert importers <= {"tables/delta.py", "tables/delta_log.py"}


IMPORT_WITHOUT_SPARK = """
import importlib, json, sys, traceback
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('pyspark', 'py4j', 'delta'):
            raise ImportError(name + ' is blocked')
sys.meta_path.insert(0, Block())
errors = {}
for module in sys.argv[1:]:
    try:
        importlib.import_module('wals_spark.' + module)
    except Exception:
        errors[module] = traceback.format_exc()
print(json.dumps(errors))
"""


@pytest.fixture(scope="module")
def errors_without_spark():
    """The traceback of each module that cannot be imported; one process imports them all."""
    command = [sys.executable, "-c", IMPORT_WITHOUT_SPARK, *SPARK_FREE]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.parametrize("module", SPARK_FREE)
def test_mathematics_imports_no_pyspark(module, errors_without_spark):
    assert errors_without_spark.get(module) is None


def test_no_two_public_names_mean_different_things():
    """`main` is what `python -m` calls; any other name of a module's public class or function stands for one thing."""
    places: dict[str, list[str]] = {}
    for path in MODULES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(str(path.relative_to(PACKAGE)))
    assert {name: found for name, found in places.items() if len(found) > 1 and name != "main"} == {}


def test_nothing_is_unpickled_and_no_remote_code_is_trusted():
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert not any(alias.name in ("pickle", "cloudpickle", "joblib", "dill") for alias in node.names), path
            if isinstance(node, ast.keyword) and node.arg in ("trust_remote_code", "allow_pickle"):
                assert isinstance(node.value, ast.Constant), path
                assert node.value.value is False, path
