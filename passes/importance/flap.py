"""FLAP: how much the input of a weight fluctuates."""

from __future__ import annotations

import numpy as np

from passes.calibration.evidence import Moments
from passes.importance.activations import ScaledCriterion
from passes.importance.criterion import register_criterion


@register_criterion("flap")
class Fluctuation(ScaledCriterion):
    """Sum over weights of w_ij^2 times the variance of input j: what replacing the input by its mean would cost.

    An et al., "Fluctuation-based Adaptive Structured Pruning for Large Language Models" (AAAI 2024, arXiv:2312.11983).
    """

    norm = np.square

    def factor(self, moments: Moments) -> np.ndarray:
        return moments.variance
