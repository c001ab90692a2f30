"""Quantised forms: scales and zero points of one element a channel move with their channel."""

from __future__ import annotations

from compiler.ir import Node
from passes.coupling.rules.convolution import convolve
from passes.coupling.rules.linear import per_line, product
from passes.coupling.solver import Coupling, coupling_rule


@coupling_rule("QuantizeLinear", "DequantizeLinear")
def quantize(c: Coupling, node: Node) -> None:
    """One scale in all, one a position of `axis`, or one a run of `block_size` positions (then that axis is fixed)."""
    x, scale = node.inputs[0], node.inputs[1]
    assert x is not None and scale is not None
    parameters = [v for v in node.inputs[1:3] if v is not None and v.rank]
    axis = int(node.attribute("axis", 1)) % max(1, x.rank or 1)
    if scale.rank == 1:
        points = c.plain(x, axis)
        for value in parameters:
            c.set_plain(value, 0, points if value.shape != (1,) else None, node)
    elif scale.rank:
        c.pin_axis(x, axis, node, f"{node.op} has one scale for a run of this axis")
        for a in range(x.rank or 0):
            for value in parameters:
                c.define(value, a, None if a == axis else c.axis(x, a), node)
    c.set(node.outputs[0], c.layout(x))


@coupling_rule("DynamicQuantizeLinear")
def dynamic_quantize(c: Coupling, node: Node) -> None:
    """The scale is that of the whole tensor, which does not tell positions apart."""
    x = node.inputs[0]
    assert x is not None
    c.set(node.outputs[0], c.layout(x))


@coupling_rule("ConvInteger")
def conv_integer(c: Coupling, node: Node) -> None:
    """A convolution of integers; the weight's zero point may be one a channel."""
    x, weight = node.inputs[0], node.inputs[1]
    assert x is not None and weight is not None
    convolve(c, node, x, weight, [node.input(3)])


@coupling_rule("QLinearConv")
def quantized_convolution(c: Coupling, node: Node) -> None:
    """A convolution of integers that scales its result; the weight's scale and zero point may be one a channel."""
    x, weight = node.inputs[0], node.inputs[3]
    assert x is not None and weight is not None
    convolve(c, node, x, weight, [node.input(4), node.input(5), node.input(8)])


@coupling_rule("QLinearMatMul")
def quantized_product(c: Coupling, node: Node) -> None:
    """A matrix product of integers; scales and zero points may be one a row of a and y, or one a column of b."""
    a, b, y = node.inputs[0], node.inputs[3], node.outputs[0]
    assert a is not None and b is not None
    product(c, node, a, b)
    for side, axis, indices in ((a, -2, (1, 2)), (b, -1, (4, 5)), (y, -2, (6, 7))):
        for value in (node.inputs[i] for i in indices):
            if value is not None:
                per_line(c, node, side, value, axis)
