"""Mending a pruning in closed form: each layer is solved again for what the original computed, from front to back.

After OBSPA in "Structurally Prune Anything" (Wang et al., 2024, arXiv:2403.18955), which follows "Optimal Brain
Compression" (Frantar and Alistarh, NeurIPS 2022, arXiv:2208.11580): the weights that stay solve the least-squares
problem |W x - W' x'|^2. Here x' are the inputs of the pruned and already mended network, so that errors do not add
up. Weights that are zero stay zero, and the ridge pulls towards the weights as they were. BatchNormalization then gets
the statistics with which its result has the mean and the variance that it had. Where it was folded into the layer
before it, the layer's weights and bias are scaled and shifted to the same end, as in "REPAIR" (Jordan et al., ICLR
2023, arXiv:2211.08403).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from compiler.errors import SecateurWarning
from compiler.ir import ArrayConstant, Graph, Node, SecateurError, Value
from passes.calibration.samples import Samples, Shortage, warn_of_drift, warn_of_rank
from passes.calibration.stepping import Stepper, moments
from passes.coupling.groups import Groups
from passes.coupling.transform import origins
from passes.reconstruction.folded import maybe_folded
from passes.reconstruction.layers import Layer, layer_of
from passes.reconstruction.solve import Regression, chunks

MENDS = ("none", "batchnorm", "layers")
"""What is mended: nothing; only the statistics of BatchNormalization, folded or not; or those and every layer."""

_ROWS_PER_INPUT = 24
"""Observations for each unknown; more add little."""
_MIN_ROWS = 16384

_MIN_OBSERVATIONS = 64
"""For the mean and variance of a folded BatchNormalization."""
_MAX_SCALE = 100.0
"""Channels that have lost more of their spread than this are shifted only: what is left is noise."""


@dataclass
class Mended:
    """What was mended: names of nodes, and for those that were left, why.

    errors: for each layer, by the name of its result, the norm of what its outputs differ by from the original's over
    the norm of those, on the inputs that it now has, with its weights as they were and as they are (where
    BatchNormalization follows, apart from their mean).
    """

    graph: Graph
    layers: list[str] = field(default_factory=list)
    normalizations: list[str] = field(default_factory=list)
    corrections: list[str] = field(default_factory=list)
    """Layers whose scale and bias stand for a BatchNormalization that was folded into them."""
    left: dict[str, str] = field(default_factory=dict)
    errors: dict[str, tuple[float, float]] = field(default_factory=dict)


Origin = Callable[[Value, int], "np.ndarray | None"]


def mend(
    pruned: Graph,
    groups: Groups,
    keep: np.ndarray,
    samples: Samples,
    how: str = "layers",
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Mended:
    """Mend `restrict(groups, keep)`, whose function should stay near that of the groups' graph on the samples.

    how: one of MENDS. Layers that may have had a BatchNormalization (`folded.maybe_folded`) are scaled and shifted as
    it would have been; that is decided by their place, for the file does not tell.
    Memory: the samples' activations between two layers, and one second-moment matrix of a layer.
    """
    if how not in MENDS:
        raise SecateurError("E_OPTION_VALUE", f"mend cannot be {how!r}", hint=f"one of: {', '.join(MENDS)}")
    graph = pruned.copy()
    result = Mended(graph)
    if how == "none":
        return result
    work = _Mending(groups, graph, samples, origins(groups, keep), result, np.random.default_rng(seed))
    solved = {n for n in graph.nodes if how == "layers" and layer_of(n) is not None}
    folded = set(maybe_folded(graph))
    nodes = [n for n in graph.nodes if n.op == "BatchNormalization" or n in solved or n in folded]
    for done, node in enumerate(nodes):
        progress(done, len(nodes))
        if node.op == "BatchNormalization":
            work.normalization(node)
        if node in solved:
            work.layer(node)
        if node in folded:
            work.correction(node)
    progress(len(nodes), len(nodes))
    warn_of_rank(work.short, work.layers)
    if not samples.noise:
        warn_of_drift(work.drifts)
    return result


class _Mending:
    """The original and the pruned network, run side by side."""

    def __init__(
        self, groups: Groups, graph: Graph, samples: Samples, origin: Origin, result: Mended, rng: np.random.Generator
    ) -> None:
        self._old = Stepper(groups.graph, samples)
        self._new = Stepper(graph, samples)
        self._twin = {node.outputs[0].name: node for node in groups.graph.nodes}
        self._uses = graph.consumers()
        self._origin = origin
        self._result = result
        self._samples = samples
        self.short: list[Shortage] = []
        self.layers = 0
        self.drifts: list[float] = []
        self._rng = rng

    def layer(self, node: Node) -> None:
        """Solve for the weights of one layer."""
        layer, old = layer_of(node), self._twin[node.outputs[0].name]
        assert layer is not None
        rows = self._origin(old.outputs[0], layer.axis)
        if len(self._uses[layer.weight]) > 1 or rows is None:
            self._result.left[node.name] = "its weights are shared" if rows is not None else "its outputs differ by row"
            return
        x, y = self._new.before(node, layer.x), self._old.after(old)
        start = layer.matrices()
        target = self._bias(layer)
        centered = target is not None or self._followed_by_normalization(node)
        regression = Regression(start.shape[0], start.shape[1], start.shape[2], centered=centered)
        share = self._share(layer, y, start)
        for inputs, outputs in zip(x, y, strict=True):
            picked = self._picked(layer.row_count(outputs), share)
            for part in chunks(picked, start.shape[0] * start.shape[1]):
                wanted = layer.outputs(outputs, part)[:, rows].astype(np.float64)
                if not centered and layer.bias is not None:
                    wanted = wanted - np.asarray(layer.bias.numpy(), np.float64)
                wanted = wanted.reshape(len(part), start.shape[0], -1).swapaxes(0, 1)
                regression.add(layer.inputs(inputs, part), wanted)
        self.layers += 1
        if regression.rows < start.shape[1]:
            count = len(self._samples)
            self.short.append(Shortage(node.describe(), count, regression.rows // count, start.shape[1]))
        solved = regression.solve(start, free=start != 0)
        if solved is None:
            self._leave(node, "the second moments of its inputs have no Cholesky factor, damped as they may be")
            return
        weights, constant = solved
        held = self._held(layer, target, centered)
        fitted = None if held is None else constant if target is not None else 0.0
        self._result.errors[node.outputs[0].name] = regression.error(start, held), regression.error(weights, fitted)
        layer.weight.data = ArrayConstant(layer.stored(weights))
        if target is not None:
            value, before = target
            like = value.numpy()
            value.data = ArrayConstant((before + constant.ravel()).reshape(like.shape).astype(like.dtype))
        self._result.layers.append(node.name)

    def _leave(self, node: Node, reason: str) -> None:
        """Leave as it is what cannot be mended on this data, and tell."""
        self._result.left[node.name] = reason
        warnings.warn(f"{node.describe()} is not mended: {reason}", SecateurWarning, stacklevel=4)

    def _share(self, layer: Layer, y: list[np.ndarray], start: np.ndarray) -> float:
        """The share of rows that is looked at."""
        total = sum(layer.row_count(a) for a in y)
        return min(1.0, max(_MIN_ROWS, _ROWS_PER_INPUT * start.shape[1]) / max(1, total))

    def _picked(self, count: int, share: float) -> np.ndarray:
        if share >= 1:
            return np.arange(count)
        return np.sort(self._rng.choice(count, max(1, round(count * share)), replace=False))

    def _bias(self, layer: Layer) -> tuple[Value, np.ndarray | float] | None:
        """The constant that takes up a change of mean, and what of it the layer's result does not hold."""
        if layer.bias is not None:
            return (layer.bias, 0.0) if len(self._uses[layer.bias]) == 1 else None
        readers = self._uses.get(layer.node.outputs[0], [])
        if layer.node.op != "MatMul" or len(readers) != 1 or readers[0][0].op != "Add":
            return None
        added = readers[0][0].inputs[1 - readers[0][1]]
        if added is None or not added.is_constant or len(self._uses[added]) > 1:
            return None
        if added.numpy().shape != layer.weight.numpy().shape[1:]:
            return None
        return added, np.asarray(added.numpy(), np.float64)

    def _held(
        self, layer: Layer, target: tuple[Value, np.ndarray | float] | None, centered: bool
    ) -> np.ndarray | float | None:
        """What a layer adds to its products, of what is fitted; None where normalization takes it off again."""
        if centered and target is None:
            return None
        if target is None or target[0] is not layer.bias:
            return 0.0
        return np.asarray(target[0].numpy(), np.float64).reshape(layer.blocks, -1)

    def _followed_by_normalization(self, node: Node) -> bool:
        readers = self._uses.get(node.outputs[0], [])
        return bool(readers) and all(reader.op == "BatchNormalization" for reader, _ in readers)

    def normalization(self, node: Node) -> None:
        """Give one BatchNormalization the mean and variance that leave its result's mean and variance alone."""
        old = self._twin[node.outputs[0].name]
        x, before = node.inputs[0], old.inputs[0]
        mean, variance = node.inputs[3], node.inputs[4]
        assert x is not None and before is not None and mean is not None and variance is not None
        rows = self._origin(before, 1)
        constant = mean.is_constant and variance.is_constant
        if rows is None or not constant or len(self._uses[mean]) > 1 or len(self._uses[variance]) > 1:
            self._result.left[node.name] = "its statistics are shared, or no constants"
            return
        was, is_now = moments(self._old.before(old, before)), moments(self._new.before(node, x))
        if not (np.isfinite(was).all() and np.isfinite(is_now).all()):
            self._leave(node, "its inputs are not finite")
            return
        m0, v0 = was[0][rows], was[1][rows]
        epsilon = float(node.attribute("epsilon", 1e-5))
        mu, spread = np.asarray(mean.numpy(), np.float64), np.asarray(variance.numpy(), np.float64) + epsilon
        self.drifts.append(float(np.median(np.abs(m0 - mu) / np.sqrt(spread))) if len(mu) else 0.0)
        ratio = np.where((v0 > 1e-12) & (is_now[1] > 1e-12), is_now[1] / np.maximum(v0, 1e-12), 1.0)
        shifted = is_now[0] - (m0 - mu) * np.sqrt(ratio)
        mean.data = ArrayConstant(shifted.astype(mean.numpy().dtype))
        variance.data = ArrayConstant(np.maximum(spread * ratio - epsilon, 0).astype(variance.numpy().dtype))
        self._result.normalizations.append(node.name)

    def correction(self, node: Node) -> None:
        """Scale and shift one layer's results to the mean and the variance that each channel had."""
        layer, old = layer_of(node), self._twin[node.outputs[0].name]
        assert layer is not None and layer.bias is not None
        rows = self._origin(old.outputs[0], layer.axis)
        if rows is None or len(self._uses[layer.weight]) > 1 or len(self._uses[layer.bias]) > 1:
            self._result.left[node.name] = "its weights are shared" if rows is not None else "its outputs differ by row"
            return
        y = self._new.after(node)
        before = self._old.after(old)
        was, is_now = moments(before), moments(y)
        if sum(layer.row_count(a) for a in y) < _MIN_OBSERVATIONS:
            self._result.left[node.name] = "there are too few samples to tell its spread"
            return
        if not (np.isfinite(was).all() and np.isfinite(is_now).all()):
            self._leave(node, "its results are not finite")
            return
        m0, v0 = was[0][rows], was[1][rows]
        m1, v1 = is_now
        safe = (v0 > 1e-12) & (v1 > 1e-12) & (v0 <= v1 * _MAX_SCALE**2)
        scale = np.sqrt(np.where(safe, v0, 1.0) / np.where(safe, v1, 1.0))
        shift = m0 - scale * m1
        weights = layer.matrices() * scale.reshape(layer.blocks, 1, -1)
        layer.weight.data = ArrayConstant(layer.stored(weights))
        bias = layer.bias.numpy()
        layer.bias.data = ArrayConstant(
            (bias * scale.reshape(bias.shape) + shift.reshape(bias.shape)).astype(bias.dtype)
        )
        broad = [-1 if a == layer.axis else 1 for a in range(y[0].ndim)]
        corrected = [(a * scale.reshape(broad) + shift.reshape(broad)).astype(a.dtype) for a in y]
        self._new.replace(node.outputs[0], corrected)
        self._result.corrections.append(node.name)
        if (name := node.outputs[0].name) in self._result.errors:
            error = _difference(corrected, [a.take(rows, layer.axis) for a in before])
            self._result.errors[name] = self._result.errors[name][0], error


def _difference(batches: list[np.ndarray], wanted: list[np.ndarray]) -> float:
    """|a - b| / |b| over all batches."""
    gap = sum(float(np.square(a - b, dtype=np.float64).sum()) for a, b in zip(batches, wanted, strict=True))
    norm = sum(float(np.square(b, dtype=np.float64).sum()) for b in wanted)
    return float(np.sqrt(gap / norm)) if norm > 0 else 0.0
