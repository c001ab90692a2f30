"""What the shape rules of ONNX Runtime's operators share: the domain, and inference through a standard operator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from compiler.ir.graph import Dim, Node, Value
from compiler.ir.proto import RUNTIME_DOMAIN
from compiler.ir.shapes import ShapeRule, shape_rule

CONTRIB_DOMAIN = RUNTIME_DOMAIN

Shape = tuple[Dim, ...] | None
Type = tuple[np.dtype | None, Shape]

FLOAT = np.dtype(np.float32)

_OPSET = 21
_SMALL = 1024


def contrib_shape(*ops: str) -> Callable[[ShapeRule], ShapeRule]:
    """Register the shape rule of several operators of the domain."""

    def register(rule: ShapeRule) -> ShapeRule:
        for op in ops:
            shape_rule(op, CONTRIB_DOMAIN)(rule)
        return rule

    return register


def operand(node: Node, index: int) -> Value:
    """An operand that the operator's schema requires."""
    value = node.input(index)
    assert value is not None
    return value


def dtype_of(value: Value | None, default: np.dtype | None = None) -> np.dtype | None:
    """The element type of an operand that may be omitted."""
    return default if value is None else value.dtype


def padded(node: Node, *types: Type) -> list[Type]:
    """As many types as the node has results."""
    return [*types, *[(None, None)] * len(node.outputs)][: len(node.outputs)]


def extent(value: Value | None, axis: int) -> Dim:
    """One extent of an operand; None where it is not known."""
    return None if value is None or value.shape is None else value.shape[axis]


def total(*dims: Dim) -> Dim:
    """The sum of extents where all are numbers."""
    numbers = [d for d in dims if isinstance(d, int)]
    return sum(numbers) if len(numbers) == len(dims) else None


def like_standard(op: str, shapes: Sequence[Shape | Value], attributes: dict[str, Any]) -> Shape:
    """The shape of the first result of a standard operator on operands of these shapes.

    Attributes that the standard operator lacks are left out. A Value stands for a small constant whose data counts.
    """
    schema = onnx.defs.get_schema(op, _OPSET)
    names = [f"x{i}" for i in range(len(shapes))]
    types: dict[str, onnx.TypeProto] = {}
    data: dict[str, onnx.TensorProto] = {}
    for name, held in zip(names, shapes, strict=True):
        shape = held.shape if isinstance(held, Value) else held
        constant = isinstance(held, Value) and held.data is not None and held.data.size <= _SMALL
        kind = onnx.TensorProto.INT64 if constant else onnx.TensorProto.FLOAT
        types[name] = helper.make_tensor_type_proto(kind, shape)
        if constant:
            assert isinstance(held, Value)
            data[name] = numpy_helper.from_array(held.numpy().astype(np.int64), name)
    known = {k: v for k, v in attributes.items() if k in schema.attributes and v is not None}
    node = helper.make_node(op, names, ["y"], **known)
    found = onnx.shape_inference.infer_node_outputs(schema, node, types, data).get("y")
    if found is None or not found.tensor_type.HasField("shape"):
        return None
    dims = found.tensor_type.shape.dim
    return tuple(int(d.dim_value) if d.HasField("dim_value") else (d.dim_param or None) for d in dims)
