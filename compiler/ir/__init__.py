"""The intermediate representation: the ground that every other package stands on."""

import compiler.ir.contrib  # noqa: F401  (registers its shape rules)
from compiler.errors import CheckFailed, SecateurError
from compiler.ir.constant import ArrayConstant, Constant, MappedConstant, MaskedConstant, Selection
from compiler.ir.cost import Cost, cost_rule, graph_cost, node_cost, node_macs
from compiler.ir.graph import MIN_OPSET, Dim, Graph, Node, Origin, Value, subgraphs
from compiler.ir.shapes import infer_shapes, shape_rule
from compiler.ir.text import format_graph, format_type
from compiler.ir.verify import verify

__all__ = [
    "MIN_OPSET",
    "ArrayConstant",
    "CheckFailed",
    "Constant",
    "Cost",
    "Dim",
    "Graph",
    "MappedConstant",
    "MaskedConstant",
    "Node",
    "Origin",
    "SecateurError",
    "Selection",
    "Value",
    "cost_rule",
    "format_graph",
    "format_type",
    "graph_cost",
    "infer_shapes",
    "node_cost",
    "node_macs",
    "shape_rule",
    "subgraphs",
    "verify",
]
