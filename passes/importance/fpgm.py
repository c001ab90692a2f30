"""FPGM: filters near the geometric median of their layer can be replaced by the others.

He et al., "Filter Pruning via Geometric Median for Deep Convolutional Neural Networks Acceleration" (CVPR 2019,
arXiv:1811.00250), eq. 7: score(i) = sum over j of |F_i - F_j|.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from passes.calibration.evidence import Evidence
from passes.importance.criterion import Criterion, Share, is_weight, register_criterion
from passes.importance.stored import row_values


@register_criterion("fpgm")
class GeometricMedian(Criterion):
    """Sum, over the weights that produce a unit, of the distances of its filter to all others of the layer."""

    def shares(self, evidence: Evidence) -> Iterator[Share]:
        summed = {(c.weight, c.weight_axis) for c in evidence.contractions}
        for constant in evidence.constants():
            if not is_weight(constant, evidence.uses.get(constant, [])):
                continue
            for axis, labels in enumerate(evidence.groups.layouts.get(constant, ())):
                if labels is None or (constant, axis) in summed or labels.size != labels.shape[axis]:
                    continue
                values = row_values(constant, evidence.direct.get(constant, []), slice(None))
                filters = np.moveaxis(values, axis, 0).reshape(labels.size, -1).astype(np.float64)
                yield labels.ravel(), _distances(filters)


def _distances(filters: np.ndarray) -> np.ndarray:
    """For each row, the sum of its Euclidean distances to the others."""
    norms = np.square(filters).sum(1)
    squares = norms[:, None] + norms[None] - 2 * filters @ filters.T
    return np.sqrt(np.maximum(squares, 0)).sum(1)
