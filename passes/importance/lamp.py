"""LAMP: the squared weight over the sum of squares of all weights of its layer that are not smaller.

Lee et al., "Layer-adaptive Sparsity for the Magnitude-based Pruning" (ICLR 2021, arXiv:2010.07611), eq. 3:
score(u; W) = W[u]^2 / sum over v with |W[v]| >= |W[u]| of W[v]^2. So that layers compare without normalisation.
"""

from __future__ import annotations

import numpy as np

from compiler.ir import Value
from passes.calibration.evidence import Evidence
from passes.importance.criterion import ParameterCriterion, register_criterion
from passes.importance.stored import row_values


@register_criterion("lamp")
class Lamp(ParameterCriterion):
    """Sum of the LAMP scores of the group's weights."""

    def prepare(self, evidence: Evidence) -> None:
        self._direct = evidence.direct
        self._layer: tuple[Value, np.ndarray, np.ndarray] | None = None

    def score(self, data: np.ndarray, constant: Value, rows: slice) -> np.ndarray:
        if self._layer is None or self._layer[0] is not constant:
            values = row_values(constant, self._direct.get(constant, []), slice(None))
            squares = np.sort(np.square(values, dtype=np.float64), axis=None)
            self._layer = constant, squares, squares[::-1].cumsum()[::-1]
        _, squares, not_smaller = self._layer
        own = np.square(data, dtype=np.float64)
        return own / np.maximum(not_smaller[np.searchsorted(squares, own, side="left")], np.finfo(np.float64).tiny)
