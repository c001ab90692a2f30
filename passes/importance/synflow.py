"""SynFlow: the synaptic flow through a weight; needs neither data nor labels.

Tanaka et al., "Pruning neural networks without any data by iteratively conserving synaptic flow" (NeurIPS 2020,
arXiv:2006.05467), eq. 2: w dR/dw with R the sum of outputs of the network of absolute weights on ones.
"""

from __future__ import annotations

import numpy as np

from compiler.ir import Value
from passes.calibration.evidence import Evidence
from passes.importance.criterion import register_criterion
from passes.importance.gradients import GradientCriterion


@register_criterion("synflow")
class SynFlow(GradientCriterion):
    """Sum of w dR/dw."""

    needs = ""

    def derivative(self, evidence: Evidence) -> dict[Value, np.ndarray]:
        return evidence.gradients.synaptic_flow()

    def combine(self, weights: np.ndarray, derivative: np.ndarray) -> np.ndarray:
        return derivative
