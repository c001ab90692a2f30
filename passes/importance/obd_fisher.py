"""Optimal Brain Damage with the Fisher information for the Hessian.

LeCun, Denker and Solla, "Optimal Brain Damage" (NeurIPS 1989): w^2 H_ii / 2; Theis et al., "Faster gaze prediction with
dense networks and Fisher pruning" (2018, arXiv:1801.05787) for H_ii as the mean of squared gradients.
"""

from __future__ import annotations

import numpy as np

from compiler.ir import Value
from passes.calibration.evidence import Evidence
from passes.importance.criterion import register_criterion
from passes.importance.gradients import GradientCriterion


@register_criterion("obd_fisher")
class ObdFisher(GradientCriterion):
    """Sum of w^2 E[g^2] / 2."""

    def derivative(self, evidence: Evidence) -> dict[Value, np.ndarray]:
        return evidence.gradients.squares

    def combine(self, weights: np.ndarray, derivative: np.ndarray) -> np.ndarray:
        return np.square(weights) * derivative / 2
