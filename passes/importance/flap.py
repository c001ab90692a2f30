"""FLAP: how much the input of a weight fluctuates."""

from __future__ import annotations

import numpy as np

from passes.calibration.evidence import Contraction, Evidence, Moments
from passes.importance.activations import ActivationCriterion, columns
from passes.importance.criterion import register_criterion


@register_criterion("flap")
class Fluctuation(ActivationCriterion):
    """Sum over weights of w_ij^2 times the variance of input j: what replacing the input by its mean would cost.

    An et al., "Fluctuation-based Adaptive Structured Pruning for Large Language Models" (AAAI 2024, arXiv:2312.11983).
    """

    def positions(self, moments: Moments, evidence: Evidence, contraction: Contraction) -> np.ndarray:
        return moments.variance * columns(np.square, evidence, contraction)
