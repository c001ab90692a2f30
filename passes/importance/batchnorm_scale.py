"""The scale of BatchNormalization as importance.

Liu et al., "Learning Efficient Convolutional Networks through Network Slimming" (ICCV 2017, arXiv:1708.06519).
"""

from __future__ import annotations

import numpy as np

from compiler.ir import Node, Value
from passes.importance.criterion import Criterion, register_criterion


@register_criterion("bn_scale")
class BatchNormScale(Criterion):
    """Sum of |gamma| over the group's BatchNormalizations; groups without one are not scored, so not pruned."""

    def score(self, constant: Value, uses: list[tuple[Node, int]]) -> np.ndarray | None:
        if any(n.op == "BatchNormalization" and i == 1 for n, i in uses):
            return np.abs(np.asarray(constant.numpy(), np.float32))
        return None
