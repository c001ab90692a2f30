"""Reductions: the reduced axes vanish, and no other axis may be conditional on them."""

from __future__ import annotations

from compiler.ir import Node
from passes.coupling.solver import Coupling, coupling_rule


@coupling_rule(
    *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin"),
    *("ReduceProd", "ReduceSum", "ReduceSumSquare"),
)
def reduce(c: Coupling, node: Node) -> None:
    """Symmetric in the reduced positions, so those may move."""
    x, axes_value = node.inputs[0], node.input(1)
    assert x is not None
    rank = x.rank or 0
    if axes_value is not None and not axes_value.is_constant:
        c.refuse(node, f"{node.op} over axes that are computed at run time")
        return
    listed = [int(a) for a in axes_value.numpy().ravel()] if axes_value is not None else node.attribute("axes", [])
    if not listed and node.attribute("noop_with_empty_axes", 0):
        c.set(node.outputs[0], c.layout(x))
        return
    axes = sorted({a % rank for a in listed} if listed else set(range(rank)))
    for axis in axes:
        c.decondition(x, axis)
    layout = [None if a in axes else labels for a, labels in enumerate(c.layout(x))]
    if not node.attribute("keepdims", 1):
        kept = [labels for a, labels in enumerate(layout) if a not in axes]
        layout = [None if t is None else t.squeeze(tuple(axes)) for t in kept]
    c.set(node.outputs[0], layout)


@coupling_rule("Shape", "Size", "Range", "RandomNormal", "RandomUniform", "Constant")
def shapes(c: Coupling, node: Node) -> None:
    """Reads no data. Where its numbers go, `passes.coupling.counts` follows."""
