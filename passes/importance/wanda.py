"""Wanda: weights times the norm of what they are multiplied with."""

from __future__ import annotations

import numpy as np

from passes.calibration.evidence import Moments
from passes.importance.activations import ScaledCriterion
from passes.importance.criterion import register_criterion


@register_criterion("wanda")
class Wanda(ScaledCriterion):
    """Sum over weights of |w_ij| times the norm of input j.

    Sun et al., "A Simple and Effective Pruning Approach for Large Language Models" (ICLR 2024, arXiv:2306.11695).
    """

    norm = np.abs

    def factor(self, moments: Moments) -> np.ndarray:
        return np.sqrt(moments.square * moments.count)
