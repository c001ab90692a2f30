"""Operators on integers with a scale and a zero point for each operand, and weights stored in blocks of few bits."""

from __future__ import annotations

import numpy as np

from compiler.ir import Node, Value
from compiler.ir.contrib import CONTRIB_DOMAIN
from passes.coupling.extents import Kept, extent_rule
from passes.coupling.rules.convolution import convolve, fix_space, group_extents, keep_channels, operands, reduce_space
from passes.coupling.rules.elementwise import broadcast, softmax
from passes.coupling.rules.linear import general_product, per_line, product
from passes.coupling.rules.movement import concatenate
from passes.coupling.rules.quantized import quantize
from passes.coupling.solver import Coupling, coupling_rule

coupling_rule("QuantizeLinear", "DequantizeLinear", domain=CONTRIB_DOMAIN)(quantize)
extent_rule("QLinearConv", domain=CONTRIB_DOMAIN)(group_extents)

_DATA = {
    **dict.fromkeys(("QLinearLeakyRelu", "QLinearSigmoid"), (0,)),
    **dict.fromkeys(("QLinearAdd", "QLinearMul"), (0, 3)),
    "QLinearWhere": (0, 1, 4),
}
"""Element-wise operator -> its operands besides scales and zero points, of which there is one a tensor."""


@coupling_rule(*_DATA, domain=CONTRIB_DOMAIN)
def elementwise(c: Coupling, node: Node) -> None:
    """As on numbers: operands that meet at an axis share its labels."""
    values = [v for i in _DATA[node.op] if (v := node.inputs[i]) is not None]
    c.set(node.outputs[0], broadcast(c, node, values, node.outputs[0].rank or 0))


@coupling_rule("QLinearSoftmax", domain=CONTRIB_DOMAIN)
def quantized_softmax(c: Coupling, node: Node) -> None:
    """As Softmax; before opset 13 it ran over all axes from `axis` on."""
    softmax(c, node)
    x = node.inputs[0]
    assert x is not None
    if int(node.attribute("opset", 13)) < 13:
        for axis in range(int(node.attribute("axis", -1)) % max(1, x.rank or 1), x.rank or 0):
            c.decondition(x, axis)
        c.set(node.outputs[0], c.layout(x))


@coupling_rule("QLinearConcat", domain=CONTRIB_DOMAIN)
def quantized_concat(c: Coupling, node: Node) -> None:
    """Every third operand, after the scale and the zero point of the result, is a part."""
    concatenate(c, node, [v for v in node.inputs[2::3] if v is not None])


def _channel(node: Node, x: Value) -> int:
    last = node.attribute("channels_last", 0) or node.op == "NhwcMaxPool"
    return (x.rank or 2) - 1 if last else 1


@coupling_rule("QLinearAveragePool", "NhwcMaxPool", domain=CONTRIB_DOMAIN)
def quantized_pool(c: Coupling, node: Node) -> None:
    """Batch and channels pass, space is fixed."""
    x = node.inputs[0]
    assert x is not None
    fix_space(c, x, node, _channel(node, x))
    keep_channels(c, node, x, _channel(node, x))


@coupling_rule("QLinearGlobalAveragePool", domain=CONTRIB_DOMAIN)
def quantized_global_pool(c: Coupling, node: Node) -> None:
    """A mean over space."""
    x = node.inputs[0]
    assert x is not None
    reduce_space(c, node, _channel(node, x))


@coupling_rule("QLinearConv", domain=CONTRIB_DOMAIN)
def quantized_convolution(c: Coupling, node: Node) -> None:
    """As the standard operator; the channels of x and of the result may come last."""
    x, weight = operands(node)
    convolve(c, node, x, weight, [node.input(4), node.input(5), node.input(8)], _channel(node, x))


@coupling_rule("DynamicQuantizeMatMul", "MatMulIntegerToFloat", domain=CONTRIB_DOMAIN)
def scaled_product(c: Coupling, node: Node) -> None:
    """A product of integers that is scaled to numbers; what belongs to b, and the bias, may be one a column."""
    a, b = node.inputs[:2]
    assert a is not None and b is not None
    product(c, node, a, b)
    rows, columns = ((), (2, 3)) if node.op == "DynamicQuantizeMatMul" else ((2, 4), (3, 5))
    for side, axis, indices in ((a, -2, rows), (b, -1, columns)):
        for value in (node.input(i) for i in indices):
            if value is not None:
                per_line(c, node, side, value, axis)
    bias, y = node.input(4 if node.op == "DynamicQuantizeMatMul" else 6), node.outputs[0]
    if bias is not None:
        c.set(y, broadcast(c, node, [y, bias], y.rank or 0))


@coupling_rule("QGemm", domain=CONTRIB_DOMAIN)
def quantized_gemm(c: Coupling, node: Node) -> None:
    """A general matrix product of integers; scale and zero point of b may be one a column."""
    a, b = node.inputs[0], node.inputs[3]
    assert a is not None and b is not None
    columns = general_product(c, node, a, b, node.input(6))
    for value in (node.input(4), node.input(5)):
        if value is not None and value.rank and value.shape != (1,):
            c.set_plain(value, 0, columns, node)


@coupling_rule("MatMulNBits", domain=CONTRIB_DOMAIN)
def block_product(c: Coupling, node: Node) -> None:
    """A[..., K] times a weight stored as [N, blocks of K, bytes], with scales and zero points [N, blocks].

    Columns move one by one; along K what moves is a whole block (where zero points share bytes, as many as do).
    """
    a, weight, scales, zeros, order, bias = (node.input(i) for i in range(6))
    assert a is not None and weight is not None and scales is not None
    columns, shape = int(node.attribute("N")), weight.static_shape
    if shape is None or shape[0] != columns or len(shape) != 3 or node.attribute("weight_prepacked", 0):
        c.refuse(node, "MatMulNBits whose weight is stored for one machine, or left out")
        return
    blocks, rank = shape[1], a.rank or 1
    c.decondition(a, rank - 1)
    units = _whole_blocks(c, node, c.plain(a, rank - 1), _together(node, zeros, columns, blocks), order)
    points = c.plain(weight, 0)
    c.set_plain(weight, 1, units, node)
    c.define(weight, 2, None, node)
    for value in (scales, zeros):
        if value is not None:
            _by_column(c, node, value, points, units, columns)
    y = node.outputs[0]
    free = None if points is None else points.reshape([-1 if d == rank - 1 else 1 for d in range(rank)])
    c.set(y, [*c.layout(a)[:-1], free])
    if bias is not None:
        c.set(y, broadcast(c, node, [y, bias], rank))


def _together(node: Node, zeros: Value | None, columns: int, blocks: int) -> int:
    """How many blocks go together: those whose zero points share a byte."""
    bits = int(node.attribute("bits", 4))
    packed = zeros is not None and zeros.dtype == np.uint8 and zeros.data is not None
    if not packed or zeros is None or zeros.data is None or zeros.data.size == columns * blocks:
        return 1
    return 8 // bits if 8 % bits == 0 else blocks


def _whole_blocks(
    c: Coupling, node: Node, inner: np.ndarray | None, together: int, order: Value | None
) -> np.ndarray | None:
    """One label a block of K, after all that a block holds has been united."""
    size = int(node.attribute("block_size"))
    if inner is None:
        return None
    if order is not None:
        c.pin(inner, node, "MatMulNBits reads these positions in an order of its own")
        c.pin_value(order, node, "these are indices")
        return None
    for run in (size, size * together):
        for start in range(0, len(inner), run):
            c.partition.union(inner[start : start + 1], inner[start : start + run])
    return inner[::size]


def _by_column(
    c: Coupling, node: Node, value: Value, points: np.ndarray | None, units: np.ndarray | None, columns: int
) -> None:
    """Scales or zero points of each column: [N, blocks or bytes], or those of one column after another."""
    shape = value.static_shape
    assert shape is not None
    if len(shape) == 1:
        c.pin(units, node, "MatMulNBits stores the scales of all blocks on one axis")
        c.set_plain(value, 0, None if points is None else points.repeat(shape[0] // columns), node)
        return
    c.set_plain(value, 0, points, node)
    if shape[1] > 1:
        own = None
        if units is not None:
            own = units[:: -(-len(units) // shape[1])]
        c.set_plain(value, 1, own, node)


@extent_rule("MatMulNBits", domain=CONTRIB_DOMAIN)
def block_extents(new: Node, old: Node, kept: Kept) -> None:
    """K and N are spelt out."""
    a, weight = old.inputs[0], old.inputs[1]
    assert a is not None and weight is not None
    if kept.labels(a, (a.rank or 1) - 1) is not None:
        new.attributes["K"] = kept.count(a, (a.rank or 1) - 1)
    if kept.labels(weight, 0) is not None:
        new.attributes["N"] = kept.count(weight, 0)
