"""Which operators a constant reaches, directly or by way of operators that only lay it out anew."""

from __future__ import annotations

from compiler.ir import Graph, Node, Value

VIEWS = frozenset(
    (
        *("Cast", "CastLike", "DequantizeLinear", "Expand", "Flatten", "Identity", "Reshape", "Squeeze"),
        *("Transpose", "Unsqueeze"),
    )
)
"""Operators whose result holds the elements of their first operand, arranged or stored in another way."""

Use = tuple[Node, int]
"""A node and which of its operands is meant."""


def readers(graph: Graph) -> dict[Value, list[Use]]:
    """For each constant, the (node, operand) pairs that read it or a view of it, the views themselves included.

    Readers inside bodies count.
    """
    constant_of: dict[Value, Value] = {}
    uses: dict[Value, list[Use]] = {}
    for node in graph.all_nodes():
        for index, value in enumerate(node.inputs):
            if value is None:
                continue
            constant = value if value.is_constant else constant_of.get(value)
            if constant is None:
                continue
            uses.setdefault(constant, []).append((node, index))
            if index == 0 and node.op in VIEWS and not node.domain:
                constant_of[node.outputs[0]] = constant
    return uses
