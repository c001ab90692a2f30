"""ONNX Runtime's own operators that optimised transformers hold: fused activations and normalisations."""

from __future__ import annotations

from compiler.ir import Node
from compiler.ir.contrib import CONTRIB_DOMAIN, FUSED_ACTIVATIONS, FUSED_NORMALIZATIONS
from passes.coupling.rules.elementwise import broadcast
from passes.coupling.solver import Coupling, coupling_rule


@coupling_rule(*FUSED_ACTIVATIONS, domain=CONTRIB_DOMAIN)
def activation(c: Coupling, node: Node) -> None:
    """An activation of x, or of x plus a bias."""
    y = node.outputs[0]
    c.set(y, broadcast(c, node, [v for v in node.inputs if v is not None], y.rank or 0))


@coupling_rule(*FUSED_NORMALIZATIONS, domain=CONTRIB_DOMAIN)
def skip_normalization(c: Coupling, node: Node) -> None:
    """Normalises x plus skip over the last axis; scale and biases have one element a position of it."""
    x = node.inputs[0]
    assert x is not None
    rank = x.rank or 0
    for value in node.inputs[:2]:
        if value is not None:
            c.decondition(value, (value.rank or 1) - 1)
    layout = broadcast(c, node, [v for v in node.inputs if v is not None], rank)
    c.set(node.outputs[0], layout)
    for index, value in enumerate(node.outputs[1:], 1):
        c.set(value, layout if index == 3 else [*layout[:-1], None])
