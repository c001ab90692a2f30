"""GELU spelled out, as exporters of older opsets write it, becomes one `Gelu` node, which fuses like any activation.

x * 0.5 * (1 + erf(x / sqrt(2))), or with tanh(sqrt(2 / pi) * (x + 0.044715 * x**3)) for the erf; the factors in any
order, divisions or multiplications.
"""

from __future__ import annotations

import math

from compiler.ir.graph import Graph, Node, Value

_TOLERANCE = 2e-4
"""Relative error of a constant that is still the one meant: exporters round them, some to four digits."""


def recognise_gelu(graph: Graph) -> None:
    """Replace every GELU that is spelled out."""
    view = _View(graph)
    replaced: dict[Node, Node] = {}
    dropped: set[Node] = set()
    for node in graph.nodes:
        found = _gelu(view, node)
        if found is not None:
            x, nodes = found
            replaced[nodes[-1]] = _fused(x, nodes, "none" if node.op == "Erf" else "tanh")
            dropped.update(nodes[:-1])
    graph.nodes = [replaced.get(n, n) for n in graph.nodes if n not in dropped]


def _fused(x: Value, nodes: list[Node], approximate: str) -> Node:
    """Gelu in place of `nodes`. The value keeps its first producer."""
    last, node = nodes[-1], Node.__new__(Node)
    node.op, node.domain, node.name, node.origin = "Gelu", "", last.name, last.origin
    node.inputs, node.outputs = [x], list(last.outputs)
    node.attributes = {"approximate": approximate, "nodes": [n.name for n in nodes]}
    return node


class _View:
    """Who makes a value, and who alone reads it."""

    def __init__(self, graph: Graph) -> None:
        self._consumers = graph.consumers()
        self._producers = {v: n for n in graph.nodes for v in n.outputs}
        self._outputs = set(graph.outputs)

    def maker(self, value: Value | None, *ops: str) -> Node | None:
        """The node of one of `ops` that makes a value nobody else reads."""
        node = None if value is None else self._producers.get(value)
        if node is None or node.op not in ops or node.domain or self.reader(node) is None:
            return None
        return node

    def reader(self, node: Node, *ops: str) -> Node | None:
        """The only node, of one of `ops` (or any), that reads a node's result."""
        value = node.outputs[0]
        uses = self._consumers.get(value, [])
        if len({id(n) for n, _ in uses}) != 1 or value in self._outputs or uses[0][0].domain:
            return None
        return uses[0][0] if not ops or uses[0][0].op in ops else None


def _gelu(view: _View, node: Node) -> tuple[Value, list[Node]] | None:
    """The operand of the GELU around an Erf or Tanh, and all its nodes, the last one last."""
    if node.domain or node.op not in ("Erf", "Tanh") or str(node.outputs[0].dtype) not in ("float32", "float64"):
        return None
    inner = _erf_operand(view, node) if node.op == "Erf" else _tanh_operand(view, node)
    if inner is None:
        return None
    x, before = inner
    plus = view.reader(node, "Add")
    if plus is None or not _is(_other(plus, node.outputs[0]), 1.0):
        return None
    tail = _times_half_x(view, plus, x)
    return None if tail is None else (x, [*before, node, plus, *tail])


def _erf_operand(view: _View, node: Node) -> tuple[Value, list[Node]] | None:
    """x of erf(x / sqrt(2))."""
    scaled = view.maker(node.input(0), "Mul", "Div")
    x = None if scaled is None else _scaled(scaled, math.sqrt(0.5))
    return None if scaled is None or x is None else (x, [scaled])


def _tanh_operand(view: _View, node: Node) -> tuple[Value, list[Node]] | None:
    """x of tanh(sqrt(2 / pi) * (x + 0.044715 * x**3))."""
    outer = view.maker(node.input(0), "Mul", "Div")
    total = None if outer is None else view.maker(_scaled(outer, math.sqrt(2 / math.pi)), "Add")
    if outer is None or total is None:
        return None
    for x, term in (total.inputs, reversed(total.inputs)):
        small = view.maker(term, "Mul", "Div")
        cube = None if small is None else _scaled(small, 0.044715)
        nodes = None if cube is None or x is None else _cube(view, cube, x)
        if small is not None and nodes is not None and x is not None:
            return x, [*nodes, small, total, outer]
    return None


def _cube(view: _View, value: Value, x: Value) -> list[Node] | None:
    """The nodes that make x**3."""
    node = view.maker(value, "Pow", "Mul")
    if node is None:
        return None
    if node.op == "Pow":
        return [node] if node.inputs[0] is x and _is(node.input(1), 3.0) else None
    square = view.maker(_other(node, x), "Mul", "Pow") if x in node.inputs else None
    if square is None or square.inputs[0] is not x:
        return None
    squares = _is(square.input(1), 2.0) if square.op == "Pow" else square.inputs[1] is x
    return [square, node] if squares else None


def _times_half_x(view: _View, plus: Node, x: Value) -> list[Node] | None:
    """The nodes that multiply a result by x and by one half, in either order or by x / 2 made elsewhere."""
    first = view.reader(plus, "Mul", "Div")
    if first is None:
        return None
    factor = _other(first, plus.outputs[0]) if first.op == "Mul" else None
    half = view.maker(factor, "Mul", "Div")
    if half is not None and _scaled(half, 0.5) is x:
        return [half, first]
    second = view.reader(first, "Mul", "Div")
    if second is None:
        return None
    if factor is x and _scaled(second, 0.5) is first.outputs[0]:
        return [first, second]
    if _scaled(first, 0.5) is plus.outputs[0] and second.op == "Mul" and _other(second, first.outputs[0]) is x:
        return [first, second]
    return None


def _scaled(node: Node, factor: float) -> Value | None:
    """x of a node x * factor, factor * x, or x / (1 / factor)."""
    if node.op == "Div":
        return node.inputs[0] if _is(node.input(1), 1 / factor) else None
    for x, constant in (node.inputs, reversed(node.inputs)):
        if _is(constant, factor):
            return x
    return None


def _other(node: Node, value: Value) -> Value | None:
    """The operand of a binary node that is not `value`; None if both are."""
    a, b = node.inputs
    return (b if a is value else a) if a is not b else None


def _is(value: Value | None, number: float) -> bool:
    """Whether a value is the constant `number`, a scalar that broadcasts to any shape."""
    if value is None or value.data is None or value.data.size != 1 or len(value.data.shape) > 1:
        return False
    return math.isclose(float(value.numpy().reshape(())), number, rel_tol=_TOLERANCE)
