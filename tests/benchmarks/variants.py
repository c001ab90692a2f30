"""What is done to a network before it is timed: nothing, magnitude pruning of weights, or structured pruning."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from compiler.ir import Graph, Node
from compiler.ir.constant import ArrayConstant
from compiler.ir.cost import node_macs
from passes import Pipeline, Prune

Transform = Callable[[Graph], Graph]

_SMALL = 1024
"""Weights of fewer elements are left alone, as are depthwise convolutions and what reads the network's input."""


def unstructured(sparsity: float, rows: int = 1) -> Transform:
    """The smallest weights of each layer become zero, in blocks of so many output channels."""

    def transform(graph: Graph) -> Graph:
        return _prune(graph, lambda matrix: _magnitude(matrix, sparsity, rows))

    return transform


def two_of_four(graph: Graph) -> Graph:
    """Of every four consecutive weights of an output channel the two smaller ones become zero."""
    return _prune(graph, _two_of_four)


def half_the_macs(graph: Graph) -> Graph:
    """Structured pruning to half of the multiply-accumulates."""
    return Pipeline((Prune(ratio=0.5, round_to=8),))(graph)


VARIANTS: dict[str, Transform] = {
    "0": lambda graph: graph,
    "50": unstructured(0.5),
    "70": unstructured(0.7),
    "80": unstructured(0.8),
    "90": unstructured(0.9),
    "95": unstructured(0.95),
    "90-4x1": unstructured(0.9, rows=4),
    "2:4": two_of_four,
    "half": half_the_macs,
}
"""By the name that options and tables know them by: per cent of weights that are zero, and the pattern."""


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


def _prune(graph: Graph, prune: Callable[[np.ndarray], np.ndarray]) -> Graph:
    for node, weight in list(weighted(graph)):
        if weight.size < _SMALL or node.attribute("group", 1) > 1 or node.inputs[0] in graph.inputs:
            continue
        value = node.inputs[1]
        assert value is not None
        columns = node.op == "MatMul" or (node.op == "Gemm" and not node.attribute("transB", 0))
        matrix = weight.T if columns else weight.reshape(len(weight), -1)
        pruned = prune(np.ascontiguousarray(matrix))
        value.data = ArrayConstant(np.ascontiguousarray(pruned.T if columns else pruned.reshape(weight.shape)))
    return graph


def _magnitude(matrix: np.ndarray, sparsity: float, rows: int) -> np.ndarray:
    blocks = -(-len(matrix) // rows)
    padded = np.zeros((blocks * rows, matrix.shape[1]), np.float32)
    padded[: len(matrix)] = matrix
    score = np.abs(padded).reshape(blocks, rows, -1).sum(axis=1)
    count = round(sparsity * score.size)
    keep = np.ones(score.size, bool)
    keep[np.argpartition(score.ravel(), count)[:count] if count < score.size else slice(None)] = False
    return matrix * np.repeat(keep.reshape(score.shape), rows, axis=0)[: len(matrix)]


def _two_of_four(matrix: np.ndarray) -> np.ndarray:
    width = matrix.shape[1] // 4 * 4
    fours = matrix[:, :width].reshape(-1, 4)
    pruned = matrix.copy()
    order = np.argsort(np.abs(fours), axis=1)
    zeroed = fours.copy()
    np.put_along_axis(zeroed, order[:, :2], 0, axis=1)
    pruned[:, :width] = zeroed.reshape(len(matrix), -1)
    return pruned
