"""Shapes and costs of fused activations, normalisations, products, convolutions and experts."""

from __future__ import annotations

import math

import numpy as np

from compiler.ir.contrib.domain import (
    CONTRIB_DOMAIN,
    FLOAT,
    Shape,
    Type,
    contrib_shape,
    extent,
    like_standard,
    operand,
    padded,
)
from compiler.ir.cost import Shape as Extents
from compiler.ir.cost import cost_rule
from compiler.ir.graph import Node

ACTIVATIONS = ("BiasGelu", "FastGelu", "Gelu", "QuickGelu", "ScaledSiLU")
SKIP_NORMALIZATIONS = ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")


@contrib_shape(*ACTIVATIONS, "GatedAdd", "GatedRMSNorm", "Inverse", "MoE", "QMoE", "Trilu")
def _like_first(node: Node) -> list[Type]:
    x = operand(node, 0)
    return padded(node, (x.dtype, x.shape))


@contrib_shape(*SKIP_NORMALIZATIONS, "SimplifiedLayerNormalization")
def _normalization(node: Node) -> list[Type]:
    """The result, and the sum, are like the first operand; statistics have one element a row."""
    x = operand(node, 0)
    first = int(node.attribute("axis", -1)) % max(1, x.rank or 1)
    rows = None if x.shape is None else (*x.shape[:first], *[1] * (len(x.shape) - first))
    statistics = (1,) if node.op == "SimplifiedLayerNormalization" else (1, 2)
    types = [(FLOAT, rows) if i in statistics else (x.dtype, x.shape) for i in range(4)]
    return padded(node, *types)


@contrib_shape("FusedConv", "FusedGemm")
def _with_activation(node: Node) -> list[Type]:
    x, weight = operand(node, 0), operand(node, 1)
    if x.shape is None or weight.shape is None:
        return padded(node, (x.dtype, None))
    standard = node.op.removeprefix("Fused")
    return padded(node, (x.dtype, like_standard(standard, [x.shape, weight.shape], node.attributes)))


def matrix_order(rank: int, transposed: bool, batch_transposed: bool) -> list[int]:
    """The axes of an operand of FusedMatMul as [batch..., rows, columns]."""
    order = list(range(rank))
    if batch_transposed and rank > 2:
        order = [*order[1:-1], 0, order[-1]]
    if transposed and rank > 1:
        order[-2:] = order[:-3:-1]
    return order


def matrix_orders(node: Node) -> list[list[int]]:
    """The order of the axes of both operands of FusedMatMul, TransposeMatMul or a plain product."""
    return [
        matrix_order(
            operand(node, i).rank or 0,
            bool(node.attribute(f"trans{side}", 0)),
            bool(node.attribute(f"transBatch{side}", 0)),
        )
        for i, side in enumerate("AB")
    ]


@contrib_shape("FusedMatMul", "TransposeMatMul", "MatMulInteger16")
def _matmul(node: Node) -> list[Type]:
    shapes: list[Shape] = []
    for value, order in zip(node.inputs[:2], matrix_orders(node), strict=True):
        shape = None if value is None else value.shape
        shapes.append(None if shape is None else tuple(shape[a] for a in order))
    dtype = np.dtype(np.int32) if node.op == "MatMulInteger16" else operand(node, 0).dtype
    known = None not in shapes
    return padded(node, (dtype, like_standard("MatMul", shapes, {}) if known else None))


@contrib_shape("EmbedLayerNormalization", "QEmbedLayerNormalization")
def _embedding(node: Node) -> list[Type]:
    ids, words = operand(node, 0), operand(node, 2)
    quantized = node.op == "QEmbedLayerNormalization"
    dtype = operand(node, 8).dtype if quantized else words.dtype
    full: Shape = None if ids.shape is None else (*ids.shape, extent(words, 1))
    lengths: Shape = None if ids.shape is None else ids.shape[:1]
    return padded(node, (dtype, full), (np.dtype(np.int32), lengths), (dtype, full))


@cost_rule("FusedConv", domain=CONTRIB_DOMAIN)
def _convolution_macs(node: Node, inputs: list[Extents | None], outputs: list[Extents]) -> int:
    weight = inputs[1]
    assert weight is not None
    return math.prod(outputs[0]) * math.prod(weight[1:])


@cost_rule("FusedGemm", domain=CONTRIB_DOMAIN)
def _gemm_macs(node: Node, inputs: list[Extents | None], outputs: list[Extents]) -> int:
    a = inputs[0]
    assert a is not None
    return math.prod(outputs[0]) * a[0 if node.attribute("transA", 0) else 1]


@cost_rule("FusedMatMul", "TransposeMatMul", "MatMulInteger16", domain=CONTRIB_DOMAIN)
def _matmul_macs(node: Node, inputs: list[Extents | None], outputs: list[Extents]) -> int:
    a = inputs[0]
    assert a is not None
    return math.prod(outputs[0]) * a[matrix_orders(node)[0][-1]]


@cost_rule("MoE", domain=CONTRIB_DOMAIN)
def _expert_macs(node: Node, inputs: list[Extents | None], outputs: list[Extents]) -> int:
    """Each token runs through its best k experts."""
    x, weights = inputs[0], [inputs[i] for i in (2, 4, 6) if i < len(inputs)]
    assert x is not None
    per_token = sum(math.prod(w[1:]) for w in weights if w is not None)
    return math.prod(x[:-1]) * int(node.attribute("k", 1)) * per_token
