"""An objective of one's own: one module, and the configuration, the objective and the errors know it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

MODULE = '''
from dataclasses import dataclass, field
import numpy as np
from wals_spark.objective.keys import key
from wals_spark.objective.objective import Objective
from wals_spark.objective.presets import register_preset
from wals_spark.objective.targets import Target
from wals_spark.objective.weights import Weight

@dataclass(frozen=True)
class BoxCox(Target, name="box_cox"):
    """(x^box_cox - 1) / box_cox."""
    formula = "(x^box_cox - 1) / box_cox"
    box_cox: float = field(default=0.5, metadata=key("Power of counts.", gt=0))
    def __call__(self, x, row, col, marginals):
        return (x**self.box_cox - 1.0) / self.box_cox

@dataclass(frozen=True)
class Bounded(Weight, name="bounded"):
    """x / (x + half)."""
    formula = "x / (x + half)"
    half: float = field(default=10.0, metadata=key("Count of half the weight.", gt=0))
    def __call__(self, x):
        return x / (x + self.half)

register_preset(
    Objective("box_cox", "box_cox", "bounded", False, rho=0.0, popularity_exponent=0.0, regularization=0.1,
              parameters={"half": 3.0}),
    source="a test",
)
'''

USE = """
import numpy as np
import new_objective
from wals_spark.config import fingerprint, load_config, reference_markdown
from wals_spark.errors import ConfigError
from wals_spark.objective import PRESETS, Marginals, Objective, from_config

config = load_config(None, ["train.objective=box_cox", "train.box_cox=2"])
objective = from_config(config.train)
x = np.array([1.0, 3.0])
m, d = objective.cells(x, np.array([0, 1]), np.array([0, 0]), Marginals(x, x[:1], x, x[:1]), x, x)
assert m.tolist() == [0.0, 4.0], m
assert d.tolist() == [0.25, 0.5], d
assert Objective(**objective.to_dict()) == objective
assert "| train.half | number or none | none | Count of half the weight. |" in reference_markdown()
assert fingerprint(PRESETS["ppmi"].to_dict()) == "7d566156acbae2e0"
for overrides in (["train.half=2"], ["train.objective=box_cox", "train.x_max=2"]):
    try:
        from_config(load_config(None, overrides).train)
    except ConfigError as error:
        assert "does not use it; remove it" in str(error)
    else:
        raise AssertionError(overrides)
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "new_objective.py").write_text(MODULE)
    return tmp_path


def test_one_module_adds_an_objective_with_a_target_a_weight_and_keys(directory: Path) -> None:
    code = f"import sys; sys.path.insert(0, {str(directory)!r})\n{USE}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
