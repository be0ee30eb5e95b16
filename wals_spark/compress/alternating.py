r"""ALS on a fully observed matrix with equal weights, whose minimum is the truncated SVD.

::

    minimise  |X - U V^T|^2 + lambda (|U|^2 + |V|^2)

    U = X V (V^T V + lambda I)^-1        V = X^T U (U^T U + lambda I)^-1

Rows enter through X^T X alone: with T = V (V^T V + lambda I)^-1 is U = X T, U^T U = T^T G T and X^T U = G T for
G = X^T X. So a sweep costs d^2 r operations, whatever the number of rows. The bound that is reported is the error of
the SVD of rank r, the sum of the squares of the singular values beyond r: no factors of that rank have a smaller one.

References
----------
C. Eckart, G. Young, "The approximation of one matrix by another of lower rank", Psychometrika 1, 1936.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wals_spark.wals.engine.convergence import has_converged
from wals_spark.wals.engine.initial_factors import initial_factors


@dataclass(frozen=True)
class AlternatingFit:
    """Factors after the last sweep.

    Attributes
    ----------
    transform : float64 array of shape (d, r)
        T: coordinates of x are x T.
    basis : float64 array of shape (r, d)
        V^T.
    losses : list of float
        The objective after every half-sweep, rows first.
    error : float
        |X - U V^T|^2 at the end.
    bound : float
        Its minimum over all factors of that rank.
    """

    transform: np.ndarray
    basis: np.ndarray
    losses: list[float]
    error: float
    bound: float


def alternate(
    G: np.ndarray, rank: int, *, sweeps: int, ridge: float, tolerance: float, seed: int = 0
) -> AlternatingFit:
    """Sweep until the loss decreases no more.

    Parameters
    ----------
    G : float64 array of shape (d, d)
        X^T X.
    rank : int
        r.
    sweeps : int
        At most.
    ridge : float
        lambda, above 0.
    tolerance : float
        Relative decrease of the loss in a sweep below which it ends.
    seed : int
        Of the first V.

    Returns
    -------
    AlternatingFit
    """
    total = float(np.trace(G))
    identity = ridge * np.eye(rank)
    V = initial_factors(seed, "col", np.arange(len(G)), rank)  # (d, r)
    T = np.zeros_like(V)
    losses: list[float] = []
    for _ in range(sweeps):
        T = np.linalg.solve(V.T @ V + identity, V.T).T  # (d, r)
        image = G @ T  # X^T U, (d, r)
        losses.append(total - float(np.sum(V * image)) + ridge * float(np.sum(V * V)))
        square = T.T @ image  # U^T U, (r, r)
        V = np.linalg.solve(square + identity, image.T).T
        losses.append(total - float(np.sum(V * image)) + ridge * float(np.trace(square)))
        if has_converged(losses, tolerance):
            break
    T = np.linalg.solve(V.T @ V + identity, V.T).T
    image = G @ T
    losses.append(total - float(np.sum(V * image)) + ridge * float(np.sum(V * V)))
    error = total - 2 * float(np.sum(V * image)) + float(np.sum((V.T @ V) * (T.T @ image)))
    return AlternatingFit(T, V.T, losses, error, float(np.linalg.eigvalsh(G)[: len(G) - rank].sum()))
