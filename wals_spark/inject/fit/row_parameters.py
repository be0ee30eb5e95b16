r"""What is fitted: free rows, rows that factors span, or both, in coordinates in which the problem is well conditioned.

Rows move by D = [R; 0] + F A: R free, for the tokens that occur among the targets, F the factors of all movable
tokens. With penalties lambda_R/2 |R|^2 + lambda_A/2 |A|^2 and f = sqrt(lambda_R / lambda_A)::

    theta = [R; A / f] Q ,   D = B theta Q^T ,   B = [I_S | f F U]      penalty: lambda_R / 2 |theta|^2

Q holds the eigenvectors of G = sum_t x_t x_t^T / n, U those of F^T diag(c) F; both are orthogonal, so the penalty
stays. In these coordinates the Hessian is nearly diagonal, c_i gamma_j + lambda_R: gamma are the eigenvalues of G, c_i
is the curvature sum_t p_ti (1 - p_ti) of a row, or its sum over the rows along a direction of the factors. Where only
the head bias is fitted, theta is the last column of D.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import torch


class FeatureBasis(NamedTuple):
    """Eigenvectors of the mean of x_t x_t^T over positions.

    Attributes
    ----------
    Q : float32 tensor of shape (d + 1, d + 1)
        Columns are eigenvectors.
    gamma : float32 tensor of shape (d + 1,)
        Eigenvalues, at least 0.
    """

    Q: torch.Tensor
    gamma: torch.Tensor


def feature_basis(gram: np.ndarray, count: int, device: str = "cpu") -> FeatureBasis:
    """The basis of a Gramian, float64 (d + 1, d + 1), summed over `count` positions."""
    import torch

    values, vectors = np.linalg.eigh(gram / max(count, 1))
    gamma = np.maximum(values, 0).astype(np.float32)
    return FeatureBasis(torch.from_numpy(vectors.astype(np.float32)).to(device), torch.from_numpy(gamma).to(device))


class BiasParameters:
    """The map between theta and the movable rows where only their biases move.

    Parameters
    ----------
    basis : FeatureBasis
    bias_scale : float
        s.
    curvature : float32 tensor of shape (A,)
        c of every movable row.
    """

    def __init__(self, basis: FeatureBasis, bias_scale: float, curvature: torch.Tensor) -> None:
        self.basis = basis
        self._square, self._curvature = bias_scale**2, curvature

    @property
    def shape(self) -> tuple[int, int]:
        """(A, 1), the shape of theta."""
        return len(self._curvature), 1

    def zeros(self) -> torch.Tensor:
        """The theta of biases as they were."""
        return self.basis.Q.new_zeros(self.shape)

    def rows(self, theta: torch.Tensor) -> torch.Tensor:
        """D, float32 (A, d + 1)."""
        D = theta.new_zeros(len(theta), len(self.basis.gamma))
        D[:, -1] = theta[:, 0]
        return D

    def gradient(self, by_rows: torch.Tensor) -> torch.Tensor:
        """dL/dtheta from dL/dD (A, d + 1)."""
        return by_rows[:, -1:].clone()

    def inverse_diagonal(self, ridge: float) -> torch.Tensor:
        """1 / (c_i s^2 + lambda_R), of theta's shape."""
        return 1 / (self._curvature[:, None] * self._square + ridge)


class RowParameters:
    """The map between theta and the movable rows.

    Parameters
    ----------
    basis : FeatureBasis
    movable : int
        A, rows that move.
    free : int64 array of shape (S,)
        Which of them move freely, ascending.
    factors : float32 array of shape (A, k) or None
        F; None = free rows only.
    factor_scale : float
        f.
    curvature : float32 tensor of shape (A,)
        c of every movable row.
    """

    def __init__(
        self,
        basis: FeatureBasis,
        movable: int,
        free: np.ndarray,
        factors: np.ndarray | None,
        factor_scale: float,
        curvature: torch.Tensor,
    ) -> None:
        import torch

        device = basis.Q.device
        self.basis = basis
        self.movable = movable
        self._free = torch.from_numpy(np.asarray(free, np.int64)).to(device)
        self._every = len(free) == movable
        self._F: torch.Tensor | None = None
        self._curvature = curvature[self._free]
        if factors is not None and factors.shape[1]:
            F = torch.from_numpy(np.ascontiguousarray(factors, np.float32)).to(device) * factor_scale
            along = (F * curvature[:, None]).T @ F
            values, U = torch.linalg.eigh(along.double())
            self._F = (F.double() @ U).float().contiguous()
            self._curvature = torch.cat([self._curvature, values.clamp_min(0).float()])

    @property
    def shape(self) -> tuple[int, int]:
        """(S + k, d + 1), the shape of theta."""
        return len(self._curvature), len(self.basis.gamma)

    def zeros(self) -> torch.Tensor:
        """The theta of rows as they were."""
        return self.basis.Q.new_zeros(self.shape)

    def rows(self, theta: torch.Tensor) -> torch.Tensor:
        """D, float32 (A, d + 1)."""
        R, A = theta[: len(self._free)], theta[len(self._free) :]
        if self._F is not None:
            D = self._F @ A
            D[self._free] += R
        elif self._every:
            D = R
        else:
            D = theta.new_zeros(self.movable, theta.shape[1])
            D[self._free] = R
        return D @ self.basis.Q.T

    def gradient(self, by_rows: torch.Tensor) -> torch.Tensor:
        """dL/dtheta from dL/dD (A, d + 1)."""
        import torch

        rotated = by_rows @ self.basis.Q
        free = rotated if self._every else rotated[self._free]
        return free if self._F is None else torch.cat([free, self._F.T @ rotated])

    def inverse_diagonal(self, ridge: float) -> torch.Tensor:
        """1 / (c_i gamma_j + lambda_R), of theta's shape."""
        return 1 / (self._curvature[:, None] * self.basis.gamma + ridge)
