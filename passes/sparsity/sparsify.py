"""Sparsity: set the least important weights to zero, anywhere, in blocks or N of M, for kernels that skip zeros.

Magnitude pruning as in Han et al., "Learning both Weights and Connections for Efficient Neural Networks" (NeurIPS 2015,
arXiv:1506.02626); N:M as in Mishra et al., "Accelerating Sparse Deep Neural Networks" (2021, arXiv:2104.08378). The
graph stays as it is, and so do the shapes of its weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import numpy as np

from compiler.ir import ArrayConstant, Constant, Graph, MaskedConstant, SecateurError, Value
from passes.calibration import Evidence, Samples
from passes.calibration.losses import check_loss
from passes.calibration.samples import LABELS
from passes.coupling.groups import Groups
from passes.importance import Criterion, available_criteria, criterion, criterion_samples
from passes.pipeline import Context, Pass, register_pass
from passes.reconstruction import MENDS, Mended, mend
from passes.sparsity.distribution import DISTRIBUTIONS, erk_zeros, global_zeros, uniform_zeros
from passes.sparsity.patterns import NM, parse_pattern
from passes.sparsity.report import SparsifyReport, WeightChange
from passes.sparsity.scores import Scores
from passes.sparsity.spared import Spared
from passes.sparsity.weights import Weight, weights

DEFAULT_SPARSITY = 0.5


@register_pass("sparsify")
@dataclass(frozen=True)
class Sparsify(Pass):
    """Set a share of the weights of convolutions and matrix products to zero.

    pattern: `unstructured`; `RxC`, blocks of R output channels by C input channels at one tap of a kernel; or `N:M`, at
    most N nonzeros in each M consecutive input channels (`N:M@out`: output channels) at one tap. The last block or run
    is smaller where channels are no multiple of it; none crosses the groups of a convolution. sparsity: the share of
    zeros among the weights that are eligible, in (0, 1), 0.5 unless told; N:M has its own. distribution: the same share
    of each layer (uniform), by its shape (erk), or the lowest scores of all layers, of blocks by their mean (global).
    No layer becomes wholly zero. criterion: what scores a weight, l1 being its magnitude; blocks add up. Zeros that are
    there stay, and count, with blocks where they fill one.

    Spared: weights that are not floating-point, that are read in ways which do not agree, and what these options say.
    keep_first, keep_last: layers that no other comes before (after). depthwise: take depthwise convolutions too, their
    channels as outputs of one input. min_size: smallest number of weights. ignore, only: patterns (shell style) of
    weights, nodes or operators to spare, or to restrict it to. calibration, samples, labels, loss, loss_output, seed:
    as for `prune`. mend: none; batchnorm: BatchNormalization gets statistics that leave the mean and variance of its
    results alone on the calibration data, where it was folded the layer's weights and bias are scaled; or layers: that,
    and every layer's weights that stay are solved for again in closed form (`passes.reconstruction.mend`). What is zero
    stays zero.
    """

    sparsity: float | None = None
    pattern: str = "unstructured"
    distribution: str = "uniform"
    criterion: str = "l1"
    keep_first: bool = True
    keep_last: bool = False
    depthwise: bool = False
    min_size: int = 1024
    ignore: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    calibration: Any = field(default=None, compare=False)
    samples: int = 512
    labels: str = LABELS
    loss: Any = "cross_entropy"
    loss_output: str | None = None
    mend: str = "none"
    seed: int = 0
    changes_function: ClassVar[bool] = True

    def __post_init__(self) -> None:
        pattern = parse_pattern(self.pattern)
        self.one_of("distribution", DISTRIBUTIONS)
        self.one_of("mend", MENDS)
        check_loss(self.loss)
        given = self.sparsity
        if given is not None and not (isinstance(given, int | float) and math.isfinite(given) and 0 < given < 1):
            raise _wrong_sparsity(f"the sparsity must be more than 0 and less than 1, not {given}")
        if isinstance(pattern, NM):
            if given is not None and abs(given - pattern.sparsity) > 5e-3:
                raise _wrong_sparsity(
                    f"{pattern} makes {pattern.sparsity:.4g} of the weights zero, which contradicts sparsity={given}",
                    "leave the sparsity out with N:M, or choose another N:M",
                )
            if self.distribution != "uniform":
                raise SecateurError(
                    "E_OPTION_VALUE",
                    f"{pattern} gives every layer the same sparsity, so distribution cannot be {self.distribution!r}",
                    where="sparsify(distribution=…)",
                    hint="leave the distribution out with N:M",
                )
        for name in ("min_size", "samples"):
            if getattr(self, name) < 1:
                raise SecateurError("E_OPTION_VALUE", f"{name} must be at least 1", where=f"sparsify({name}=…)")

    @property
    def wanted(self) -> float:
        """The share of zeros that is asked for."""
        pattern = parse_pattern(self.pattern)
        if isinstance(pattern, NM):
            return pattern.sparsity
        return DEFAULT_SPARSITY if self.sparsity is None else self.sparsity

    def run(self, graph: Graph, context: Context) -> Graph:
        pattern = parse_pattern(self.pattern)
        chosen = self._criterion()
        samples = criterion_samples(
            graph, chosen, self.calibration, limit=self.samples, labels=self.labels, mend=self.mend
        )
        found = weights(graph)
        spare = Spared(graph, found, pattern, self)
        evidence = Evidence(graph, samples, self.loss, loss_output=self.loss_output, progress=context.progress)
        context.progress("scoring", 0, 1)
        chosen.prepare(evidence)
        scores = Scores(chosen, evidence, pattern)
        before = {w: w.zeros() for w in found}
        reasons = {w: spare.reason(w, before[w], scores) for w in found}
        eligible = [w for w in found if not reasons[w]]
        if not eligible:
            raise spare.nothing(reasons)
        result = graph.copy()
        twin = dict(zip(graph.all_constants(), result.all_constants(), strict=True))
        after = dict(before)
        for done, (weight, zeros) in enumerate(zip(eligible, self._zeros(scores, eligible), strict=True)):
            context.progress("choosing", done, len(eligible))
            stays = scores.mask(weight, zeros)
            after[weight] = weight.size - int(np.count_nonzero(stays))
            twin[weight.value].data = _without(weight.value, stays)
        mended = self._mended(graph, result, samples, context)
        changes = tuple(WeightChange.of(w, (before[w], after[w]), reasons[w]) for w in found)
        sparse = result if mended is None else mended.graph
        context.report(self.name, SparsifyReport(str(pattern), self.wanted, changes, graph, result, mended))
        return sparse

    def _criterion(self) -> Criterion:
        chosen = criterion(self.criterion, self.seed)
        if not chosen.scores_weights:
            able = [n for n, c in available_criteria().items() if isinstance(c, type) and c.scores_weights]
            raise SecateurError(
                "E_CRITERION",
                f"criterion {self.criterion!r} scores whole channels, and no single weights",
                where="sparsify(criterion=…)",
                hint=f"those that score weights: {', '.join(able)}",
            )
        return chosen

    def _zeros(self, scores: Scores, eligible: list[Weight]) -> list[int]:
        """How many weights each of the eligible is to lose; N:M does not ask."""
        sizes = [w.size for w in eligible]
        if self.distribution == "erk":
            return erk_zeros([w.shape for w in eligible], self.wanted)
        if self.distribution == "global":
            return global_zeros(partial(scores.ranked, eligible), round(self.wanted * sum(sizes)))
        return uniform_zeros(sizes, self.wanted)

    def _mended(self, graph: Graph, result: Graph, samples: Samples | None, context: Context) -> Mended | None:
        if self.mend == "none":
            return None
        assert samples is not None
        whole = Groups(graph, (), {}, 0, ())  # no unit is gone
        progress = partial(context.progress, "reconstructing")
        return mend(result, whole, np.ones(0, bool), samples, self.mend, seed=self.seed, progress=progress)


def _without(value: Value, stays: np.ndarray) -> Constant:
    """A constant with zeros where `stays` is off; what is read from a file stays there."""
    assert value.data is not None
    masked = MaskedConstant(value.data, stays)
    return masked if masked.sources() else ArrayConstant(masked.numpy())


def _wrong_sparsity(message: str, hint: str = "sparsity=0.9 sets nine of ten weights to zero") -> SecateurError:
    return SecateurError("E_SPARSITY", message, where="sparsify(sparsity=…)", hint=hint)
