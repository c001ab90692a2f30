"""Mean and standard deviation of activations."""

from __future__ import annotations

import numpy as np

from passes.calibration.evidence import Contraction, Evidence, Moments
from passes.importance.activations import ActivationCriterion
from passes.importance.criterion import register_criterion


@register_criterion("activation_mean")
class ActivationMean(ActivationCriterion):
    """Absolute mean of the input.

    Molchanov et al., "Pruning Convolutional Neural Networks for Resource Efficient Inference" (ICLR 2017,
    arXiv:1611.06440), section 2.2.
    """

    def positions(self, moments: Moments, evidence: Evidence, contraction: Contraction) -> np.ndarray:
        return np.abs(moments.mean)


@register_criterion("activation_variance")
class ActivationVariance(ActivationCriterion):
    """Standard deviation of the input; the same source."""

    def positions(self, moments: Moments, evidence: Evidence, contraction: Contraction) -> np.ndarray:
        return np.sqrt(moments.variance)
