"""Reference implementations of a transfer to another tokenizer in plain NumPy, a token at a time."""

from __future__ import annotations

import numpy as np


def matching_pursuit_reference(target: np.ndarray, atoms: np.ndarray, steps: int) -> tuple[list[int], np.ndarray]:
    """Chosen atoms and their coefficients, least squares solved anew at every step."""
    target, atoms = target.astype(np.float64), atoms.astype(np.float64)
    norms = np.linalg.norm(atoms, axis=1)
    chosen: list[int] = []
    x = np.zeros(0)
    left = target.copy()
    while len(chosen) < min(steps, *atoms.shape):
        best, size = -1, 1e-6 * np.linalg.norm(target)
        for j in range(len(atoms)):
            if j not in chosen and norms[j] > 0 and abs(atoms[j] @ left) / norms[j] > size:
                best, size = j, abs(atoms[j] @ left) / norms[j]
        if best < 0:
            break
        tried = atoms[[*chosen, best]]
        if np.linalg.matrix_rank(tried / np.linalg.norm(tried, axis=1, keepdims=True), tol=1e-6) <= len(chosen):
            break
        chosen.append(best)
        x = np.linalg.lstsq(tried.T, target, rcond=None)[0]
        left = target - x @ tried
    return chosen, x


def shared_reference(old: dict[str, int], new: dict[str, int]) -> np.ndarray:
    """Old id of every new token of one convention, -1 where the old tokenizer lacks it."""
    origin = np.full(max(new.values()) + 1, -1)
    for token, index in new.items():
        if token in old:
            origin[index] = old[token]
    return origin
