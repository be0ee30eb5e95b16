"""Vectors that the factors must beat: their own rows permuted, random ones, a truncated SVD of the same counts.

``svd``: rank-k of M = max(log(x_ij N / (x_i. x_.j)), 0) by randomised subspace iteration, rows U S^(1/2): what one gets
without any weighting of cells.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from wals_spark import schemas
from wals_spark.errors import InputError
from wals_spark.matrix import coo
from wals_spark.stage import Context
from wals_spark.stage_outputs import TrainOutputs

SVD_CELLS = 100_000_000
"""The SVD control is computed in the driver's memory, about 16 bytes per cell; larger matrices are refused."""
OVERSAMPLING = 16
POWER_ITERATIONS = 3


def permuted_vectors(matrix: np.ndarray, counts: np.ndarray, seed: int) -> np.ndarray:
    """The same vectors at other tokens; only tokens that were seen change places."""
    seen = np.nonzero(counts > 0)[0]
    shuffled = matrix.copy()
    shuffled[seen] = matrix[np.random.default_rng([seed, 8]).permutation(seen)]
    return shuffled


def random_vectors(matrix: np.ndarray, seed: int) -> np.ndarray:
    """Gaussian vectors with the norms of the matrix's rows."""
    drawn = np.random.default_rng([seed, 9]).standard_normal(matrix.shape).astype(np.float32)
    norms = np.linalg.norm(matrix, axis=1, keepdims=True)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True) * norms


def ppmi(rows: np.ndarray, cols: np.ndarray, values: np.ndarray, size: int) -> Any:
    """max(log(x_ij N / (x_i. x_.j)), 0): positive pointwise mutual information; equal cells are added first.

    Parameters
    ----------
    rows, cols : int array of shape (nnz,)
    values : float array of shape (nnz,)
        Counts x_ij.
    size : int
        V, the number of rows and of columns.

    Returns
    -------
    scipy.sparse.csr_array of shape (V, V)
        float32, without its zeros.

    References
    ----------
    Levy and Goldberg (2014), Neural Word Embedding as Implicit Matrix Factorization, NeurIPS.
    """
    from scipy.sparse import coo_array

    counts = coo_array((values.astype(np.float64), (rows, cols)), shape=(size, size)).tocsr()
    counts.sum_duplicates()
    total = counts.sum()
    row_sum, col_sum = np.asarray(counts.sum(axis=1)).ravel(), np.asarray(counts.sum(axis=0)).ravel()
    found = counts.tocoo()
    information = np.log(found.data * total / (row_sum[found.row] * col_sum[found.col]))
    kept = information > 0
    data = information[kept].astype(np.float32)
    return coo_array((data, (found.row[kept], found.col[kept])), shape=(size, size)).tocsr()


def truncated_svd(matrix: Any, k: int, seed: int) -> np.ndarray:
    """U S^(1/2) of the best rank-k approximation, float32 (V, k), by randomised subspace iteration.

    References
    ----------
    Halko, Martinsson and Tropp (2011), Finding Structure with Randomness, SIAM Review 53(2).
    """
    width = min(k + OVERSAMPLING, *matrix.shape)
    generator = np.random.default_rng([seed, 10])
    basis = generator.standard_normal((matrix.shape[1], width)).astype(np.float32)
    transposed = matrix.T.tocsr()
    basis, _ = np.linalg.qr(matrix @ basis)  # (V, width)
    for _ in range(POWER_ITERATIONS):
        basis, _ = np.linalg.qr(matrix @ np.linalg.qr(transposed @ basis)[0])
    u, s, _ = np.linalg.svd((transposed @ basis).T, full_matrices=False)  # basis^T M
    return np.asarray((basis @ u[:, :k]) * np.sqrt(s[:k]), np.float32)


def svd_vectors(context: Context, train: TrainOutputs, k: int) -> np.ndarray:
    """`truncated_svd` of the `ppmi` of the counts that the factors were trained on.

    Raises
    ------
    InputError
        More than `SVD_CELLS` cells.
    """
    files = [
        data_file
        for batch in train["batches"]
        for data_file in context.tables.files(schemas.COOCCURRENCE, {"batch_id": batch})
    ]
    if not files:
        raise InputError(
            "evaluate.controls: svd is made of counts, and the factors were trained on train.cells; take svd out of "
            "the list"
        )
    total = sum(data_file.rows for data_file in files)
    if total > SVD_CELLS:
        raise InputError(
            f"evaluate.controls: svd would hold {total:,} cells on the driver, at most {SVD_CELLS:,} are allowed; "
            "take svd out of the list"
        )
    size = train["vocabulary_size"]
    found = coo.read_coo([data_file.path for data_file in files], 0, 1, (size, size))
    matrix = ppmi(found.rows, found.cols, found.values, size)
    return truncated_svd(matrix, k, context.config.seed)
