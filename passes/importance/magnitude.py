"""Magnitude criteria: the L1 and L2 norms of all weights that a unit owns.

Li et al., "Pruning Filters for Efficient ConvNets" (ICLR 2017, arXiv:1608.08710) for the norm of a filter;
Fang et al., "DepGraph" (CVPR 2023, arXiv:2301.12900) for its sum over a dependency group.
"""

from __future__ import annotations

import numpy as np

from compiler.ir import Value
from passes.importance.criterion import ParameterCriterion, register_criterion


@register_criterion("l1")
class L1(ParameterCriterion):
    """Sum of |w| over the group's weights."""

    def score(self, data: np.ndarray, constant: Value, rows: slice) -> np.ndarray:
        return np.abs(data)


@register_criterion("l2")
class L2(ParameterCriterion):
    """Square root of the sum of w^2 over the group's weights."""

    def score(self, data: np.ndarray, constant: Value, rows: slice) -> np.ndarray:
        return np.square(data)

    def finish(self, totals: np.ndarray) -> np.ndarray:
        return np.sqrt(totals)
