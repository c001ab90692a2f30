"""Shapes of ONNX Runtime's own operators that optimised transformers hold: fused activations and normalisations."""

from __future__ import annotations

import numpy as np

from compiler.ir.graph import Dim, Node
from compiler.ir.shapes import shape_rule

CONTRIB_DOMAIN = "com.microsoft"
FUSED_ACTIVATIONS = ("BiasGelu", "FastGelu", "Gelu", "QuickGelu")
FUSED_NORMALIZATIONS = ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")


def _like_first(node: Node) -> list[tuple[np.dtype | None, tuple[Dim, ...] | None]]:
    """The first result, and the sum, are like the first operand; statistics have one element a row."""
    x = node.inputs[0]
    assert x is not None
    statistics = None if x.shape is None else (*x.shape[:-1], 1)
    shapes = [x.shape, statistics, statistics, x.shape]
    return [(x.dtype, shape) for shape in shapes[: len(node.outputs)]]


for _op in (*FUSED_ACTIVATIONS, *FUSED_NORMALIZATIONS):
    shape_rule(_op, CONTRIB_DOMAIN)(_like_first)
