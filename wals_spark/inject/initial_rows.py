r"""Rows of an embedding about to be pretrained, from factors: centred, rotated at random, scaled.

::

    E_i = s (u_i - mu) R ,    mu = sum_i log(1 + c_i) u_i / sum_i log(1 + c_i)

R is the first k rows of a random orthogonal d x d matrix: no axis of the model means anything yet, and LayerNorms
expect vectors without preferred axes. s makes the rows' root mean square entry the config's ``initializer_range``.
Tokens that the corpus lacks, special ones and padding keep the rows that the model's class gave them. The head bias is
the log unigram frequency (`wals_spark.inject.frequency.log_unigram`).
"""

from __future__ import annotations

import numpy as np

from wals_spark.errors import InputError


def random_orthogonal(d: int, seed: int) -> np.ndarray:
    """A d x d orthogonal matrix, uniform by Haar measure, float64.

    Q of the QR decomposition of a Gaussian matrix, its columns' signs those that make R's diagonal positive.

    References
    ----------
    F. Mezzadri, "How to generate random matrices from the classical compact groups", Notices of the AMS 54(5), 2007.
    """
    generator = np.random.default_rng([seed, 14])
    Q, R = np.linalg.qr(generator.standard_normal((d, d)))
    return Q * np.sign(np.diag(R))


def initial_embedding_rows(U: np.ndarray, counts: np.ndarray, d: int, scale: float, seed: int) -> np.ndarray:
    """Rows s (u_i - mu) R of an embedding about to be pretrained, from factors.

    Parameters
    ----------
    U : float32 array of shape (n, k)
        In the canonical gauge: where k > d the first d columns are the strongest and only they are used.
    counts : int64 array of shape (n,)
        Weights of the mean mu: a token of count c weighs log(1 + c).
    d : int
        Width of the embedding.
    scale : float
        Root mean square entry of the result, the config's ``initializer_range``.
    seed : int
        Of the rotation R.

    Returns
    -------
    float32 array of shape (n, d)

    Raises
    ------
    InputError
        All factors are equal.
    """
    X = U[:, :d].astype(np.float64)
    weight = np.log1p(counts.astype(np.float64))
    X -= (weight @ X) / weight.sum()  # (n, min(k, d))
    rows = X @ random_orthogonal(d, seed)[: X.shape[1]]  # (n, d)
    size = float(np.sqrt(np.mean(rows**2)))
    if size == 0:
        raise InputError("all factors are equal: there is nothing to initialise from")
    return (rows * (scale / size)).astype(np.float32)
