"""The readable text form of a Graph, which golden tests and `secateur inspect` show.

One line a node: results with their types, operator, operands, attributes. Constants are `@name`,
other values `%name`; small constants show their data.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from compiler.ir.graph import Graph, Node, Value

_INLINE_ELEMENTS = 8


def format_type(value: Value) -> str:
    """`float32[1,3,224,224]`; symbolic extents by name, unknown ones as `?`, unknown rank as `[*]`."""
    dtype = "?" if value.dtype is None else value.dtype.name
    if value.shape is None:
        return f"{dtype}[*]"
    return f"{dtype}[{','.join('?' if d is None else str(d) for d in value.shape)}]"


def format_graph(graph: Graph, indent: str = "") -> str:
    """The whole graph; deterministic, so that two equal graphs print the same."""
    lines = [f"{indent}graph {graph.name or 'main'} (opset {graph.opset})"]
    lines += [f"{indent}  input  %{v.name} : {format_type(v)}" for v in graph.inputs]
    lines += [f"{indent}  const  @{c.name} : {format_type(c)}{_inline_data(c)}" for c in graph.constants()]
    for node in graph.nodes:
        lines.append(f"{indent}  {_format_node(node)}")
        for key, item in node.attributes.items():
            if isinstance(item, Graph):
                lines.append(f"{indent}    {key}:")
                lines.append(format_graph(item, indent + "      ").rstrip("\n"))
    lines += [f"{indent}  output {_reference(v)} : {format_type(v)}" for v in graph.outputs]
    return "\n".join(lines) + "\n"


def _format_node(node: Node) -> str:
    results = ", ".join(f"%{v.name} : {format_type(v)}" for v in node.outputs)
    operands = ", ".join("-" if v is None else _reference(v) for v in node.inputs)
    shown = {k: a for k, a in node.attributes.items() if not isinstance(a, Graph)}
    attributes = (
        " {" + ", ".join(f"{k}={_format_attribute(a)}" for k, a in sorted(shown.items())) + "}" if shown else ""
    )
    return f"{results} = {node.qualified_op}({operands}){attributes}"


def _reference(value: Value) -> str:
    return ("@" if value.is_constant else "%") + value.name


def _format_attribute(item: Any) -> str:
    if isinstance(item, float):
        return f"{item:g}"
    if isinstance(item, list):
        return "[" + ",".join(_format_attribute(i) for i in item) + "]"
    if isinstance(item, np.ndarray):
        return f"tensor({item.dtype.name}{list(item.shape)})"
    return str(item)


def _inline_data(constant: Value) -> str:
    data = constant.data
    if data is None or data.size > _INLINE_ELEMENTS or data.dtype.kind not in "iub":
        return ""
    return " = " + str(constant.numpy().tolist()).replace(" ", "")
