r"""Newton's method with conjugate gradients, for a smooth, strongly convex function of a matrix.

::

    H_i delta_i = - g_i     solved by preconditioned conjugate gradients until |r| <= eta |g_i| in the norm of P
    theta_(i+1) = theta_i + t delta_i ,   t halved from 1 until the value falls by 1e-4 t times the slope

with eta = min(1/2, sqrt(|g_i| / |g_0|)), but at least a twentieth, which makes few products of the early steps. Values
never rise. H may be an approximation: the end, where g = 0, does not depend on it.

References
----------
Dembo and Steihaug (1983), Truncated-Newton algorithms for large-scale unconstrained optimization, Mathematical
Programming 26.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

SUFFICIENT_DECREASE = 1e-4
SMALLEST_STEP = 2.0**-20
MOST_PRODUCTS = 25
_TIGHTEST = 0.05


class ConvexFunction(Protocol):
    """A function of a matrix with its derivatives."""

    def evaluate(self, theta: torch.Tensor) -> tuple[float, torch.Tensor]:
        """The value and the gradient at theta, which the next call of `hessian` refers to."""
        ...

    def hessian(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """The product with a symmetric, positive definite matrix like the Hessian at the last evaluation."""
        ...

    def inverse_diagonal(self) -> torch.Tensor:
        """Of an approximate Hessian, of theta's shape, positive."""
        ...


@dataclass
class Minimum:
    """Where a minimisation is or ended.

    Attributes
    ----------
    theta : tensor of shape (rows, columns)
    value : float
    values : list of float
        At the start and after every iteration.
    evaluations, products : int
        Of the function, and with its Hessian.
    converged : bool
    """

    theta: torch.Tensor
    value: float
    values: list[float] = field(default_factory=list)
    evaluations: int = 0
    products: int = 0
    converged: bool = False


def minimise(
    function: ConvexFunction,
    theta: torch.Tensor,
    *,
    tolerance: float,
    iterations: int,
    reference: float | None = None,
    after_iteration: Callable[[Minimum], None] | None = None,
) -> Minimum:
    """Minimise until what Newton's step can still gain is a small share of the whole decrease.

    Parameters
    ----------
    function : ConvexFunction
    theta : float32 tensor of shape (rows, columns)
        The start.
    tolerance : float
        The end is reached where the quadratic model's gain is below this share of the decrease.
    iterations : int
        At most.
    reference : float, optional
        The value that the decrease is counted from; None = that at the start.
    after_iteration : callable, optional
        Called with where each iteration led.

    Returns
    -------
    Minimum
    """
    value, gradient = function.evaluate(theta)
    found = Minimum(theta, value, [value], 1)
    first = math.sqrt(dot(gradient, gradient))
    reference = value if reference is None else reference
    for _ in range(iterations):
        norm = math.sqrt(dot(gradient, gradient))
        if norm == 0:
            found.converged = True
            break
        step, gain = _newton_step(function, gradient, max(_TIGHTEST, min(0.5, math.sqrt(norm / first))), found)
        found.converged = gain <= tolerance * (reference - found.value)
        moved = _line_search(function, found, step, dot(gradient, step))
        if moved is None:  # rounding: nothing is left to gain
            found.converged = True
            break
        found.theta, found.value, gradient = moved
        found.values.append(found.value)
        if after_iteration is not None:
            after_iteration(found)
        if found.converged:
            break
    return found


def dot(a: torch.Tensor, b: torch.Tensor) -> float:
    """The inner product of two tensors: rows in their own precision, their sums in float64."""
    import torch

    return float((a * b).sum(dim=-1).sum(dtype=torch.float64))


def _newton_step(
    function: ConvexFunction, gradient: torch.Tensor, eta: float, found: Minimum
) -> tuple[torch.Tensor, float]:
    """Newton's step delta, and the quadratic model's gain - g . delta - delta . H delta / 2."""
    import torch

    multiply, P = function.hessian(), function.inverse_diagonal()
    delta, residual = torch.zeros_like(gradient), -gradient
    z = P * residual
    direction, rz = z, dot(residual, z)
    first = rz
    for _ in range(MOST_PRODUCTS):
        product = multiply(direction)
        found.products += 1
        a = rz / dot(direction, product)
        delta = delta + a * direction
        residual = residual - a * product
        z = P * residual
        before, rz = rz, dot(residual, z)
        if rz <= eta * eta * first:
            break
        direction = z + (rz / before) * direction
    return delta, 0.5 * (dot(delta, residual) - dot(gradient, delta))


def _line_search(
    function: ConvexFunction, found: Minimum, step: torch.Tensor, slope: float
) -> tuple[torch.Tensor, float, torch.Tensor] | None:
    """What theta, value and gradient are after the first of the steps 1, 1/2, 1/4, ... that gains enough, or None."""
    t = 1.0
    while t >= SMALLEST_STEP:
        theta = found.theta + t * step
        value, gradient = function.evaluate(theta)
        found.evaluations += 1
        if value <= found.value + SUFFICIENT_DECREASE * t * slope:
            return theta, value, gradient
        t /= 2
    return None
