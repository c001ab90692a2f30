"""Inferred shapes are those that ONNX Runtime computes, also where onnx's own inference is wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from compiler.ir import Graph, Node, Value, infer_shapes
from compiler.ir.execute import execute
from passes.simplify import Canonicalize


@st.composite
def poolings(draw: st.DrawFn) -> tuple[list[int], dict[str, Any]]:
    """The extents of an input and the attributes of a pooling whose every window fits into the padded input."""
    rank = draw(st.integers(1, 3))

    def each(low: int, high: int, count: int = rank) -> list[int]:
        return draw(st.lists(st.integers(low, high), min_size=count, max_size=count))

    kernel, extents, dilations = each(1, 4), each(1, 12), each(1, 3)
    attributes: dict[str, Any] = {"kernel_shape": kernel, "strides": each(1, 4)}
    pads = [0] * (2 * rank)
    mode = draw(st.sampled_from(["NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"]))
    if mode == "NOTSET":
        pads = [p % k for p, k in zip(each(0, 3, 2 * rank), kernel * 2, strict=True)]
        attributes["pads"] = pads
    else:
        attributes["auto_pad"] = mode
    if mode.startswith("SAME"):
        # ONNX Runtime leaves dilations out of this padding, and refuses it where windows leave gaps.
        assume(all(s <= k for s, k in zip(attributes["strides"], kernel, strict=True)))
    else:
        attributes["dilations"] = dilations
        padded = [e + p + q for e, p, q in zip(extents, pads[:rank], pads[rank:], strict=True)]
        assume(all(p > (k - 1) * d for p, k, d in zip(padded, kernel, dilations, strict=True)))
    attributes["ceil_mode"] = draw(st.integers(0, 1))
    return extents, attributes


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool", "LpPool"])
@pytest.mark.parametrize("opset", [21, 22])
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(pooling=poolings())
def test_pooling(op: str, opset: int, pooling: tuple[list[int], dict[str, Any]]) -> None:
    extents, attributes = pooling
    x, y = Value("x", np.float32, (1, 2, *extents)), Value("y")
    graph = Graph("pooling", [x], [y], [Node(op, [x], [y], attributes)], opset=opset)
    infer_shapes(graph)
    for stage in (graph, Canonicalize()(graph)):
        result = execute(stage, {"x": np.zeros(x.static_shape or (), np.float32)}, optimize=False)["y"]
        assert stage.outputs[0].shape == graph.outputs[0].shape == result.shape
