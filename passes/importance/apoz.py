"""APoZ: how often an activation is zero."""

from __future__ import annotations

import numpy as np

from passes.calibration.evidence import Contraction, Evidence, Moments
from passes.importance.activations import ActivationCriterion
from passes.importance.criterion import register_criterion


@register_criterion("apoz")
class Apoz(ActivationCriterion):
    """One minus the average percentage of zeros.

    Hu et al., "Network Trimming: A Data-Driven Neuron Pruning Approach towards Efficient Deep Architectures"
    (2016, arXiv:1607.03250).
    """

    def positions(self, moments: Moments, evidence: Evidence, contraction: Contraction) -> np.ndarray:
        return moments.nonzero
