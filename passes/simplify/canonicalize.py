"""Write what can be said in several ways in one way, so that later rules need to know only that one.

Padding is explicit, axes count from the front, kernels state their shape, recurrences begin at zero unless told, and
what a constant condition picks out is named by its indices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from compiler.ir import Graph, Node, Value, subgraphs
from passes.pipeline import register_pass
from passes.simplify.rewrite import RewritePass

_WINDOWED = ("Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool")
_WEIGHTED = ("Conv", "ConvTranspose")
_STATES = {"LSTM": (5, 6), "GRU": (5,), "RNN": (5,)}
"""Which operands are initial states."""

_AXIS = {
    "ArgMax": 0,
    "ArgMin": 0,
    "Concat": None,
    "CumSum": None,
    "Flatten": 1,
    "Gather": 0,
    "GatherElements": 0,
    "Hardmax": -1,
    "LayerNormalization": -1,
    "LogSoftmax": -1,
    "LpNormalization": -1,
    "RMSNormalization": -1,
    "ScatterElements": 0,
    "Softmax": -1,
    "Split": 0,
    "TopK": -1,
}
"""Operators with an `axis` of their first operand, and its default."""


@register_pass("canonicalize")
@dataclass(frozen=True)
class Canonicalize(RewritePass):
    """Explicit pads in place of auto_pad, axes that count from the front, kernel shapes stated and so on."""

    def rewrite(self, graph: Graph) -> int:
        return canonicalize(graph)


def canonicalize(graph: Graph) -> int:
    """Edit in place; returns the number of nodes changed."""
    count = 0
    for node in graph.nodes:
        count += sum(canonicalize(body) for body in subgraphs(node))
        if node.domain:
            continue
        before, operands = dict(node.attributes), list(node.inputs)
        if node.op in _AXIS:
            _count_from_front(node)
        if node.op in _WEIGHTED:
            _state_kernel(node)
        if node.op in _WINDOWED:
            _state_pads(node)
        if node.op == "Compress":
            _name_indices(node)
        for index in _STATES.get(node.op, ()):
            _omit_zeros(node, index)
        count += before != node.attributes or operands != node.inputs
    return count


def _count_from_front(node: Node) -> None:
    axis = node.attribute("axis", _AXIS[node.op])
    x = node.inputs[0]
    if axis is not None and axis < 0 and x is not None and x.rank is not None:
        node.attributes["axis"] = axis + x.rank


def _state_kernel(node: Node) -> None:
    weight = node.inputs[1]
    if "kernel_shape" not in node.attributes and weight is not None and weight.static_shape is not None:
        node.attributes["kernel_shape"] = list(weight.static_shape[2:])


def _name_indices(node: Node) -> None:
    """A Compress by a constant condition is a Gather of the positions where that is true."""
    x, condition, axis = node.inputs[0], node.inputs[1], node.attribute("axis")
    if x is None or x.rank is None or condition is None or not condition.is_constant or axis is None:
        return
    indices = Value(f"{node.outputs[0].name}.indices", data=np.flatnonzero(condition.numpy()))
    node.op, node.inputs, node.attributes = "Gather", [x, indices], {"axis": axis % x.rank}


def _omit_zeros(node: Node, index: int) -> None:
    """An initial state that is left out is zero."""
    state = node.input(index)
    if state is not None and state.is_constant and not state.numpy().any():
        node.inputs[index] = None


def _state_pads(node: Node) -> None:
    mode = node.attribute("auto_pad", "NOTSET")
    kernel = node.attribute("kernel_shape")
    if kernel is None or "output_shape" in node.attributes:
        return
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        total = _same_pads(node, kernel)
        if total is None:
            return
        small = [t // 2 for t in total]
        large = [t - s for t, s in zip(total, small, strict=True)]
        node.attributes["pads"] = small + large if mode == "SAME_UPPER" else large + small
    elif mode == "VALID":
        node.attributes["pads"] = [0] * (2 * len(kernel))
    node.attributes.pop("auto_pad", None)


def _same_pads(node: Node, kernel: list[int]) -> list[int] | None:
    """Total padding of each axis that makes the output ceil(input / stride), or input * stride when transposed."""
    ones = [1] * len(kernel)
    strides: list[Any] = node.attribute("strides", ones)
    dilations = node.attribute("dilations", ones)
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    if node.op == "ConvTranspose":
        extra = node.attribute("output_padding", [0] * len(kernel))
        # out = stride * (in - 1) + output_padding + reach - total, wanted: in * stride.
        return [max(0, e + r - s) for e, r, s in zip(extra, reach, strides, strict=True)]
    x = node.inputs[0]
    if x is None or (x.static_shape is None and any(s != 1 for s in strides)):
        return None
    spatial = (x.shape or ())[2:]
    totals = []
    for extent, r, s in zip(spatial, reach, strides, strict=True):
        if not isinstance(extent, int):
            totals.append(r - 1)  # stride 1: the extent does not matter
            continue
        steps = -(-extent // s)
        totals.append(max(0, (steps - 1) * s + r - extent))
    return totals
