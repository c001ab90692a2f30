"""Convolutions of any rank, dense, grouped, depthwise and transposed.

Up to two spatial axes go to the register-tiled schedules; more take the direct loops below.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from tvm import tirx

from backends.lowering.context import Lowering
from backends.lowering.elementwise import contiguous, flat_index, nest
from backends.lowering.expressions import const
from backends.lowering.layout import shape_of
from backends.lowering.pairs import PAIR
from backends.lowering.rules import INTERNAL, lowering
from backends.schedules.conv_transpose import conv_transpose2d
from backends.schedules.emit import Array, Emitter, Expr, Index
from backends.schedules.epilogue import Epilogue
from backends.schedules.kernel import Kernel
from backends.schedules.specs import ConvSpec, ConvTransposeSpec
from backends.selection import Choice
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
    spec, target = _planar_spec(node), lower.scheduled(node.outputs[0].dtype)
    if spec is not None and target is not None:
        weights = node.input(1)
        assert weights is not None
        choice = lower.selector.conv(spec, weights.numpy(), target)
        kernel = choice.chosen.make(target, lower.parallel)
        _scheduled(node, lower, kernel, choice.chosen.schedule, choice)
        return
    w, y = shape_of(node.input(1)), shape_of(node.outputs[0])
    window = window_of(node, w[2:], shape_of(node.input(0))[2:], y[2:])
    reads = [lower.buffer(v) for v in node.inputs if v is not None]
    direct = DirectConvSpec(shape_of(node.input(0)), w, y, window, node.attribute("group", 1), _epilogue(node))
    lower.call(_direct, direct, reads, [lower.result(node.outputs[0])], macs=math.prod(y) * math.prod(w[1:]))


def _epilogue(node: Node) -> Epilogue:
    return node.attribute("epilogue") or Epilogue(bias=node.input(2) is not None)


def _planar_spec(node: Node) -> ConvSpec | None:
    """The convolution as schedules see it; None for more axes than two, or weights that are not known."""
    x, w, y = shape_of(node.input(0)), shape_of(node.input(1)), shape_of(node.outputs[0])
    if len(w) > 4 or not _packable(node):
        return None
    window = planar_window(window_of(node, w[2:], x[2:], y[2:]))
    n, c, height, width = planar_shape(x)
    spec = ConvSpec(n, c, height, width, w[0], *window, node.attribute("group", 1), _epilogue(node))
    return spec if (spec.out_height, spec.out_width) == planar_shape(y)[2:] else None


@lowering(PAIR, domain=INTERNAL)
def _pair(node: Node, lower: Lowering) -> None:
    """A 1x1 convolution and a depthwise one: together where that pays, else one after the other."""
    first, second = node.attribute("first"), node.attribute("second")
    specs = _planar_spec(first), _planar_spec(second)
    target = lower.scheduled(second.outputs[0].dtype)
    choice = None
    if specs[0] is not None and specs[1] is not None and target is not None:
        choice = lower.selector.pair(specs[0], first.input(1).numpy(), specs[1], target)
    if choice is None or specs[1] is None or target is None:
        lower.lower(first)
        lower.lower(second)
        return
    kernel = choice.chosen.make(target, lower.parallel)
    packed = kernel.pack(*_constants(first), *_constants(second))
    activations = {"x": lower.buffer(first.input(0)), "y": lower.result(second.outputs[0])}
    if specs[1].epilogue.residual:
        activations["residual"] = lower.buffer(second.inputs[-1])
    lower.schedule(kernel, activations, packed, choice.chosen.schedule, choice.describe())


def _constants(node: Node) -> tuple[np.ndarray, np.ndarray | None]:
    """Weights and bias of a node whose constants are known."""
    weight, bias = node.input(1), node.input(2) if _epilogue(node).bias else None
    assert weight is not None
    return weight.numpy(), None if bias is None else bias.numpy()


@lowering("ConvTranspose")
def _conv_transpose(node: Node, lower: Lowering) -> None:
    x, w, y = shape_of(node.input(0)), shape_of(node.input(1)), shape_of(node.outputs[0])
    window, extra = _transposed_window(node, w[2:], x[2:], y[2:])
    groups = node.attribute("group", 1)
    epilogue, target = _epilogue(node), lower.scheduled(node.outputs[0].dtype)
    if len(w) <= 4 and target is not None and _packable(node) and all(p >= 0 for pad in window.pads for p in pad):
        n, c, height, width = planar_shape(x)
        kernel, strides, pads, dilations = planar_window(window)
        padding = (0, extra[0]) if len(extra) == 1 else (extra[0], extra[1])
        spec = ConvTransposeSpec(n, c, height, width, y[1], kernel, strides, pads, dilations, padding, groups, epilogue)
        if (spec.out_height, spec.out_width) == planar_shape(y)[2:]:
            _scheduled(node, lower, conv_transpose2d(spec, target, lower.parallel), "conv_transpose2d")
            return
    reads = [lower.buffer(v) for v in node.inputs if v is not None]
    direct = DirectConvSpec(x, w, y, window, groups, epilogue)
    lower.call(_direct_transposed, direct, reads, [lower.result(node.outputs[0])], macs=math.prod(x) * math.prod(w[1:]))


def _packable(node: Node) -> bool:
    """True when weights are known at compile time: what the schedules take."""
    constants = [node.input(1)] if node.input(2) is None else [node.input(1), node.input(2)]
    bias = node.attribute("epilogue") is None or node.attribute("epilogue").bias
    return all(v is not None and v.is_constant for v in (constants if bias else constants[:1]))


def planar_shape(shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """A shape of up to two spatial axes as (n, c, height, width)."""
    n, c, *space = shape
    height, width = (1, 1, *space)[-2:]
    return n, c, height, width


def planar_window(
    window: Window,
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int, int, int], tuple[int, int]]:
    """A window of up to two axes as (kernel, strides, (top, left, bottom, right), dilations)."""

    def pair(values: tuple[int, ...]) -> tuple[int, int]:
        first, second = (1, *values)[-2:]
        return first, second

    (top, bottom), (left, right) = ((0, 0), *window.pads)[-2:]
    return pair(window.kernel), pair(window.strides), (top, left, bottom, right), pair(window.dilations)


def _scheduled(node: Node, lower: Lowering, kernel: Kernel, family: str, choice: Choice | None = None) -> None:
    packed = kernel.pack(*_constants(node))
    activations = {"x": lower.buffer(node.input(0)), "y": lower.result(node.outputs[0])}
    if _epilogue(node).residual:
        activations["residual"] = lower.buffer(node.inputs[-1])
    lower.schedule(kernel, activations, packed, family, {} if choice is None else choice.describe())


def _transposed_window(
    node: Node, kernel: tuple[int, ...], source: tuple[int, ...], output: tuple[int, ...]
) -> tuple[Window, tuple[int, ...]]:
    """The window of a ConvTranspose node and its output padding; pads follow from the output where it is given."""
    rank = len(kernel)
    strides = tuple(node.attribute("strides") or [1] * rank)
    dilations = tuple(node.attribute("dilations") or [1] * rank)
    extra = tuple(node.attribute("output_padding") or [0] * rank)
    mode = node.attribute("auto_pad", "NOTSET")
    flat = node.attribute("pads") or [0] * (2 * rank)
    pads = list(zip(flat[:rank], flat[rank:], strict=True))
    if node.attribute("output_shape") or mode in ("SAME_UPPER", "SAME_LOWER"):
        pads = []
        for i in range(rank):
            full = strides[i] * (source[i] - 1) + extra[i] + (kernel[i] - 1) * dilations[i] + 1
            total = max(0, full - output[i])
            small, large = total // 2, total - total // 2
            pads.append((small, large) if mode == "SAME_UPPER" else (large, small))
    return Window(kernel, strides, dilations, tuple(pads)), extra


def _store(e: Emitter, epilogue: Epilogue, y: Array, index: Index, value: Expr, residual: Array | None) -> None:
    """The rest of the epilogue of one element, and its store."""
    if residual is not None:
        value = value + residual.load(index)
    y.store(index, epilogue.apply(e.let(value)) if epilogue.activation else value)


def _direct_transposed(e: Emitter, spec: DirectConvSpec, *arrays: Array) -> None:
    """Each output pixel gathers the input pixels whose taps land on it."""
    x, w, y = arrays[0], arrays[1], arrays[-1]
    bias = arrays[2] if spec.epilogue.bias else None
    residual = arrays[-2] if spec.epilogue.residual else None
    n, channels, *space = spec.y
    per_group, inner = channels // spec.groups, spec.x[1] // spec.groups
    kind = str(y.buffer.dtype)
    x_strides, w_strides, y_strides = contiguous(spec.x), contiguous(spec.w), contiguous(spec.y)

    def pixel(indices: list[Expr]) -> None:
        image, channel, *place = indices
        group = e.let(tirx.truncdiv(channel, per_group))
        acc = e.registers(1, 1, kind)
        acc[0] = const(0, kind)

        def tap(taps: list[Expr]) -> None:
            at, inside = [], []
            for p, k, d, s, pad, extent in zip(
                place, taps, spec.window.dilations, spec.window.strides, spec.window.pads, spec.x[2:], strict=True
            ):
                reach = e.let(p + pad[0] - k * d)
                source = e.let(tirx.truncdiv(reach, s))
                at.append(source)
                inside += [reach >= 0, tirx.EQ(source * s, reach), source < extent]
            with e.when(tirx.all(*inside)), e.loop(inner) as ci:
                value = x.load(flat_index([image, group * inner + ci, *at], x_strides))
                weight = w.load(flat_index([group * inner + ci, channel - group * per_group, *taps], w_strides))
                acc[0] = acc[0] + value * weight

        nest(e, spec.window.kernel, tap)
        value = acc[0] if bias is None else acc[0] + bias.load(channel)
        _store(e, spec.epilogue, y, e.let(flat_index(indices, y_strides)), value, residual)

    nest(e, (n, channels, *space), pixel, parallel=True)


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
        value = acc[0] if bias is None else acc[0] + bias.load(channel)
        _store(e, spec.epilogue, y, e.let(flat_index(indices, y_strides)), value, residual)

    nest(e, (n, channels, *space), pixel, parallel=n > 1 or channels > 1)
