"""Convolutions of any rank, dense, grouped, depthwise and transposed.

Up to two spatial axes go to the register-tiled schedules; more take the direct loops below.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tvm import tirx

from backends.lowering.context import Lowering
from backends.lowering.elementwise import contiguous, flat_index, nest
from backends.lowering.expressions import const
from backends.lowering.layout import shape_of
from backends.lowering.rules import lowering
from backends.schedules.emit import Array, Emitter, Expr
from backends.schedules.epilogue import Epilogue
from compiler.ir.graph import Node


@dataclass(frozen=True)
class Window:
    """Geometry of a convolution or pooling, one entry per spatial axis; pads are (before, after)."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]


def window_of(node: Node, kernel: tuple[int, ...], source: tuple[int, ...], output: tuple[int, ...]) -> Window:
    """The window of a Conv or pooling node over spatial extents `source` -> `output`; resolves auto_pad."""
    rank = len(kernel)
    strides = tuple(node.attribute("strides") or [1] * rank)
    dilations = tuple(node.attribute("dilations") or [1] * rank)
    mode = node.attribute("auto_pad", "NOTSET")
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        pads = []
        for i in range(rank):
            total = max(0, (output[i] - 1) * strides[i] + dilations[i] * (kernel[i] - 1) + 1 - source[i])
            small, large = total // 2, total - total // 2
            pads.append((small, large) if mode == "SAME_UPPER" else (large, small))
    else:
        flat = (node.attribute("pads") or [0] * (2 * rank)) if mode == "NOTSET" else [0] * (2 * rank)
        pads = list(zip(flat[:rank], flat[rank:], strict=True))
    return Window(kernel, strides, dilations, tuple(pads))


@dataclass(frozen=True)
class DirectConvSpec:
    """y[n, co, p] = epilogue(sum over ci, k of x[n, ci, p * stride + k * dilation - pad] * w[co, ci, k])."""

    x: tuple[int, ...]
    w: tuple[int, ...]
    y: tuple[int, ...]
    window: Window
    groups: int
    epilogue: Epilogue


@lowering("Conv")
def _conv(node: Node, lower: Lowering) -> None:
    x, w, y = shape_of(node.input(0)), shape_of(node.input(1)), shape_of(node.outputs[0])
    window = window_of(node, w[2:], x[2:], y[2:])
    groups = node.attribute("group", 1)
    epilogue = node.attribute("epilogue") or Epilogue(bias=node.input(2) is not None)
    reads = [lower.buffer(v) for v in node.inputs if v is not None]
    spec = DirectConvSpec(x, w, y, window, groups, epilogue)
    lower.call(_direct, spec, reads, [lower.result(node.outputs[0])], macs=math.prod(y) * math.prod(w[1:]))


def _direct(e: Emitter, spec: DirectConvSpec, *arrays: Array) -> None:
    x, w, y = arrays[0], arrays[1], arrays[-1]
    extras = list(arrays[2:-1])
    bias = extras.pop(0) if spec.epilogue.bias else None
    residual = extras.pop(0) if spec.epilogue.residual else None
    n, channels, *space = spec.y
    per_group, inner = channels // spec.groups, spec.w[1]
    kind = str(y.buffer.dtype)
    x_strides, w_strides, y_strides = contiguous(spec.x), contiguous(spec.w), contiguous(spec.y)

    def pixel(indices: list[Expr]) -> None:
        image, channel, *place = indices
        first = e.let(tirx.truncdiv(channel, per_group) * inner)
        acc = e.registers(1, 1, kind)
        acc[0] = const(0, kind)

        def tap(taps: list[Expr]) -> None:
            ci, *offsets = taps
            at = [
                p * s + k * d - pad[0]
                for p, s, k, d, pad in zip(
                    place, spec.window.strides, offsets, spec.window.dilations, spec.window.pads, strict=True
                )
            ]
            inside = [tirx.all(a >= 0, a < d) for a, d in zip(at, spec.x[2:], strict=True)]
            with e.when(tirx.all(*inside) if len(inside) > 1 else inside[0]):
                value = x.load(flat_index([image, first + ci, *at], x_strides))
                acc[0] = acc[0] + value * w.load(flat_index([channel, ci, *offsets], w_strides))

        nest(e, (inner, *spec.window.kernel), tap)
        value = acc[0]
        if bias is not None:
            value = value + bias.load(channel)
        index = e.let(flat_index(indices, y_strides))
        if residual is not None:
            value = value + residual.load(index)
        y.store(index, spec.epilogue.apply(e.let(value)) if spec.epilogue.activation else value)

    nest(e, (n, channels, *space), pixel, parallel=n > 1 or channels > 1)
