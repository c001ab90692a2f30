"""Entropy of activations: how much they tell apart."""

from __future__ import annotations

import numpy as np

from passes.calibration.evidence import Contraction, Evidence, Moments
from passes.importance.activations import ActivationCriterion
from passes.importance.criterion import register_criterion

_BINS = 16


@register_criterion("entropy")
class Entropy(ActivationCriterion):
    """Entropy, in nats, of the histogram over samples of the mean activation.

    Luo and Wu, "An Entropy-based Pruning Method for CNN Compression" (2017, arXiv:1706.05791).
    """

    def positions(self, moments: Moments, evidence: Evidence, contraction: Contraction) -> np.ndarray:
        found = np.zeros(len(moments.mean))
        for position, values in enumerate(moments.per_sample.T):
            if np.ptp(values) > 0:
                counts, _ = np.histogram(values, _BINS)
                shares = counts[counts > 0] / len(values)
                found[position] = -(shares * np.log(shares)).sum()
        return found
