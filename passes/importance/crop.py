"""CroP: how much the norm of the gradient would change, either way, if a weight went.

Rachwan et al., "Winning the Lottery Ahead of Time: Efficient Early Network Pruning" (ICML 2022, arXiv:2206.10451):
|w (H g)|.
"""

from __future__ import annotations

import numpy as np

from compiler.ir import Value
from passes.calibration.evidence import Evidence
from passes.importance.criterion import register_criterion
from passes.importance.gradients import GradientCriterion


@register_criterion("crop")
class Crop(GradientCriterion):
    """Sum of |w (H g)|."""

    def derivative(self, evidence: Evidence) -> dict[Value, np.ndarray]:
        return evidence.gradients.hessian_gradient

    def combine(self, weights: np.ndarray, derivative: np.ndarray) -> np.ndarray:
        return np.abs(weights * derivative)
