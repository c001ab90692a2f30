"""What is done to a network before it is timed: nothing, magnitude pruning of weights, or structured pruning."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from compiler.ir import Graph, Node
from compiler.ir.cost import node_macs
from passes import Pipeline, Prune
from passes.sparsity import Sparsify

VARIANTS: dict[str, Pipeline] = {
    "0": Pipeline(()),
    "90": Pipeline((Sparsify(sparsity=0.9),)),
    "70": Pipeline((Sparsify(sparsity=0.7),)),
    "90-4x1": Pipeline((Sparsify(sparsity=0.9, pattern="4x1"),)),
    "half": Pipeline((Prune(ratio=0.5, round_to=8),)),
    **{f"{100 * share:g}": Pipeline((Sparsify(sparsity=share),)) for share in (0.5, 0.8, 0.95)},
    "2:4": Pipeline((Sparsify(pattern="2:4"),)),
}
"""By the name that options and tables know them by: per cent of weights that are zero, and the pattern. They are
measured in this order, those with a goal first."""


def weighted(graph: Graph) -> Iterator[tuple[Node, np.ndarray]]:
    """The layers that multiply by a constant, and their weight as it is stored."""
    for node in graph.nodes:
        weight = node.inputs[1] if node.op in ("Conv", "Gemm", "MatMul") else None
        if weight is not None and weight.data is not None:
            yield node, weight.data.numpy()


def nonzero_macs(graph: Graph) -> int:
    """Multiply-accumulates whose weight is not zero."""
    macs = sum(node_macs(node) for node in graph.nodes)
    return macs - sum(round(node_macs(node) * float(np.mean(w == 0))) for node, w in weighted(graph))
