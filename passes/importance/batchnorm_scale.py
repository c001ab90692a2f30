"""The scale of BatchNormalization as importance.

Liu et al., "Learning Efficient Convolutional Networks through Network Slimming" (ICCV 2017, arXiv:1708.06519).
"""

from __future__ import annotations

import numpy as np

from compiler.ir import Node, Value
from passes.importance.criterion import ParameterCriterion, register_criterion


@register_criterion("bn_scale")
class BatchNormScale(ParameterCriterion):
    """Sum of |gamma| over the group's BatchNormalizations; groups without one are not scored, so not pruned."""

    scores_weights = False

    def selects(self, constant: Value, uses: list[tuple[Node, int]]) -> bool:
        return any(n.op == "BatchNormalization" and i == 1 for n, i in uses)

    def score(self, data: np.ndarray, constant: Value, rows: slice) -> np.ndarray:
        return np.abs(data)
