r"""Orthogonal matching pursuit: each target as a combination of few atoms, many targets at once.

::

    S <- {},  r <- t
    repeat:  j = argmax_j |a_j . r| / |a_j| ,   S <- S + {j} ,   x = argmin_x |t - sum_{i in S} x_i a_i|^2 ,
             r <- t - sum_{i in S} x_i a_i

An orthonormal basis of the chosen atoms grows by Gram-Schmidt, done twice; x follows from its triangular factor at the
end. A target is done when nothing is left of it or no atom correlates with what is left.

References
----------
Y. C. Pati, R. Rezaiifar, P. S. Krishnaprasad, "Orthogonal matching pursuit: recursive function approximation with
applications to wavelet decomposition", Asilomar 1993.

C. Goddard, F. Fernandes Neto, "Training-free tokenizer transplantation via orthogonal matching pursuit",
arXiv 2506.06607, 2025.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_CHUNK = 256
_NOTHING_LEFT = 1e-6
"""Of a target's length: a shorter residual, or a correlation below it, ends the pursuit."""


@dataclass(frozen=True)
class SparseCombinations:
    """Combinations of few atoms: target i is sum_s coefficients[i, s] atom[atoms[i, s]].

    Attributes
    ----------
    atoms : int64 array of shape (n, s)
        In the order of choice; 0 behind the last.
    coefficients : float64 array of shape (n, s)
        0 behind the last.
    """

    atoms: np.ndarray
    coefficients: np.ndarray

    def of_rows(self, rows: np.ndarray) -> np.ndarray:
        """The same combinations of other rows, one for each atom: float32 (n, d) of a float array (m, d)."""
        found = np.zeros((len(self.atoms), rows.shape[1]))
        for step in range(self.atoms.shape[1]):
            found += self.coefficients[:, step, None] * rows[self.atoms[:, step]]
        return found.astype(np.float32)


def matching_pursuit(targets: np.ndarray, atoms: np.ndarray, steps: int) -> SparseCombinations:
    """The module's pursuit for every target, `steps` atoms at most.

    Parameters
    ----------
    targets : float array of shape (n, k)
    atoms : float array of shape (m, k)
        Of any length; an atom of length 0 is never chosen.
    steps : int

    Returns
    -------
    SparseCombinations
    """
    norms = np.linalg.norm(atoms.astype(np.float64), axis=1)
    unit = np.where(norms[:, None] > 0, atoms / np.maximum(norms, 1e-300)[:, None], 0.0)  # (m, k), float64
    steps = min(steps, *atoms.shape)
    chosen = np.zeros((len(targets), steps), np.int64)
    x = np.zeros((len(targets), steps))
    for begin in range(0, len(targets), _CHUNK):
        part = slice(begin, begin + _CHUNK)
        chosen[part], x[part] = _pursue(targets[part].astype(np.float64), unit, steps)
    return SparseCombinations(chosen, np.where(x != 0, x / np.maximum(norms[chosen], 1e-300), 0.0))


def _pursue(targets: np.ndarray, unit: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Atoms and coefficients of a chunk of b targets, both (b, steps)."""
    b, k = targets.shape
    wide = unit.astype(np.float32)
    basis, triangle = np.zeros((b, steps, k)), np.tile(np.eye(steps), (b, 1, 1))
    chosen, along = np.zeros((b, steps), np.int64), np.zeros((b, steps))
    left = targets.copy()
    least = _NOTHING_LEFT * np.linalg.norm(targets, axis=1)
    active = np.flatnonzero(least > 0)
    for step in range(steps):
        correlation = np.abs(left[active].astype(np.float32) @ wide.T)  # (a, m)
        np.put_along_axis(correlation, chosen[active, :step], 0, axis=1)
        best = correlation.argmax(axis=1)
        atom = unit[best]  # (a, k)
        known = basis[active, :step]  # (a, step, k)
        direction, inner = atom, np.zeros((len(active), step))
        for _ in range(2):
            again = (known @ direction[:, :, None])[:, :, 0]
            direction = direction - (again[:, None] @ known)[:, 0]
            inner += again
        length = np.linalg.norm(direction, axis=1)
        works = (length > _NOTHING_LEFT) & (np.abs((atom * left[active]).sum(axis=1)) > least[active])
        active, best, length = active[works], best[works], length[works]
        if len(active) == 0:
            break
        basis[active, step] = direction[works] / length[:, None]
        chosen[active, step] = best
        triangle[active, step, :step], triangle[active, step, step] = inner[works], length
        along[active, step] = (basis[active, step] * left[active]).sum(axis=1)
        left[active] -= along[active, step, None] * basis[active, step]
    # atom_s = sum_i triangle[s, i] basis_i, so that x triangle = along
    x = np.linalg.solve(triangle.transpose(0, 2, 1), along[:, :, None])[:, :, 0]
    return chosen, x
