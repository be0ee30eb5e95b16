"""Methods that fit rows to hidden states, on the same states: how soon each comes near the minimum of J.

``python benchmarks/fit.py STATES CHECKPOINT --ridge 1000`` reads the states of a run (runs/<run_id>/states/<hash> of a
warehouse) and minimises J over free rows by

- ``newton``: the package's, conjugate gradients on the large cells of the softmax;
- ``lbfgs``: SciPy's L-BFGS-B on the same value and gradient;
- ``adam``: PyTorch's Adam on minibatches of the same loss;
- ``wals``: half-steps of WALS, one exact solve for each row with the large cells as observed ones, step halved;
- ``bound``: the same with Boehning's bound of the curvature, which needs no step search.

One JSON line for each: (seconds, J) after every iteration, and the seconds until the decrease of J is within 1 % and
0.1 % of the largest that any of them reached.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
import torch

from wals_spark.checkpoints.checkpoint import (
    checkpoint_tokenizer,
    embedding_values,
    open_checkpoint,
    protected_ids,
)
from wals_spark.cluster.process_group import LocalGroup
from wals_spark.inject.fit.fit_rows import BIAS_SHARE, COUNT_CURVATURE
from wals_spark.inject.fit.group_loss import GroupLoss
from wals_spark.inject.fit.hessian import SMALLEST_CELL
from wals_spark.inject.fit.newton import dot, minimise
from wals_spark.inject.fit.penalised_loss import PenalisedLoss
from wals_spark.inject.fit.row_parameters import RowParameters, feature_basis
from wals_spark.inject.fit.softmax_loss import OutputLayer, SoftmaxLoss
from wals_spark.mlm.state_files import TRAINING, list_state_parts, load_states

Curve = list[tuple[float, float]]


class Case:
    """A fit of free rows, ready for any method."""

    def __init__(self, states: str, checkpoint: str, ridge: float, threads: int) -> None:
        opened = open_checkpoint(checkpoint)
        assert opened.head_bias is not None
        training = load_states(list_state_parts(states, TRAINING))
        size = opened.vocab_size
        self.seen = np.bincount(training.target, minlength=size)
        protected = protected_ids(checkpoint_tokenizer(opened.directory), opened.config, size)
        movable = np.setdiff1d(np.flatnonzero(self.seen), protected)
        self.seen = self.seen[movable]
        h = training.hidden.astype(np.float32)
        scale = float(np.sqrt((h * h).sum(1).mean() / BIAS_SHARE))
        base = OutputLayer(embedding_values(opened), opened.tensors[opened.head_bias].values().astype(np.float32))
        self.ridge, self.threads = ridge, threads
        self.loss = SoftmaxLoss(training, base, movable, scale)

    def value(self, D: torch.Tensor) -> float:
        """J."""
        return float(self.loss.losses(D).sum()) + 0.5 * self.ridge * dot(D, D)

    def evaluate(self, D: torch.Tensor) -> tuple[float, torch.Tensor]:
        """J and its gradient."""
        found = self.loss.evaluate(D)
        return found.loss + 0.5 * self.ridge * dot(D, D), found.gradient + self.ridge * D

    def zeros(self) -> torch.Tensor:
        """D of rows as they were."""
        return torch.zeros(self.loss.shape)


def newton(case: Case, seconds: float, point: Callable[[float], None]) -> None:
    """The package's method."""
    group = GroupLoss(case.loss, LocalGroup())
    at_base = case.loss.evaluate(case.zeros())
    curvature = at_base.mass - at_base.squared_mass + COUNT_CURVATURE * torch.from_numpy(case.seen).float()
    rows = len(curvature)
    basis = feature_basis(case.loss.gram(), case.loss.count)
    parameters = RowParameters(basis, rows, np.arange(rows), None, 1.0, curvature)
    function = PenalisedLoss(group, parameters, case.ridge, case.threads)
    minimise(
        function, parameters.zeros(), tolerance=1e-5, iterations=40, after_iteration=lambda found: point(found.value)
    )


def lbfgs(case: Case, seconds: float, point: Callable[[float], None]) -> None:
    """SciPy's L-BFGS-B."""
    from scipy.optimize import minimize

    started, last = time.perf_counter(), [0.0]

    def function(flat: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = case.evaluate(torch.from_numpy(flat.astype(np.float32)).reshape(case.loss.shape))
        last[0] = value
        return value, gradient.numpy().ravel().astype(np.float64)

    def after(_: np.ndarray) -> None:
        point(last[0])
        if time.perf_counter() - started > seconds:
            raise StopIteration

    minimize(function, case.zeros().numpy().ravel(), jac=True, method="L-BFGS-B", callback=after,
             options={"maxiter": 1000, "ftol": 1e-9, "gtol": 1e-9})  # fmt: skip


def adam(case: Case, seconds: float, point: Callable[[float], None], batch: int = 1024, rate: float = 1e-2) -> None:
    """Minibatches of positions, learning rate falling to 0 over the time given."""
    D = case.zeros().requires_grad_()
    optimizer = torch.optim.Adam([D], lr=rate)
    generator = np.random.default_rng(0)
    started, shown = time.perf_counter(), 0.0
    while (spent := time.perf_counter() - started) < seconds:
        optimizer.param_groups[0]["lr"] = rate * (1 - spent / seconds)
        part = np.sort(generator.integers(case.loss.count, size=batch))
        D.grad = case.loss.batch_gradient(D.detach(), part) * (case.loss.count / batch) + case.ridge * D.detach()
        optimizer.step()
        if spent - shown > seconds / 12:
            point(case.value(D.detach()))
            shown = spent
    point(case.value(D.detach()))


def row_solves(case: Case, seconds: float, point: Callable[[float], None], bound: bool) -> None:
    """Newton's step row by row: a (d + 1) x (d + 1) system each, as WALS solves them."""
    D, k = case.zeros(), case.loss.shape[1]
    gram = torch.from_numpy(case.loss.gram()).float()
    x = case.loss.features(slice(0, case.loss.count))
    value, gradient = case.evaluate(D)
    started = time.perf_counter()
    while time.perf_counter() - started < seconds:
        step = torch.empty_like(D)
        if bound:
            factor = torch.linalg.cholesky(0.5 * gram + case.ridge * torch.eye(k))
            step = -torch.cholesky_solve(gradient.T.contiguous(), factor).T
        else:
            probabilities = torch.cat([p for _, p in case.loss.probabilities(D)])  # (n, A)
            for row in range(len(D)):
                p = probabilities[:, row]
                cells = (p >= SMALLEST_CELL).nonzero()[:, 0]
                w, own = p[cells] * (1 - p[cells]), x[cells]
                rest = float(p.sum() - p[cells].sum()) / case.loss.count
                system = (own * w[:, None]).T @ own + rest * gram + case.ridge * torch.eye(k)
                step[row] = -torch.linalg.solve(system, gradient[row])
        t = 1.0
        while t > 1e-3:
            new, new_gradient = case.evaluate(D + t * step)
            if new < value:
                break
            t /= 2
        D, value, gradient = D + t * step, new, new_gradient
        point(value)


METHODS: dict[str, Callable[..., None]] = {
    "newton": newton,
    "lbfgs": lbfgs,
    "adam": adam,
    "wals": partial(row_solves, bound=False),
    "bound": partial(row_solves, bound=True),
}


def run(case: Case, method: str, seconds: float) -> Curve:
    """(seconds, J) after every iteration."""
    started, curve = time.perf_counter(), [(0.0, case.value(case.zeros()))]

    def point(value: float) -> None:
        curve.append((round(time.perf_counter() - started, 1), round(value, 1)))

    with suppress(StopIteration):
        METHODS[method](case, seconds, point)
    return curve


def reached(curve: Curve, best: float, share: float) -> float | None:
    """Seconds until the decrease is within a share of the best, None where it never is."""
    first = curve[0][1]
    return next((at for at, value in curve if first - value >= (1 - share) * (first - best)), None)


def main() -> None:
    """Parse the options, run the methods, print their lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("states")
    parser.add_argument("checkpoint")
    parser.add_argument("--ridge", type=float, default=1000.0)
    parser.add_argument("--methods", default="newton,lbfgs,adam,bound,wals")
    parser.add_argument("--seconds", type=float, default=180.0, help="of each method but newton")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    case = Case(options.states, options.checkpoint, options.ridge, options.threads)
    curves = {}
    for method in options.methods.split(","):
        curves[method] = run(case, method, options.seconds)
        print(json.dumps({"benchmark": "fit", "method": method, "curve": curves[method]}), flush=True)
    best = min(value for curve in curves.values() for _, value in curve)
    summary: dict[str, Any] = {
        method: {
            "J": curve[-1][1],
            "to_1_percent_s": reached(curve, best, 0.01),
            "to_0.1_percent_s": reached(curve, best, 1e-3),
        }
        for method, curve in curves.items()
    }
    facts = {"positions": case.loss.count, "rows": case.loss.shape[0], "best": best}
    print(json.dumps({"benchmark": "fit", **facts, **summary}))


if __name__ == "__main__":
    main()
