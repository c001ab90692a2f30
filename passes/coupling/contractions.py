"""Where operators sum products of data and a constant: the axes that meet there."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from compiler.ir import Node, Value
from compiler.ir.contrib import matrix_orders
from passes.coupling.rules.linear import einsum_terms
from passes.coupling.rules.recurrent import GATES

_ZERO_POINTS = {
    **{"ConvInteger": {1: 3}, "MatMulInteger": {0: 2, 1: 3}, "QLinearConv": {3: 5}, "QLinearMatMul": {0: 2, 3: 5}},
    **{"DequantizeLinear": {0: 2}, "MatMulIntegerToFloat": {0: 4, 1: 5}, "DynamicQuantizeMatMul": {1: 3}},
    **{"QGemm": {0: 2, 3: 5}, "QAttention": {1: 7}},
}
"""Operator -> operand -> where its zero point is, without which an integer of 0 is no zero."""

_CONVOLUTIONS = ("Conv", "ConvInteger", "QLinearConv", "DeformConv", "ConvTranspose", "FusedConv")

_THIRD_IS_WEIGHT = ("QLinearConv", "QLinearMatMul", "QGemm")
"""Operators whose second matrix is operand 3, after the first one's scale and zero point."""


def contractions(node: Node) -> Iterator[tuple[Value, int, Value, int]]:
    """The (data, axis, constant, axis) over which a node sums products. The constant may be stored as integers."""
    x = node.input(0)
    index = 3 if node.op in _THIRD_IS_WEIGHT else 1
    weight = node.input(index)
    if x is None or weight is None:
        return
    if node.op in _CONVOLUTIONS:
        stored, channel = _stored(node, index), (x.rank or 1) - 1 if node.attribute("channels_last", 0) else 1
        if stored is not None and not (x.shape and x.shape[channel] == node.attribute("group", 1) != 1):
            yield x, channel, stored, 0 if node.op == "ConvTranspose" else 1
    elif node.op in ("Gemm", "FusedGemm", "QGemm"):
        transposed = [bool(node.attribute(name, 0)) for name in ("transA", "transB")]
        yield from _pair(node, 0, int(not transposed[0]), index, int(transposed[1]))
    elif node.op in ("MatMul", "MatMulInteger", "QLinearMatMul", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"):
        yield from _pair(node, 0, (x.rank or 1) - 1, index, max(0, (weight.rank or 0) - 2))
    elif node.op in ("FusedMatMul", "TransposeMatMul", "MatMulInteger16"):
        left, right = matrix_orders(node)
        yield from _pair(node, 0, left[-1], 1, right[max(0, len(right) - 2)])
    elif node.op in ("Attention", "QAttention") and node.domain:
        stored = _stored(node, 1)
        if stored is not None:
            yield x, 2, stored, 0
    elif node.op == "MatMulNBits":  # an integer of 0 is no zero, but with a scale of 0 it is
        scales = node.input(2)
        if scales is not None and scales.is_constant and scales.rank == 2:
            yield x, (x.rank or 1) - 1, scales, 1
    elif node.op == "MoE":
        yield from _experts(node, x)
    elif node.op == "Einsum":
        yield from _einsum(node)
    elif node.op in GATES:
        recurrence = node.inputs[2]
        if weight.is_constant and recurrence is not None and recurrence.is_constant:
            yield x, 2, weight, 2
            y = node.outputs[0]  # what R multiplies, one step later
            yield y, (y.rank or 1) - 1, recurrence, 2


def _experts(node: Node, x: Value) -> Iterator[tuple[Value, int, Value, int]]:
    """What each expert sums over: the channels of x, and its hidden units, which the second weight silences."""
    y = node.outputs[0]
    for index, value in ((2, x), (6, x), (4, y)):
        weight = node.input(index)
        if weight is not None and weight.is_constant:
            yield value, (value.rank or 1) - 1, weight, 2


def _pair(node: Node, a: int, axis_a: int, b: int, axis_b: int) -> Iterator[tuple[Value, int, Value, int]]:
    """The operands at indices a and b, summed over these axes, as data and constant."""
    for (data, axis), (index, constant_axis) in (((a, axis_a), (b, axis_b)), ((b, axis_b), (a, axis_a))):
        constant, value = _stored(node, index), node.inputs[data]
        if constant is not None and value is not None:
            yield value, axis, constant, constant_axis
            return


def _einsum(node: Node) -> Iterator[tuple[Value, int, Value, int]]:
    """Each letter that is summed over, where a constant has it: that constant silences it for all operands."""
    *terms, result = einsum_terms(node) or [[]]
    for letter in {letter for term in terms for letter in term if letter not in result}:
        holders = [(i, term.index(letter)) for i, term in enumerate(terms) if letter in term]
        constants = [(c, axis) for i, axis in holders if (c := _stored(node, i)) is not None]
        for i, axis in holders:
            value = node.inputs[i]
            if constants and value is not None and not value.is_constant:
                yield value, axis, *constants[0]


def _stored(node: Node, index: int) -> Value | None:
    """The constant that an operand is, or is dequantised from, if what it stores as 0 is 0."""
    value = node.inputs[index]
    place = _ZERO_POINTS.get(node.op, {}).get(index)
    zero = None if place is None else node.input(place)
    if value is None or (zero is not None and not (zero.is_constant and not np.any(zero.numpy()))):
        return None
    if value.producer is not None and value.producer.op == "DequantizeLinear":
        return _stored(value.producer, 0)
    return value if value.is_constant else None
