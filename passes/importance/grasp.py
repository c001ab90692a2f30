"""GraSP: how much the norm of the gradient would fall if a weight went.

Wang et al., "Picking Winning Tickets Before Training by Preserving Gradient Flow" (ICLR 2020, arXiv:2002.07376), eq. 8:
weights with the largest -w (H g) go first, so the importance is w (H g).
"""

from __future__ import annotations

import numpy as np

from compiler.ir import Value
from passes.calibration.evidence import Evidence
from passes.importance.criterion import register_criterion
from passes.importance.gradients import GradientCriterion


@register_criterion("grasp")
class Grasp(GradientCriterion):
    """Sum of w (H g)."""

    def derivative(self, evidence: Evidence) -> dict[Value, np.ndarray]:
        return evidence.gradients.hessian_gradient

    def combine(self, weights: np.ndarray, derivative: np.ndarray) -> np.ndarray:
        return weights * derivative
