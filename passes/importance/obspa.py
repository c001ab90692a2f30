"""OBSPA's score: what the outputs of a layer lose, at the least, when inputs go and all other weights make up for it.

"Structurally Prune Anything" (Wang et al., 2024, arXiv:2403.18955), after Optimal Brain Surgeon (Hassibi and Stork,
NeurIPS 1992): with H = x'x over calibration inputs, removing the inputs c of a layer costs tr(W_c' (H^-1_cc)^-1 W_c).
A channel of a convolution is the block of its kernel's positions. Summed over the layers that read a unit.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator

import numpy as np

from compiler.errors import SecateurWarning
from passes.calibration.evidence import Evidence
from passes.calibration.stepping import Stepper
from passes.importance.activations import along
from passes.importance.criterion import Criterion, Share, register_criterion
from passes.reconstruction.layers import Layer, layer_of
from passes.reconstruction.solve import Regression, chunks

DAMPING = 1.0
"""The ridge of the score, as a share of the mean of H's diagonal. Without it a unit costs nothing whose values follow
from the others' on the samples at hand, few as they are, or mere noise."""

_ROWS_PER_INPUT = 8
_MIN_ROWS = 8192


@register_criterion("obspa")
class Obspa(Criterion):
    """The second-order cost of losing a unit as an input, summed over the layers that read it."""

    needs = "samples"

    def shares(self, evidence: Evidence) -> Iterator[Share]:
        layouts = evidence.groups.layouts
        network = Stepper(evidence.graph, evidence.samples)
        rng = np.random.default_rng(self.seed)
        for done, node in enumerate(evidence.graph.nodes):
            evidence.progress("scoring", done, len(evidence.graph.nodes))
            layer = layer_of(node)
            labels = None if layer is None else (layouts.get(layer.x) or [None] * 8)[layer.axis]
            if layer is not None and labels is not None:
                x, y = network.before(node, layer.x), network.after(node)
                costs = _costs(layer, x, y, rng, centered=_takes_up_means(layer, evidence))
                yield labels, np.broadcast_to(along(costs, layer.axis, labels.ndim), labels.shape)


def _takes_up_means(layer: Layer, evidence: Evidence) -> bool:
    """True where a constant behind the layer makes up for a change of mean: a bias, or a BatchNormalization's mean."""
    readers = [node for node, _ in evidence.direct.get(layer.node.outputs[0], [])]
    return layer.bias is not None or (bool(readers) and all(node.op == "BatchNormalization" for node in readers))


def _costs(
    layer: Layer, x: list[np.ndarray], y: list[np.ndarray], rng: np.random.Generator, *, centered: bool
) -> np.ndarray:
    """The cost of each position of the data's axis, [channels]. x, y: the layer's data and results, batch by batch."""
    weights = layer.matrices()
    blocks, inputs, _ = weights.shape
    regression = Regression(blocks, inputs, 0, centered=centered)
    wanted = max(_MIN_ROWS, _ROWS_PER_INPUT * inputs) // len(x) + 1
    for data, result in zip(x, y, strict=True):
        count = layer.row_count(result)
        rows = np.arange(count) if count <= wanted else np.sort(rng.choice(count, wanted, replace=False))
        for part in chunks(rows, blocks * inputs):
            regression.add(layer.inputs(data, part))
    size = _kernel(layer)
    inverse = regression.inverse_blocks(size, DAMPING)
    if inverse is None:
        warnings.warn(
            f"{layer.node.describe()}: the second moments of its inputs have no Cholesky factor, damped as they may be "
            "(are its inputs finite?); it is scored by its weights alone",
            SecateurWarning,
            stacklevel=2,
        )
        inverse = np.broadcast_to(np.eye(size), (blocks, inputs // size, size, size))
    return _block_costs(inverse, weights).ravel()


def _kernel(layer: Layer) -> int:
    """How many inputs a channel is."""
    return math.prod(layer.weight.numpy().shape[2:]) if layer.node.op in ("Conv", "ConvTranspose") else 1


def _block_costs(inverse: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """tr(W_c' (H^-1_cc)^-1 W_c) for each run c of inputs, [blocks, runs]; inverse: [blocks, runs, size, size]."""
    parts = weights.reshape(*inverse.shape[:3], weights.shape[2])
    return np.einsum("bcio,bcio->bc", parts, np.linalg.solve(inverse, parts))
