"""Give tensors of zeros (or any one number) that wait for a symbolic batch the extents that are known.

`ConstantOfShape(Shape(x))` takes its channels from x though they are numbers, which ties the two when channels are
pruned. As a constant that is expanded along the symbolic axes only, its channels are its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from compiler.ir import Graph, Node, Value, subgraphs
from compiler.ir.shape_values import ShapeValues
from passes.pipeline import register_pass
from passes.simplify.rewrite import Names, RewritePass

_MOST = 2**20
"""Constants of more elements are not made."""


@register_pass("fill_constants")
@dataclass(frozen=True)
class FillConstants(RewritePass):
    """Replace ConstantOfShape of a shape that is known in part by an Expand of a constant."""

    def rewrite(self, graph: Graph) -> int:
        return fill_constants(graph)


def fill_constants(graph: Graph) -> int:
    """Edit in place; returns the number of nodes replaced."""
    return _fill(graph, ShapeValues(), Names(graph))


def _fill(graph: Graph, shapes: ShapeValues, names: Names) -> int:
    nodes: list[Node] = []
    count = 0
    for node in graph.nodes:
        count += sum(_fill(body, shapes, names) for body in subgraphs(node))
        made = _expand(node, shapes, names)
        count += bool(made)
        nodes += made or [node]
        shapes.evaluate(node)
    graph.nodes = nodes
    return count


def _expand(node: Node, shapes: ShapeValues, names: Names) -> list[Node]:
    if node.op != "ConstantOfShape" or node.domain:
        return []
    target, y = node.inputs[0], node.outputs[0]
    known = shapes.of(target)
    if target is None or known is None:
        return []
    extents = [item if isinstance(item, int) else 1 for item in known.items]
    is_open = [not isinstance(item, int) for item in known.items]
    if not any(is_open) or not 1 < math.prod(extents) <= _MOST:
        return []
    fill = node.attribute("value")
    fill = np.zeros(1, np.float32) if fill is None else fill
    constant = Value(names.fresh(f"{y.name}_values"), data=np.broadcast_to(fill.reshape(()), extents))
    wanted = Value(names.fresh(f"{y.name}_target"), np.int64, (len(extents),))
    mask = Value(names.fresh(f"{y.name}_open"), data=np.array(is_open))
    ones = Value(names.fresh(f"{y.name}_ones"), data=np.ones(len(extents), np.int64))
    choose = Node("Where", [mask, target, ones], [wanted], name=wanted.name, origin=node.origin)
    return [choose, Node("Expand", [constant, wanted], [y], name=node.name, origin=node.origin)]
