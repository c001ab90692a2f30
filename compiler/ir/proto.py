"""Graph to ONNX protobuf messages, shared by the exporter and by shape inference.

`model_proto(graph)` is a complete ModelProto; with `data_limit` set, larger constants appear as
typed inputs without data, which is all that shape inference needs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from compiler.ir.graph import Graph, Node, Value


def element_type(dtype: np.dtype | None) -> int:
    """The ONNX element type of a numpy dtype (strings are numpy objects); 0 when unknown."""
    if dtype is None:
        return onnx.TensorProto.UNDEFINED
    if dtype.kind in "OUS":
        return onnx.TensorProto.STRING
    return int(helper.np_dtype_to_tensor_dtype(dtype))


def value_info(value: Value) -> onnx.ValueInfoProto:
    """The type of a value as ONNX states it; an unknown rank leaves the shape out, an unknown dtype all of it."""
    if value.dtype is None:
        return onnx.ValueInfoProto(name=value.name)
    return helper.make_tensor_value_info(value.name, element_type(value.dtype), value.shape)


def tensor_proto(value: Value) -> onnx.TensorProto:
    """A constant as an ONNX tensor with its data inside."""
    return numpy_helper.from_array(np.ascontiguousarray(value.numpy()).reshape(value.data.shape), value.name)  # type: ignore[union-attr]


RUNTIME_STANDARD = frozenset(("SimplifiedLayerNormalization",))
"""Operators that ONNX Runtime puts into the standard domain, though ONNX lacks them; graphs have them in its own."""

RUNTIME_DOMAIN = "com.microsoft"


def own_domain(nodes: Iterable[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Move the runtime's operators from the standard domain to its own, which checkers want; returns those moved."""
    moved = [n for n in nodes if n.op_type in RUNTIME_STANDARD and n.domain == ""]
    for node in moved:
        node.domain = RUNTIME_DOMAIN
    return moved


def node_proto(node: Node) -> onnx.NodeProto:
    """One node as ONNX; bodies become subgraphs, whose constants the outermost graph holds."""
    proto = onnx.NodeProto(
        op_type=node.op,
        domain="" if (node.op in RUNTIME_STANDARD and node.domain == RUNTIME_DOMAIN) else node.domain,
        name=node.name,
        input=["" if v is None else v.name for v in node.inputs],
        output=[v.name for v in node.outputs],
    )
    proto.attribute.extend(_attribute(node, key, item) for key, item in node.attributes.items() if item is not None)
    return proto


def _attribute(node: Node, key: str, item: Any) -> onnx.AttributeProto:
    if isinstance(item, Graph):
        return helper.make_attribute(key, _body_proto(item, f"{node.name}/{key}"))
    if isinstance(item, np.ndarray):
        return helper.make_attribute(key, numpy_helper.from_array(item))
    if isinstance(item, list) and not item:
        return helper.make_attribute(key, item, attr_type=_declared_type(node, key))
    if isinstance(item, list) and any(isinstance(i, float) for i in item):
        item = [float(i) for i in item]
    return helper.make_attribute(key, item)


def _declared_type(node: Node, key: str) -> int:
    try:
        return onnx.defs.get_schema(node.op, domain=node.domain).attributes[key].type.value  # type: ignore[attr-defined]
    except (onnx.defs.SchemaError, KeyError):
        return int(onnx.AttributeProto.INTS)


def graph_proto(graph: Graph, data_limit: int | None = None) -> onnx.GraphProto:
    """The graph as ONNX. Constants of more than `data_limit` elements become inputs (None: all keep their data)."""
    inputs = [value_info(v) for v in graph.inputs]
    initializers = []
    for constant in graph.all_constants():
        assert constant.data is not None
        if data_limit is not None and constant.data.size > data_limit:
            inputs.append(value_info(constant))
        else:
            initializers.append(tensor_proto(constant))
    return _graph_proto(graph, inputs, initializers)


def _body_proto(body: Graph, prefix: str) -> onnx.GraphProto:
    """A body whose results are its own, as ONNX wants it; where the graph gives out another value, a copy is made."""
    made = {v for n in body.nodes for v in n.outputs}
    proto = _graph_proto(body, [value_info(v) for v in body.inputs], [])
    for index, value in enumerate(body.outputs):
        if value not in made or value in body.outputs[:index]:
            name = f"{prefix}/{index}/{value.name}"
            proto.node.append(helper.make_node("Identity", [value.name], [name], name=name))
            proto.output[index].name = name
    return proto


def _graph_proto(
    graph: Graph, inputs: list[onnx.ValueInfoProto], initializers: list[onnx.TensorProto]
) -> onnx.GraphProto:
    boundary = {*graph.inputs, *graph.outputs}
    known = [
        value_info(v)
        for n in graph.nodes
        for v in n.outputs
        if v.name and v not in boundary and v.dtype is not None and v.shape is not None
    ]
    return helper.make_graph(
        [node_proto(n) for n in graph.nodes],
        graph.name or "main",
        inputs,
        [value_info(v) for v in graph.outputs],
        initializers,
        value_info=known,
    )


def model_proto(graph: Graph, data_limit: int | None = None) -> onnx.ModelProto:
    """The graph as a whole ONNX model, without a timestamp: equal graphs give equal bytes."""
    used = {n.domain for n in graph.all_nodes()} - {""}
    opsets = [helper.make_opsetid("", graph.opset)]
    opsets += [helper.make_opsetid(d, graph.domains.get(d, 1)) for d in sorted(used)]
    model = helper.make_model(
        graph_proto(graph, data_limit),
        opset_imports=opsets,
        ir_version=max(10, int(helper.find_min_ir_version_for(opsets, ignore_unknown=True))),
        producer_name="secateur",
    )
    for key, text in sorted(graph.metadata.items()):
        model.metadata_props.add(key=key, value=text)
    return model
