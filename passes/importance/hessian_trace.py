"""Hessian-aware pruning: the norm of a unit's weights times the mean curvature that they see.

Yu et al., "Hessian-Aware Pruning and Optimal Neural Implant" (WACV 2022, arXiv:2101.08940), eq. 8:
tr(H_p) / (2 p) times the squared norm of the p parameters of a unit.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from compiler.ir import Value
from passes.calibration.evidence import Evidence
from passes.importance.criterion import Criterion, Share, is_weight, register_criterion


@register_criterion("hessian_trace")
class HessianTrace(Criterion):
    """Sum over members of tr(H) / (2 p) |w|^2 of the slice of p weights."""

    needs = "labels"

    scores_weights = True

    def scores_weights_of(self, evidence: Evidence, constant: Value) -> bool:
        uses = evidence.uses.get(constant, [])
        return constant in evidence.gradients.hessian_diagonal and is_weight(constant, uses)

    def weight_scores(self, evidence: Evidence, constant: Value) -> np.ndarray:
        diagonal = evidence.gradients.hessian_diagonal[constant]
        return diagonal * np.square(np.asarray(constant.numpy(), np.float64)) / 2

    def shares(self, evidence: Evidence) -> Iterator[Share]:
        diagonal = evidence.gradients.hessian_diagonal
        for constant in evidence.constants():
            if constant not in diagonal or not is_weight(constant, evidence.uses.get(constant, [])):
                continue
            weights = np.asarray(constant.numpy(), np.float64)
            for labels in evidence.groups.layouts.get(constant, ()):
                if labels is None:
                    continue
                axes = tuple(a for a, d in enumerate(labels.shape) if d == 1)
                trace = diagonal[constant].mean(axes, keepdims=True) / 2
                yield labels, trace * np.square(weights).sum(axes, keepdims=True)
