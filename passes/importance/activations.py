"""What the data says of a unit: how large, how varied and how often active the inputs are that it feeds.

All look at the data operand of every sum of products (convolutions, matrix products), position by position.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

import numpy as np

from passes.calibration.evidence import Contraction, Evidence, Moments
from passes.importance.criterion import Criterion, Share, register_criterion
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
            yield labels, np.broadcast_to(_along(scores, contraction.axis, labels.ndim), labels.shape)

    def _labels(self, evidence: Evidence, contraction: Contraction) -> np.ndarray | None:
        layout = evidence.groups.layouts.get(contraction.x)
        return None if layout is None else layout[contraction.axis]

    @abstractmethod
    def positions(self, moments: Moments, evidence: Evidence, contraction: Contraction) -> np.ndarray:
        """The score of each position of the axis."""


@register_criterion("wanda")
class Wanda(ActivationCriterion):
    """Sum over weights of |w_ij| times the norm of input j.

    Sun et al., "A Simple and Effective Pruning Approach for Large Language Models" (ICLR 2024, arXiv:2306.11695).
    """

    def positions(self, moments: Moments, evidence: Evidence, contraction: Contraction) -> np.ndarray:
        return np.sqrt(moments.square * moments.count) * _columns(np.abs, evidence, contraction)


@register_criterion("flap")
class Fluctuation(ActivationCriterion):
    """Sum over weights of w_ij^2 times the variance of input j: what replacing the input by its mean would cost.

    An et al., "Fluctuation-based Adaptive Structured Pruning for Large Language Models" (AAAI 2024, arXiv:2312.11983).
    """

    def positions(self, moments: Moments, evidence: Evidence, contraction: Contraction) -> np.ndarray:
        return moments.variance * _columns(np.square, evidence, contraction)


@register_criterion("activation_mean")
class ActivationMean(ActivationCriterion):
    """Absolute mean of the input.

    Molchanov et al., "Pruning Convolutional Neural Networks for Resource Efficient Inference" (ICLR 2017,
    arXiv:1611.06440), section 2.2.
    """

    def positions(self, moments: Moments, evidence: Evidence, contraction: Contraction) -> np.ndarray:
        return np.abs(moments.mean)


@register_criterion("activation_variance")
class ActivationVariance(ActivationCriterion):
    """Standard deviation of the input; the same source."""

    def positions(self, moments: Moments, evidence: Evidence, contraction: Contraction) -> np.ndarray:
        return np.sqrt(moments.variance)


@register_criterion("apoz")
class Apoz(ActivationCriterion):
    """One minus the average percentage of zeros.

    Hu et al., "Network Trimming: A Data-Driven Neuron Pruning Approach towards Efficient Deep Architectures"
    (2016, arXiv:1607.03250).
    """

    def positions(self, moments: Moments, evidence: Evidence, contraction: Contraction) -> np.ndarray:
        return moments.nonzero


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


def _columns(norm: np.ufunc, evidence: Evidence, contraction: Contraction) -> np.ndarray:
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


def _along(scores: np.ndarray, axis: int, rank: int) -> np.ndarray:
    return scores.reshape([-1 if a == axis else 1 for a in range(rank)])
