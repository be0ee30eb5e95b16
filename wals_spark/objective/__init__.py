"""What is minimised: targets, weights and regularisation of every preset.

::

    loss(U, V) = sum_observed w_ij (m_ij - s_ij)^2 + rho sum_unobserved g_i h_j s_ij^2
               + sum_i lambda_i |u_i|^2 + sum_j lambda_j |v_j|^2

    s_ij     = u_i.v_j + b_i + c_j          (b, c only with biases; they are not regularised)
    lambda_i = lambda (n_i + rho n)^nu      (n_i observed cells of row i, n columns)

An observed cell carries its target ``m`` and ``d = w - rho g_i h_j``, the weight it has beyond an
unobserved one, because the unobserved part of a row is then the Gramian of the whole other side:
``A_i = rho g_i sum_j h_j v_j v_j^T + sum_observed d_ij v_j v_j^T + lambda_i I``.
Rows and columns without an observed cell are outside the model: g_i = 0 or h_j = 0, zero factors.

Two objectives leave this family, and `wals_spark.wals.solvers.non_quadratic` brings them back to it, a half-step at a
time::

    swivel        sum_observed w_ij (m_ij - s_ij)^2 + sum_unobserved ln(1 + exp(s_ij - p_ij)) + ridge
    squared_norm  sum_observed w_ij (m_ij - z - |u_i + v_j|^2)^2 + ridge,   z a number

p_ij being the target that a single count would have.
"""

from wals_spark.objective.configuration import configuration_keys, from_config, make_objective
from wals_spark.objective.keys import Key
from wals_spark.objective.marginals import Marginals
from wals_spark.objective.objective import SOFTPLUS_CURVATURE, Objective
from wals_spark.objective.presets import DEFAULT_PRESET, PRESETS
from wals_spark.objective.targets import TARGETS
from wals_spark.objective.weights import WEIGHTS

__all__ = [
    "DEFAULT_PRESET",
    "PRESETS",
    "SOFTPLUS_CURVATURE",
    "TARGETS",
    "WEIGHTS",
    "Key",
    "Marginals",
    "Objective",
    "configuration_keys",
    "from_config",
    "make_objective",
]
