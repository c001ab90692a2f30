"""Which operators a graph may hold: those of the ONNX standard, and those with a shape rule of ours."""

from __future__ import annotations

import onnx

from compiler.ir import Graph, SecateurError, subgraphs
from compiler.ir.shapes import SHAPE_RULES


def is_known(domain: str, op: str, opset: int) -> bool:
    """True when the operator's meaning is known: ONNX defines it, or a shape rule is registered for it."""
    if (domain, op) in SHAPE_RULES:
        return True
    if domain:
        return onnx.defs.has(op, domain=domain)
    try:
        onnx.defs.get_schema(op, opset, "")
    except onnx.defs.SchemaError:
        return False
    return True


def check_ops(graph: Graph) -> None:
    """Raise E_UNKNOWN_OP for the first node, bodies included, whose operator is not known."""
    for node in graph.nodes:
        if not is_known(node.domain, node.op, graph.opset):
            raise unknown_operator(node.name, node.domain, node.op, graph.opset)
        for body in subgraphs(node):
            check_ops(body)


def unknown_operator(node: str, domain: str, op: str, opset: int) -> SecateurError:
    """The error that names the node, its operator, its domain, and what to do."""
    if domain:
        message = f"operator {op!r} of domain {domain!r} is not known"
        hint = (
            "export the network with standard operators, or teach Secateur the operator: "
            f'@shape_rule("{op}", domain="{domain}") in compiler.ir'
        )
    else:
        message = f"operator {op!r} does not exist in ONNX opset {opset}"
        hint = "export the network again; if the operator is a custom one, give it a domain of its own"
    return SecateurError("E_UNKNOWN_OP", message, where=f"node {node!r}", hint=hint)
