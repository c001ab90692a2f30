"""1x1 convolutions that only a depthwise one reads, as one node: the lowering decides what becomes of them."""

from __future__ import annotations

from backends.lowering.rules import INTERNAL
from compiler.ir.graph import Graph, Node

PAIR = "ConvDepthwise"
"""The internal operator; attributes first and second are the two nodes."""


def pair_depthwise(graph: Graph) -> None:
    """Join each such two nodes, at the place of the second."""
    consumers = graph.consumers()
    joined: dict[Node, Node] = {}
    for first in graph.nodes:
        uses = consumers.get(first.outputs[0], [])
        if not _is_pointwise(first) or len(uses) != 1 or first.outputs[0] in graph.outputs:
            continue
        second, index = uses[0]
        if index == 0 and _is_depthwise(second):
            joined[second] = first
    gone = set(joined.values())
    graph.nodes = [_joined(joined[n], n) if n in joined else n for n in graph.nodes if n not in gone]


def _is_pointwise(node: Node) -> bool:
    weight = node.input(1) if _is_convolution(node) else None
    if weight is None or not weight.is_constant:
        return False
    epilogue = node.attribute("epilogue")
    plain = node.attribute("group", 1) == 1 and (epilogue is None or not epilogue.residual)
    shape = weight.static_shape
    return plain and shape is not None and len(shape) == 4 and shape[2:] == (1, 1)


def _is_depthwise(node: Node) -> bool:
    weight = node.input(1) if _is_convolution(node) else None
    shape = None if weight is None or not weight.is_constant else weight.static_shape
    return shape is not None and len(shape) == 4 and shape[1] == 1 and node.attribute("group", 1) == shape[0]


def _is_convolution(node: Node) -> bool:
    return node.op == "Conv" and not node.domain


def _joined(first: Node, second: Node) -> Node:
    names = [n for node in (first, second) for n in node.attribute("nodes", [node.name])]
    inputs = [*first.inputs, *second.inputs[1:]]
    attributes = {"first": first, "second": second, "nodes": list(dict.fromkeys(names))}
    # Not through the constructor: the output keeps its first producer.
    node = Node.__new__(Node)
    node.op, node.domain, node.name, node.origin = PAIR, INTERNAL, second.name, second.origin
    node.inputs, node.outputs, node.attributes = inputs, list(second.outputs), attributes
    return node
