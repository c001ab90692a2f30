"""Pooling over windows of any rank, and over whole images."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tvm import tirx

from backends.lowering.context import Lowering
from backends.lowering.convolution import Window, planar_shape, planar_window, window_of
from backends.lowering.elementwise import PARALLEL_WORK, contiguous, flat_index, nest
from backends.lowering.expressions import EXPRESSIONS, cast, const, exp, log, lowest, select, sqrt
from backends.lowering.layout import shape_of
from backends.lowering.reduction import row_reduce
from backends.lowering.rules import lowering
from backends.schedules import specs
from backends.schedules.emit import Array, Emitter, Expr
from backends.schedules.pool import global_pool, pool2d
from compiler.ir.graph import Node


@dataclass(frozen=True)
class PoolSpec:
    """y[n, c, p] = pool over k of x[n, c, p * stride + k * dilation - pad]; p is the exponent of LpPool."""

    x: tuple[int, ...]
    y: tuple[int, ...]
    window: Window
    mode: str
    include_pad: bool
    p: int
    column_major: bool
    dtype: str


@lowering("MaxPool", "AveragePool", "LpPool")
def _pool(node: Node, lower: Lowering) -> None:
    source = lower.buffer(node.input(0))
    shape = shape_of(node.outputs[0])
    window = window_of(node, tuple(node.attribute("kernel_shape")), source.shape[2:], shape[2:])
    if _pool2d(node, lower, window):
        return
    spec = PoolSpec(
        source.shape,
        shape,
        window,
        node.op,
        bool(node.attribute("count_include_pad", 0)),
        node.attribute("p", 2),
        bool(node.attribute("storage_order", 0)),
        str(source.dtype),
    )
    writes = [lower.result(v) for v in node.outputs if v.name]
    lower.call(_pool_kernel, spec, [source], writes)


def _pool2d(node: Node, lower: Lowering, window: Window) -> bool:
    """Pool images of up to two axes by schedule, where there is one."""
    source, shape = lower.buffer(node.input(0)), shape_of(node.outputs[0])
    target = lower.scheduled(source.dtype)
    if node.op == "LpPool" or len(shape) > 4 or target is None:
        return False
    if sum(v.name != "" for v in node.outputs) > 1:
        return False
    n, c, height, width = planar_shape(source.shape)
    spec = specs.PoolSpec(
        "max" if node.op == "MaxPool" else "average",
        n,
        c,
        height,
        width,
        *planar_window(window),
        bool(node.attribute("ceil_mode", 0)),
        bool(node.attribute("count_include_pad", 0)),
    )
    if (spec.out_height, spec.out_width) != planar_shape(shape)[2:]:
        return False
    kernel = pool2d(spec, target, lower.parallel)
    lower.schedule(kernel, {"x": source, "y": lower.result(node.outputs[0])}, kernel.pack(), "pool2d")
    return True


def _pool_kernel(e: Emitter, spec: PoolSpec, x: Array, y: Array, where: Array | None = None) -> None:
    space = spec.x[2:]
    strides, out_strides = contiguous(spec.x), contiguous(spec.y)
    start = lowest(spec.dtype) if spec.mode == "MaxPool" else const(0, spec.dtype)

    def pixel(indices: list[Expr]) -> None:
        image, channel, *place = indices
        acc, count, best = e.registers(1, 1, spec.dtype), e.registers(1, 1, "int32"), e.registers(1, 1, "int32")
        acc[0], count[0], best[0] = start, tirx.IntImm("int32", 0), tirx.IntImm("int32", 0)

        def tap(taps: list[Expr]) -> None:
            at = _positions(e, spec.window, place, taps)
            if spec.include_pad:
                ends = [tirx.all(a < d + pad[1]) for a, d, pad in zip(at, space, spec.window.pads, strict=True)]
                with e.when(_all(ends)):
                    count[0] = count[0] + 1
            with e.when(_all([tirx.all(a >= 0, a < d) for a, d in zip(at, space, strict=True)])):
                value = e.let(x.load(flat_index([image, channel, *at], strides)))
                if not spec.include_pad:
                    count[0] = count[0] + 1
                if spec.mode == "MaxPool":
                    with e.when(tirx.any(value > acc[0], tirx.EQ(count[0], 1))):
                        acc[0] = value
                        if where is not None:
                            best[0] = _recorded(spec, image, channel, at)
                else:
                    acc[0] = acc[0] + (value if spec.mode == "AveragePool" else _powered(e, value, spec.p, spec.dtype))

        nest(e, spec.window.kernel, tap)
        result = acc[0]
        if spec.mode == "AveragePool":
            result = result / tirx.max(count[0], 1).astype(spec.dtype)
        elif spec.mode == "LpPool":
            result = _root(e, result, spec.p, spec.dtype)
        y.store(flat_index(indices, out_strides), result)
        if where is not None:
            where.store(flat_index(indices, out_strides), best[0].astype("int64"))

    nest(e, spec.y, pixel, parallel=math.prod(spec.y) * math.prod(spec.window.kernel) >= PARALLEL_WORK)


def _positions(e: Emitter, window: Window, place: list[Expr], taps: list[Expr]) -> list[Expr]:
    return [
        e.let(p * s + k * d - pad[0])
        for p, s, k, d, pad in zip(place, window.strides, taps, window.dilations, window.pads, strict=True)
    ]


def _all(conditions: list[Expr]) -> Expr:
    return tirx.all(*conditions) if len(conditions) > 1 else conditions[0]


def _recorded(spec: PoolSpec, image: Expr, channel: Expr, at: list[Expr]) -> Expr:
    """The index that MaxPool's second output records: flat in the input, optionally column-major per image."""
    strides = list(contiguous(spec.x))
    if spec.column_major:
        strides[2:] = list(contiguous(spec.x[2:][::-1]))[::-1]
    return flat_index([image, channel, *at], strides)


def _powered(e: Emitter, value: Expr, p: int, kind: str) -> Expr:
    size = e.let(EXPRESSIONS["Abs"]({}, [value], kind))
    return EXPRESSIONS["Pow"]({}, [size, const(p, kind)], kind)


def _root(e: Emitter, value: Expr, p: int, kind: str) -> Expr:
    if p == 1:
        return value
    if p == 2:
        return sqrt(value)
    total = e.let(value)
    return select(total > const(0, kind), exp(e.let(log(total) * const(1 / p, kind))), const(0, kind))


@dataclass(frozen=True)
class GlobalPoolSpec:
    """y[row] = pool of the `pixels` elements of each row."""

    rows: int
    pixels: int
    mode: str
    p: int
    dtype: str


@lowering("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def _global_pool(node: Node, lower: Lowering) -> None:
    source = lower.buffer(node.input(0))
    rows = math.prod(source.shape[:2])
    kinds = {"GlobalAveragePool": "average", "GlobalMaxPool": "max"}
    target = lower.scheduled(source.dtype)
    if node.op in kinds and target is not None:
        kernel = global_pool(kinds[node.op], rows, source.size // rows, target, lower.parallel)
        lower.schedule(kernel, {"x": source, "y": lower.result(node.outputs[0])}, kernel.pack(), "global_pool")
        return
    spec = GlobalPoolSpec(rows, source.size // rows, node.op, node.attribute("p", 2), str(source.dtype))
    lower.call(_global_kernel, spec, [source], [lower.result(node.outputs[0])])


def _global_kernel(e: Emitter, spec: GlobalPoolSpec, x: Array, y: Array) -> None:
    def row(indices: list[Expr]) -> None:
        start = e.let(indices[0] * spec.pixels)

        def term(i: Expr) -> Expr:
            value = x.load(start + i)
            return _powered(e, e.let(value), spec.p, spec.dtype) if spec.mode == "GlobalLpPool" else value

        total = row_reduce(e, spec.pixels, term, "max" if spec.mode == "GlobalMaxPool" else "sum", spec.dtype)
        if spec.mode == "GlobalAveragePool":
            total = total * const(1 / spec.pixels, spec.dtype)
        elif spec.mode == "GlobalLpPool":
            total = _root(e, total, spec.p, spec.dtype)
        y.store(indices[0], cast(total, spec.dtype))

    nest(e, (spec.rows,), row, parallel=spec.rows * spec.pixels >= PARALLEL_WORK)
