"""Operators with bodies: fixed at the boundary, free inside.

How often a body runs is not known, and a Loop's results are its operands again, so nothing moves that crosses
the boundary. What lies between, the hidden units of an MLP inside a branch, moves as in any network; a weight of
the outer graph that bodies capture is one constant, whoever reads it.
"""

from __future__ import annotations

from compiler.ir import Node, subgraphs
from passes.coupling.solver import Coupling, coupling_rule


@coupling_rule("If", "Loop", "Scan", "SequenceMap")
def control_flow(c: Coupling, node: Node) -> None:
    """Pin the operands, and solve each body."""
    for value in (v for v in node.inputs if v is not None):
        c.fix(value, node, f"{node.op} gives this to a body, or decides by it")
    for body in subgraphs(node):
        c.enter(body, node)
