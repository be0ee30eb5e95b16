"""Other libraries' parameters as objectives of this one: the same minimum, up to a constant in the loss.

A lambda copied from one library to another is wrong by orders of magnitude, because they multiply it with different
counts and weigh unobserved cells differently. Sources: the libraries' code, see docs/objectives.md.
"""

from __future__ import annotations

from wals_spark.objective import Objective, make_objective


def from_mllib(reg_param: float, alpha: float | None = None) -> Objective:
    """``pyspark.ml.recommendation.ALS``; alpha None is ``implicitPrefs=False``.

    ::

        explicit   sum_observed (x - s)^2 + regParam (sum_i n_i |u_i|^2 + sum_j n_j |v_j|^2)
        implicit   sum_all (1 + alpha |x|) (p - s)^2 + the same, n counting the cells with x > 0
    """
    ridge = {"regularization": reg_param, "regularization_exponent": 1.0, "unobserved_regularize": False}
    if alpha is None:
        return make_objective("explicit", **ridge)
    return make_objective("implicit", alpha=alpha, **ridge)


def from_implicit(regularization: float, alpha: float = 1.0) -> Objective:
    """``implicit.als.AlternatingLeastSquares``, whose confidence is alpha x where x is not 0, and 1 elsewhere.

    ::

        sum_all c (p - s)^2 + regularization (|U|^2 + |V|^2)
    """
    return make_objective("implicit", alpha=alpha, regularization=regularization, additive=False)


def from_ials(alpha0: float, regularization: float, exponent: float = 1.0) -> Objective:
    """The iALS and ALX objective (ALX: exponent 1), whose unobserved weight lies on every cell.

    ::

        sum_observed (s - 1)^2 + alpha0 sum_all s^2 + regularization (sum_i (n_i + alpha0 n)^exponent |u_i|^2 + ...)
    """
    return make_objective("ials", rho=alpha0, regularization=regularization, regularization_exponent=exponent)


def from_tensorflow(unobserved_weight: float, regularization: float) -> Objective:
    """``tf.contrib.factorization.WALSModel``: give its weights as ``unobserved_weight + w`` in the column of weights.

    ::

        sum_observed (w0 + w) (x - s)^2 + w0 sum_unobserved s^2 + regularization (|U|^2 + |V|^2)
    """
    return make_objective("custom", rho=unobserved_weight, regularization=regularization)
