"""Shapes and costs of operators on integers, and of weights stored in blocks of few bits."""

from __future__ import annotations

import math

import numpy as np

from compiler.ir.contrib.domain import (
    CONTRIB_DOMAIN,
    FLOAT,
    Shape,
    Type,
    contrib_shape,
    dtype_of,
    like_standard,
    operand,
    padded,
    total,
)
from compiler.ir.cost import Shape as Extents
from compiler.ir.cost import cost_rule
from compiler.ir.graph import Node

UINT8 = np.dtype(np.uint8)

BLOCK_PRODUCTS = ("MatMulNBits", "MatMulBnb4")
"""Products by a weight that is stored in blocks; the attributes K and N are its rows and columns."""


@contrib_shape("QuantizeLinear")
def _quantize(node: Node) -> list[Type]:
    return [(dtype_of(node.input(2), UINT8), operand(node, 0).shape)]


@contrib_shape("DequantizeLinear")
def _dequantize(node: Node) -> list[Type]:
    return [(operand(node, 1).dtype, operand(node, 0).shape)]


@contrib_shape("QLinearLeakyRelu", "QLinearSigmoid", "QLinearSoftmax")
def _unary(node: Node) -> list[Type]:
    x = operand(node, 0)
    return [(x.dtype, x.shape)]


@contrib_shape("QLinearAdd", "QLinearMul")
def _binary(node: Node) -> list[Type]:
    a, b = operand(node, 0), operand(node, 3)
    return [(a.dtype, _broadcast(a.shape, b.shape))]


@contrib_shape("QLinearWhere")
def _where(node: Node) -> list[Type]:
    condition, x, y = (operand(node, i) for i in (0, 1, 4))
    return [(x.dtype, _broadcast(condition.shape, _broadcast(x.shape, y.shape)))]


def _broadcast(a: Shape, b: Shape) -> Shape:
    return None if a is None or b is None else like_standard("Add", [a, b], {})


@contrib_shape("QLinearConcat")
def _concat(node: Node) -> list[Type]:
    shapes = [operand(node, i).shape for i in range(2, len(node.inputs), 3)]
    known = None not in shapes
    return [(operand(node, 1).dtype, like_standard("Concat", shapes, node.attributes) if known else None)]


def channels_first(shape: Shape) -> Shape:
    """[batch, channels, space...] of a shape that has its channels last."""
    return None if shape is None else (shape[0], shape[-1], *shape[1:-1])


def _channels_last(shape: Shape) -> Shape:
    return None if shape is None else (shape[0], *shape[2:], shape[1])


@contrib_shape("QLinearAveragePool", "QLinearGlobalAveragePool", "QLinearConv", "NhwcMaxPool")
def _spatial(node: Node) -> list[Type]:
    """The shape of the standard operator, on channels that may come last."""
    x = operand(node, 0)
    last = bool(node.attribute("channels_last", 0)) or node.op == "NhwcMaxPool"
    op = node.op.removeprefix("QLinear").removeprefix("Nhwc")
    shapes: list[Shape] = [channels_first(x.shape) if last else x.shape]
    if op == "Conv":
        shapes.append(operand(node, 3).shape)
    if None in shapes:
        return [(x.dtype, None)]
    shape = like_standard(op, shapes, node.attributes)
    dtype = operand(node, 7).dtype if op == "Conv" else x.dtype
    return [(dtype, _channels_last(shape) if last else shape)]


@contrib_shape("DynamicQuantizeMatMul", "MatMulIntegerToFloat")
def _product(node: Node) -> list[Type]:
    a, b, scale = operand(node, 0), operand(node, 1), operand(node, 2)
    known = a.shape is not None and b.shape is not None
    return [(scale.dtype, like_standard("MatMul", [a.shape, b.shape], {}) if known else None)]


@contrib_shape("QGemm")
def _gemm(node: Node) -> list[Type]:
    a, b = operand(node, 0), operand(node, 3)
    dtype = dtype_of(node.input(8), operand(node, 1).dtype)
    known = a.shape is not None and b.shape is not None
    return [(dtype, like_standard("Gemm", [a.shape, b.shape], node.attributes) if known else None)]


@contrib_shape(*BLOCK_PRODUCTS)
def _blocks(node: Node) -> list[Type]:
    a = operand(node, 0)
    return [(a.dtype, None if a.shape is None else (*a.shape[:-1], int(node.attribute("N"))))]


@contrib_shape("GatherBlockQuantized")
def _gather_blocks(node: Node) -> list[Type]:
    """As Gather; bytes hold several numbers along the last axis."""
    data, indices, scales = operand(node, 0), operand(node, 1), operand(node, 2)
    if data.shape is None or indices.shape is None:
        return [(scales.dtype, None)]
    shape = list(data.shape)
    packed = 8 // int(node.attribute("bits", 4)) if data.dtype == UINT8 else 1
    shape[-1] = total(*[shape[-1]] * packed)
    axis = int(node.attribute("gather_axis", 0)) % len(shape)
    return [(scales.dtype, (*shape[:axis], *indices.shape, *shape[axis + 1 :]))]


@contrib_shape("DynamicQuantizeLSTM")
def _recurrent(node: Node) -> list[Type]:
    x, weight = operand(node, 0), operand(node, 1)
    if x.shape is None or weight.shape is None:
        return padded(node, (FLOAT, None))
    hidden, directions = int(node.attribute("hidden_size")), weight.shape[0]
    state = FLOAT, (directions, x.shape[1], hidden)
    return padded(node, (FLOAT, (x.shape[0], directions, x.shape[1], hidden)), state, state)


@cost_rule("QLinearConv", domain=CONTRIB_DOMAIN)
def _conv_macs(node: Node, inputs: list[Extents | None], outputs: list[Extents]) -> int:
    weight = inputs[3]
    assert weight is not None
    return math.prod(outputs[0]) * math.prod(weight[1:])


@cost_rule("DynamicQuantizeMatMul", "MatMulIntegerToFloat", *BLOCK_PRODUCTS, domain=CONTRIB_DOMAIN)
def _product_macs(node: Node, inputs: list[Extents | None], outputs: list[Extents]) -> int:
    a = inputs[0]
    assert a is not None
    return math.prod(outputs[0]) * a[-1]


@cost_rule("QGemm", domain=CONTRIB_DOMAIN)
def _gemm_macs(node: Node, inputs: list[Extents | None], outputs: list[Extents]) -> int:
    a = inputs[0]
    assert a is not None
    return math.prod(outputs[0]) * a[0 if node.attribute("transA", 0) else 1]
