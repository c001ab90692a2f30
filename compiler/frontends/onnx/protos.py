"""Walking ONNX messages: graphs, bodies, nodes, and what they define."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx


def bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The bodies that a node carries in its attributes."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and every body in it, outermost first."""
    yield graph
    for node in graph.node:
        for body in bodies(node):
            yield from graphs(body)


def all_nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node of the model: of its graph, of its local functions, of bodies."""
    yield from _nodes(model.graph.node)
    for function in model.functions:
        yield from _nodes(function.node)


def _nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for body in bodies(node):
            yield from _nodes(body.node)


def defined(graph: onnx.GraphProto) -> Iterator[str]:
    """The names that a graph defines itself: inputs, initializers, results."""
    yield from (i.name for i in graph.input)
    yield from (t.name for t in graph.initializer)
    yield from (s.values.name for s in graph.sparse_initializer)
    for node in graph.node:
        yield from node.output


def label(node: onnx.NodeProto) -> str:
    """How messages call the node: its name, or its first result's."""
    return node.name or next(iter(node.output), node.op_type)


def first_line(error: Exception) -> str:
    """The first line of an error's text that says something."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
