"""Fused activations, normalisations, products, convolutions, embeddings and experts.

Most are a standard operator with something element-wise after it, and share its rule.
"""

from __future__ import annotations

import numpy as np

from compiler.ir import Node, Value
from compiler.ir.contrib import ACTIVATIONS, CONTRIB_DOMAIN, SKIP_NORMALIZATIONS, matrix_orders
from passes.coupling.extents import extent_rule
from passes.coupling.kinds import EXPERT, HIDDEN_UNIT
from passes.coupling.partition import Points
from passes.coupling.rules.convolution import convolve, group_extents, operands
from passes.coupling.rules.elementwise import broadcast
from passes.coupling.rules.linear import Operand, general_product, product
from passes.coupling.rules.normalization import layer_normalization
from passes.coupling.rules.selection import triangle
from passes.coupling.solver import Coupling, coupling_rule

coupling_rule("SimplifiedLayerNormalization", domain=CONTRIB_DOMAIN)(layer_normalization)
coupling_rule("Trilu", domain=CONTRIB_DOMAIN)(triangle)
extent_rule("FusedConv", domain=CONTRIB_DOMAIN)(group_extents)


@coupling_rule(*ACTIVATIONS, domain=CONTRIB_DOMAIN)
def activation(c: Coupling, node: Node) -> None:
    """An activation of x, or of x plus a bias."""
    y = node.outputs[0]
    c.set(y, broadcast(c, node, [v for v in node.inputs if v is not None], y.rank or 0))


@coupling_rule(*SKIP_NORMALIZATIONS, domain=CONTRIB_DOMAIN)
def skip_normalization(c: Coupling, node: Node) -> None:
    """Normalises x plus skip over the last axis; scale and biases have one element a position of it."""
    x = node.inputs[0]
    assert x is not None
    rank = x.rank or 0
    for value in node.inputs[:2]:
        if value is not None:
            c.decondition(value, (value.rank or 1) - 1)
    layout = broadcast(c, node, [v for v in node.inputs if v is not None], rank)
    c.set(node.outputs[0], layout)
    for index, value in enumerate(node.outputs[1:], 1):
        c.set(value, layout if index == 3 else [*layout[:-1], None])


@coupling_rule("GatedAdd", domain=CONTRIB_DOMAIN)
def gated_add(c: Coupling, node: Node) -> None:
    """x plus y times one gate a row."""
    if node.input(3) is not None:
        c.refuse(node, "GatedAdd that projects its gate")
        return
    activation(c, node)


@coupling_rule("GatedRMSNorm", domain=CONTRIB_DOMAIN)
def gated_normalization(c: Coupling, node: Node) -> None:
    """Normalises x over the last axis, then multiplies by a scale and by an activation of the gate."""
    x, scale = node.inputs[:2]
    assert x is not None and scale is not None and x.shape is not None
    if scale.shape != x.shape[-1:]:
        c.refuse(node, "GatedRMSNorm whose scale is that of one head")
        return
    for value in (x, node.inputs[2]):
        if value is not None:
            c.decondition(value, (value.rank or 1) - 1)
    activation(c, node)


@coupling_rule("FusedConv", domain=CONTRIB_DOMAIN)
def fused_convolution(c: Coupling, node: Node) -> None:
    """A convolution, plus an operand of the result's shape, then an activation."""
    convolve(c, node, *operands(node), [node.input(2)])
    y, addend = node.outputs[0], node.input(3)
    if addend is not None:
        c.set(y, broadcast(c, node, [y, addend], y.rank or 0))


@coupling_rule("FusedGemm", domain=CONTRIB_DOMAIN)
def fused_gemm(c: Coupling, node: Node) -> None:
    """A general matrix product, then an activation."""
    a, b = node.inputs[:2]
    assert a is not None and b is not None
    general_product(c, node, a, b, node.input(2))


@coupling_rule("FusedMatMul", "TransposeMatMul", "MatMulInteger16", domain=CONTRIB_DOMAIN)
def fused_matmul(c: Coupling, node: Node) -> None:
    """A matrix product of operands that may be transposed, in their last two axes or with the first put before them."""
    a, b = node.inputs[:2]
    assert a is not None and b is not None
    left, right = matrix_orders(node)
    product(c, node, Operand(a, left), Operand(b, right))


@coupling_rule("EmbedLayerNormalization", "QEmbedLayerNormalization", domain=CONTRIB_DOMAIN)
def embedding(c: Coupling, node: Node) -> None:
    """Rows of two or three tables, added and normalised; scale and shift have one element a column of the tables."""
    tables, vectors, others = _embedding_operands(node)
    columns = None
    for place, table in enumerate(tables):
        c.define(table, 0, None, node)
        if place == 0:
            columns = c.plain(table, 1)
        else:
            c.set_plain(table, 1, columns, node)
    for vector in vectors:
        c.set_plain(vector, 0, columns, node)
    for value in others:
        c.pin_value(value, node, "these numbers say which row to take, and where")
    for value in node.outputs:
        full = value.rank == 3
        c.set(value, [None, None, None if columns is None else columns.reshape(1, 1, -1)] if full else [None])


def _embedding_operands(node: Node) -> tuple[list[Value], list[Value], list[Value]]:
    """The tables, the vectors of one element a column, and what selects rows."""
    chosen = [[node.input(i) for i in indices] for indices in ((2, 3, 4), (5, 6), (0, 1, 7))]
    if node.op == "EmbedLayerNormalization":
        chosen[2].append(node.input(8))
    tables, vectors, others = ([v for v in values if v is not None] for values in chosen)
    return tables, vectors, others


_GATE_AND_UP = {"swiglu": 2}
"""How many rows of the first weight a hidden unit has, side by side, by activation."""


@coupling_rule("MoE", domain=CONTRIB_DOMAIN)
def experts(c: Coupling, node: Node) -> None:
    """x[..., H], router[rows, E], W1[E, F, H], b1[E, F], W2[E, H, I], b2[E, H], W3[E, I, H], b3[E, I].

    Experts go with their router columns, of which the best k are picked. Hidden units are units of their own in every
    expert; F is I, or 2I where gate and value of a unit lie side by side.
    """
    x, router, up, down = (node.input(i) for i in (0, 1, 2, 4))
    assert x is not None and router is not None and up is not None and down is not None
    gated = _GATE_AND_UP.get(node.attribute("activation_type", "relu"), 1)
    if down.static_shape is None or node.attribute("swiglu_fusion", 0) == 2 or (gated == 2 and node.input(6)):
        c.refuse(node, "MoE whose gate is stored apart")
        return
    for value in (x, router):
        for axis in range((value.rank or 1) - 1):
            c.pin_axis(value, axis, node, "rows of data meet rows of the router")
        c.decondition(value, (value.rank or 1) - 1)
    columns, width = _columns(c, node, router), c.plain(x, (x.rank or 1) - 1)
    units = c.partition.fresh((down.static_shape[0], down.static_shape[2]))
    c.mark(units, 1, HIDDEN_UNIT)
    rows = np.repeat(units, gated, axis=1)
    for weight, own, axis in ((up, rows, 1), (down, units, 2), (node.input(6), units, 1)):
        if weight is not None:
            c.set_plain(weight, 0, columns, node)
            c.set_plain(weight, 3 - axis, width, node)
            c.define(weight, axis, np.expand_dims(own, 3 - axis), node)
    for bias, own in ((node.input(3), rows), (node.input(7), units)):
        if bias is not None:
            c.set_plain(bias, 0, columns, node)
            c.define(bias, 1, own, node)
    shift = node.input(5)
    if shift is not None:
        c.set_plain(shift, 0, columns, node)
        c.set_plain(shift, 1, width, node)
    layout = c.layout(x)
    c.set(node.outputs[0], [*[None] * (len(layout) - 1), layout[-1]])


def _columns(c: Coupling, node: Node, router: Value) -> Points | None:
    """The labels of the experts; at least as many stay as a token goes to."""
    columns, best = c.plain(router, 1), int(node.attribute("k", 1))
    if columns is not None and best >= len(columns):
        c.pin(columns, node, "each token goes to all experts")
    c.keep_at_least(columns, best, node)
    if columns is not None:
        c.mark(columns.reshape(1, -1), 1, EXPERT)
    return columns
