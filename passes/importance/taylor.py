"""Taylor: the squared change of the loss, to first order, if a weight (or a whole unit) went.

Molchanov et al., "Importance Estimation for Neural Network Pruning" (CVPR 2019, arXiv:1906.10771), eqs. 8 and 9.
"""

from __future__ import annotations

import numpy as np

from compiler.ir import Value
from passes.calibration.evidence import Evidence
from passes.importance.criterion import register_criterion
from passes.importance.gradients import GradientCriterion


@register_criterion("taylor")
class Taylor(GradientCriterion):
    """Sum of (w g)^2: each element by itself."""

    def derivative(self, evidence: Evidence) -> dict[Value, np.ndarray]:
        return evidence.gradients.first

    def combine(self, weights: np.ndarray, derivative: np.ndarray) -> np.ndarray:
        return np.square(weights * derivative)


@register_criterion("taylor_group")
class TaylorGroup(Taylor):
    """(Sum of w g)^2 over all that a unit owns: the unit as one."""

    def combine(self, weights: np.ndarray, derivative: np.ndarray) -> np.ndarray:
        return weights * derivative

    def weight_scores(self, evidence: Evidence, constant: Value) -> np.ndarray:
        return np.square(super().weight_scores(evidence, constant))

    def finish(self, totals: np.ndarray) -> np.ndarray:
        return np.square(totals)
