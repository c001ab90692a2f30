"""What the data says of a unit: how large, how varied and how often active the inputs are that it feeds.

All look at the data operand of every sum of products (convolutions, matrix products), position by position.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

import numpy as np

from passes.calibration.evidence import Contraction, Evidence, Moments
from passes.importance.criterion import Criterion, Share
from passes.importance.stored import row_values


class ActivationCriterion(Criterion):
    """A criterion over the axes of data that meet weights."""

    needs = "samples"

    def shares(self, evidence: Evidence) -> Iterator[Share]:
        found = [c for c in evidence.contractions if self._labels(evidence, c) is not None]
        for contraction, moments in zip(found, evidence.moments([(c.x, c.axis) for c in found]), strict=True):
            labels = self._labels(evidence, contraction)
            assert labels is not None
            scores = self.positions(moments, evidence, contraction)
            yield labels, np.broadcast_to(along(scores, contraction.axis, labels.ndim), labels.shape)

    def _labels(self, evidence: Evidence, contraction: Contraction) -> np.ndarray | None:
        layout = evidence.groups.layouts.get(contraction.x)
        return None if layout is None else layout[contraction.axis]

    @abstractmethod
    def positions(self, moments: Moments, evidence: Evidence, contraction: Contraction) -> np.ndarray:
        """The score of each position of the axis."""


def columns(norm: np.ufunc, evidence: Evidence, contraction: Contraction) -> np.ndarray:
    """For each position of the data's axis, the sum of `norm` of the weights that it is multiplied with."""
    weight, axis = contraction.weight, contraction.weight_axis
    values = norm(row_values(weight, evidence.direct.get(weight, []), slice(None)))
    extent = (contraction.x.shape or ())[contraction.axis]
    assert isinstance(extent, int)
    if contraction.node.op == "Conv" and extent != values.shape[1]:  # the outputs of each group read their own inputs
        groups = extent // values.shape[1]
        rows = values.reshape(groups, -1, *values.shape[1:])
        return rows.sum(axis=tuple(a for a in range(rows.ndim) if a not in (0, 2))).reshape(extent)
    return values.sum(axis=tuple(a for a in range(values.ndim) if a != axis))


def along(scores: np.ndarray, axis: int, rank: int) -> np.ndarray:
    """Scores of the positions of one axis of a tensor of `rank`."""
    return scores.reshape([-1 if a == axis else 1 for a in range(rank)])
