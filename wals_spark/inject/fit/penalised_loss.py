r"""What is minimised: J(theta) = L(B theta Q^T) + lambda_R / 2 |theta|^2, see `row_parameters` and `softmax_loss`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from wals_spark.inject.fit.hessian import CellHessian, DenseHessian, Hessian
from wals_spark.inject.fit.newton import dot

if TYPE_CHECKING:
    import torch

    from wals_spark.inject.fit.group_loss import GroupLoss
    from wals_spark.inject.fit.row_parameters import BiasParameters, RowParameters


class PenalisedLoss:
    """J over the positions of all ranks, a `ConvexFunction` of theta; every rank makes the same calls.

    Parameters
    ----------
    loss : GroupLoss
    parameters : RowParameters or BiasParameters
    ridge : float
        lambda_R.
    threads : int
        Of products with the Hessian on a processor.
    """

    def __init__(
        self, loss: GroupLoss, parameters: RowParameters | BiasParameters, ridge: float, threads: int = 1
    ) -> None:
        basis = parameters.basis
        self._gram = (basis.Q * basis.gamma) @ basis.Q.T  # (d + 1, d + 1)
        self._threads = threads
        self._hessian: Hessian | None = None
        self.loss = loss
        self.parameters = parameters
        self.ridge = ridge

    def evaluate(self, theta: torch.Tensor) -> tuple[float, torch.Tensor]:
        """J and its gradient."""
        D, own = self.parameters.rows(theta), self.loss.own
        if theta.device.type == "cpu":
            cells = CellHessian(own, self._gram, self._threads)
            part = own.evaluate(D, cells.add)
            cells.finish(part.mass)
            self._hessian = cells
        else:
            part = own.evaluate(D)
            self._hessian = DenseHessian(own, D)
        total = self.loss.sum(part)
        value = total.loss + 0.5 * self.ridge * dot(theta, theta)
        return value, self.parameters.gradient(total.gradient) + self.ridge * theta

    def hessian(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """The product with the Hessian at the last evaluation."""
        own = self._hessian
        assert own is not None, "evaluate first"

        def multiply(theta: torch.Tensor) -> torch.Tensor:
            product = self.loss.sum_rows(own.multiply(self.parameters.rows(theta)))
            return self.parameters.gradient(product) + self.ridge * theta

        return multiply

    def inverse_diagonal(self) -> torch.Tensor:
        """1 / (c_i gamma_j + lambda_R)."""
        return self.parameters.inverse_diagonal(self.ridge)
