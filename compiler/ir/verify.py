"""The verifier: what must hold of every Graph between passes."""

from __future__ import annotations

from collections.abc import Callable

import onnx

from compiler.errors import SecateurError
from compiler.ir.graph import Graph, Node, Value, subgraphs

Fail = Callable[[str, str], SecateurError]


def verify(graph: Graph, *, where: str = "") -> None:
    """Raise SecateurError `E_IR` with the first rule that `graph` breaks.

    Rules: each value has one definition and a unique non-empty name (constants among those of all bodies, since in
    a file the outermost graph holds them); every use comes after its definition; producers are consistent; constants
    agree with their recorded type; standard operators exist at the graph's opset with a legal number of operands.
    """
    _verify(graph, set(), {}, {}, where)


def _verify(graph: Graph, outer: set[Value], names: dict[str, Value], constants: dict[str, Value], where: str) -> None:
    def fail(message: str, place: str) -> SecateurError:
        return SecateurError(
            "E_IR",
            message,
            where=f"{where}: {place}" if where else place,
            hint="this is a defect of the pass or frontend that made the graph; please report it with the model",
        )

    defined = set(outer)
    names = dict(names)

    def name(value: Value) -> None:
        if not value.name:
            raise fail("a value has no name", repr(value))
        known = constants if value.is_constant else names
        if any(scope.get(value.name, value) is not value for scope in (names, constants)):
            raise fail(f"two values are called {value.name!r}", value.name)
        known[value.name] = value

    for value in graph.inputs:
        if value.is_constant or value.producer is not None:
            raise fail(f"graph input {value.name!r} has a definition", value.name)
        if value in defined:
            raise fail(f"graph input {value.name!r} is listed twice", value.name)
        name(value)
        defined.add(value)
    for node in graph.nodes:
        for value in (v for v in node.inputs if v is not None):
            if value.is_constant:
                name(value)
                _verify_constant(value, fail)
            elif value not in defined:
                raise fail(f"{node.describe()} reads {value.name!r} before it is defined", node.name)
        for body in subgraphs(node):
            _verify(body, defined, names, constants, where)
        for value in node.outputs:
            if value.producer is not node or value in defined or value.is_constant:
                raise fail(f"value {value.name!r} has more than one definition", node.name)
            name(value)
            defined.add(value)
        _verify_schema(node, graph.opset, fail)
    for value in graph.outputs:
        if not value.is_constant and value not in defined:
            raise fail(f"graph output {value.name!r} is never defined", value.name)


def _verify_constant(value: Value, fail: Fail) -> None:
    assert value.data is not None
    if value.shape != value.data.shape or value.dtype != value.data.dtype:
        raise fail(f"constant {value.name!r} is recorded as {value.dtype}{value.shape}", value.name)


def _verify_schema(node: Node, opset: int, fail: Fail) -> None:
    if node.domain:
        return
    try:
        schema = onnx.defs.get_schema(node.op, opset)
    except onnx.defs.SchemaError:
        raise fail(f"operator {node.op} does not exist in ONNX opset {opset}", node.name) from None
    if not schema.min_input <= len(node.inputs) <= schema.max_input:
        raise fail(f"{node.describe()} has {len(node.inputs)} operands", node.name)
    if len(node.outputs) > schema.max_output:
        raise fail(f"{node.describe()} has {len(node.outputs)} results", node.name)
    unknown = set(node.attributes) - set(schema.attributes)
    if unknown:
        raise fail(f"{node.describe()} has no attribute {sorted(unknown)[0]!r}", node.name)
