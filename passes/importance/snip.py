"""SNIP: how much the loss would change, to first order, if a weight were scaled.

Lee et al., "SNIP: Single-shot Network Pruning based on Connection Sensitivity" (ICLR 2019, arXiv:1810.02340):
|w dL/dw|.
"""

from __future__ import annotations

import numpy as np

from compiler.ir import Value
from passes.calibration.evidence import Evidence
from passes.importance.criterion import register_criterion
from passes.importance.gradients import GradientCriterion


@register_criterion("snip")
class Snip(GradientCriterion):
    """Sum of |w g|."""

    def derivative(self, evidence: Evidence) -> dict[Value, np.ndarray]:
        return evidence.gradients.first

    def combine(self, weights: np.ndarray, derivative: np.ndarray) -> np.ndarray:
        return np.abs(weights * derivative)
