"""What the data says of a unit: how large, how varied and how often active the inputs are that it feeds.

All look at the data operand of every sum of products (convolutions, matrix products), position by position.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import ClassVar

import numpy as np

from compiler.ir import Value
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


class ScaledCriterion(ActivationCriterion):
    """A criterion of a norm of each weight times what the data say of the input that it is multiplied with."""

    norm: ClassVar[np.ufunc]
    scores_weights = True

    @abstractmethod
    def factor(self, moments: Moments) -> np.ndarray:
        """What each position of the data counts."""

    def positions(self, moments: Moments, evidence: Evidence, contraction: Contraction) -> np.ndarray:
        return self.factor(moments) * columns(self.norm, evidence, contraction)

    def scores_weights_of(self, evidence: Evidence, constant: Value) -> bool:
        own = [c.node for c in evidence.contractions if c.weight is constant and not c.x.is_constant]
        return bool(own) and len(set(own)) == len(own)  # not summed over several axes at once

    def weight_scores(self, evidence: Evidence, constant: Value) -> np.ndarray:
        """A weight that several layers share has the sum of its scores in each."""
        own = [c for c in evidence.contractions if c.weight is constant]
        everywhere = [c for c in evidence.contractions if not c.x.is_constant]
        places = [(c.x, c.axis) for c in everywhere]  # all at once, so that the network runs once
        found = dict(zip(places, evidence.moments(places), strict=True))
        values = self.norm(row_values(constant, evidence.direct.get(constant, []), slice(None)))
        factors = [_beside(self.factor(found[c.x, c.axis]).astype(np.float32), c, values.shape) for c in own]
        return values * sum(factors[1:], factors[0])


def _beside(factor: np.ndarray, contraction: Contraction, shape: tuple[int, ...]) -> np.ndarray:
    """What each position of the data counts, laid beside the weight."""
    axis, groups = contraction.weight_axis, len(factor) // shape[contraction.weight_axis]
    if groups == 1:
        return along(factor, axis, len(shape))
    rows = factor.reshape(groups, shape[axis]).repeat(shape[0] // groups, axis=0)  # outputs of a group read its inputs
    return rows.reshape(*rows.shape, *(1,) * (len(shape) - 2))


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
