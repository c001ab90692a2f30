"""Normalizations: by rows (Layer, Instance, Group, RMS), by stored statistics (BatchNormalization), locally (LRN)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tvm import tirx

from backends.lowering.context import Lowering
from backends.lowering.elementwise import (
    PARALLEL_WORK,
    broadcast,
    contiguous,
    emit_program,
    flat_index,
    nest,
    step,
    strided_map,
)
from backends.lowering.expressions import const, exp, log, sqrt
from backends.lowering.layout import shape_of
from backends.lowering.program import Buffer
from backends.lowering.reduction import PARTIALS, row_reduce
from backends.lowering.rules import lowering, no_lowering
from backends.schedules.emit import Array, Emitter, Expr, Index, splat
from backends.schedules.reduce import fold, pieces
from compiler.ir.graph import Node


@dataclass(frozen=True)
class NormalizeSpec:
    """Each of batch x rows rows has groups x inner elements; y = (x - mean) / sqrt(var + epsilon) * scale + bias.

    affine: strides of scale and bias over (row, group, inner), None without them.
    """

    batch: int
    rows: int
    groups: int
    inner: int
    affine: tuple[int, int, int] | None
    bias: bool
    centered: bool
    epsilon: float
    mean_output: bool
    deviation_output: bool
    dtype: str


@lowering("LayerNormalization", "RMSNormalization")
def _layer_norm(node: Node, lower: Lowering) -> None:
    source = lower.buffer(node.input(0))
    axis = node.attribute("axis", -1) % len(source.shape)
    rows, inner = math.prod(source.shape[:axis]), math.prod(source.shape[axis:])
    reads = [source, _spread(lower, lower.buffer(node.input(1)), source.shape[axis:])]
    if node.input(2) is not None:
        reads.append(_spread(lower, lower.buffer(node.input(2)), source.shape[axis:]))
    extra = [v.name != "" for v in node.outputs[1:]] + [False, False]
    spec = NormalizeSpec(
        rows,
        1,
        1,
        inner,
        (0, 0, 1),
        len(reads) == 3,
        node.op == "LayerNormalization",
        node.attribute("epsilon", 1e-5),
        extra[0],
        extra[1],
        str(source.dtype),
    )
    lower.call(_normalize, spec, reads, [lower.result(v) for v in node.outputs if v.name])


def _spread(lower: Lowering, buffer: Buffer, shape: tuple[int, ...]) -> Buffer:
    """A parameter in the whole normalized shape."""
    if buffer.size == math.prod(shape):
        return buffer
    if buffer.data is not None:
        return lower.constant(np.broadcast_to(buffer.data, shape), buffer.name)
    full = lower.temporary(shape, buffer.dtype, buffer.name)
    strided_map(lower, shape, [(buffer, broadcast(buffer.shape, shape), 0)], (full, contiguous(shape), 0))
    return full


@lowering("InstanceNormalization")
def _instance_norm(node: Node, lower: Lowering) -> None:
    source = lower.buffer(node.input(0))
    n, c = source.shape[:2]
    epsilon = node.attribute("epsilon", 1e-5)
    kind = str(source.dtype)
    spec = NormalizeSpec(n, c, 1, source.size // (n * c), (1, 0, 0), True, True, epsilon, False, False, kind)
    _by_channel(node, lower, spec)


@lowering("GroupNormalization")
def _group_norm(node: Node, lower: Lowering) -> None:
    source = lower.buffer(node.input(0))
    n, c = source.shape[:2]
    rows = node.attribute("num_groups")
    epsilon = node.attribute("epsilon", 1e-5)
    kind, pixels = str(source.dtype), source.size // (n * c)
    if shape_of(node.input(1))[0] != c:  # opset 18 to 20: one scale per group
        affine = (1, 0, 0)
    else:
        affine = (c // rows, 1, 0)
    spec = NormalizeSpec(n, rows, c // rows, pixels, affine, True, True, epsilon, False, False, kind)
    _by_channel(node, lower, spec)


def _by_channel(node: Node, lower: Lowering, spec: NormalizeSpec) -> None:
    reads = [lower.buffer(v) for v in node.inputs]
    lower.call(_normalize, spec, reads, [lower.result(node.outputs[0])])


def _normalize(e: Emitter, spec: NormalizeSpec, x: Array, *rest: Array) -> None:
    arrays = list(rest)
    scale = arrays.pop(0) if spec.affine else None
    bias = arrays.pop(0) if spec.bias else None
    y = arrays.pop(0)
    count = spec.groups * spec.inner

    def row(indices: list[Expr]) -> None:
        image, number = indices
        line = e.let(flat_index([image, number], (spec.rows, 1)))
        start = e.let(line * count)
        mean: Expr = const(0, spec.dtype)
        if spec.centered:
            total = _row_sum(e, count, lambda i, width: x.load(start + i, width), spec.dtype)
            mean = e.let(total * const(1 / count, spec.dtype))

        def squared(i: Index, width: int) -> Expr:
            distance = e.name(x.load(start + i, width) - splat(mean, width))
            return distance * distance

        variance = _row_sum(e, count, squared, spec.dtype) * const(1 / count, spec.dtype)
        inverse = e.let(const(1, spec.dtype) / sqrt(variance + const(spec.epsilon, spec.dtype)))
        with e.loop(spec.groups) as group:
            first = e.let(start + group * spec.inner)

            def finish(i: Index, width: int, group: Expr = group, first: Expr = first) -> None:
                value = (x.load(first + i, width) - splat(mean, width)) * splat(inverse, width)
                if spec.affine is not None and scale is not None:
                    place = e.let(flat_index([number, group, i], spec.affine))
                    each = spec.affine[-1] == 1
                    value = value * (scale.load(place, width) if each else scale.splat(place, width))
                    if bias is not None:
                        value = value + (bias.load(place, width) if each else bias.splat(place, width))
                y.store(first + i, value, width)

            pieces(e, spec.inner, PARTIALS if spec.dtype == "float32" else 1, finish)
        if spec.mean_output:
            arrays[0].store(line, mean)
        if spec.deviation_output:
            arrays[-1].store(line, inverse)

    rows = (spec.batch, spec.rows)
    nest(e, rows, row, parallel=math.prod(rows) * count >= PARALLEL_WORK // 4)


def _row_sum(e: Emitter, count: int, term: Callable[[Index, int], Expr], dtype: str) -> Expr:
    """The sum of term(i, width), terms i … i + width - 1 as a vector, over [0, count); floats by vectors."""
    if dtype == "float32":
        return fold(e, count, PARTIALS, term, lambda a, b: a + b, 0.0)
    return row_reduce(e, count, lambda i: term(i, 1), "sum", dtype)


@lowering("BatchNormalization")
def _batch_norm(node: Node, lower: Lowering) -> None:
    if node.attribute("training_mode", 0):
        raise no_lowering(node, "BatchNormalization in training mode cannot be compiled")
    source = lower.buffer(node.input(0))
    kind = str(source.dtype)
    shape = (-1,) + (1,) * (len(source.shape) - 2)
    epsilon = ("constant", node.attribute("epsilon", 1e-5), kind)
    parameters = []
    for value in node.inputs[1:]:
        buffer = lower.buffer(value)
        parameters.append(lower.view(buffer, (buffer.size, *shape[1:])))
    program = (
        step("Add", 4, epsilon, dtype=kind),
        step("Sqrt", ~0, dtype=kind),
        step("Sub", 0, 3, dtype=kind),
        step("Div", ~2, ~1, dtype=kind),
        step("Mul", ~3, 1, dtype=kind),
        step("Add", ~4, 2, dtype=kind),
    )
    emit_program(lower, [source, *parameters], lower.result(node.outputs[0]), program)


@dataclass(frozen=True)
class LocalNormSpec:
    """y[c] = x[c] / (bias + alpha / size * sum over the `size` channels around c of x squared) ** beta."""

    n: int
    c: int
    pixels: int
    size: int
    alpha: float
    beta: float
    bias: float
    dtype: str


@lowering("LRN")
def _local_norm(node: Node, lower: Lowering) -> None:
    source = lower.buffer(node.input(0))
    n, c = source.shape[:2]
    spec = LocalNormSpec(
        n,
        c,
        source.size // (n * c),
        node.attribute("size"),
        node.attribute("alpha", 1e-4),
        node.attribute("beta", 0.75),
        node.attribute("bias", 1.0),
        str(source.dtype),
    )
    lower.call(_local_norm_kernel, spec, [source], [lower.result(node.outputs[0])])


def _local_norm_kernel(e: Emitter, spec: LocalNormSpec, x: Array, y: Array) -> None:
    def channel(indices: list[Expr]) -> None:
        image, c = indices
        start = e.let(flat_index([image, c], (spec.c * spec.pixels, spec.pixels)))
        low = e.let(tirx.max(c - (spec.size - 1) // 2, 0))
        high = e.let(tirx.min(c + spec.size // 2, spec.c - 1))
        with e.loop(spec.pixels) as i:
            y.store(start + i, const(0, spec.dtype))
        with e.loop(e.let(high - low + 1)) as k:
            line = e.let(flat_index([image, low + k], (spec.c * spec.pixels, spec.pixels)))
            with e.loop(spec.pixels) as i:
                value = e.let(x.load(line + i))
                y.store(start + i, y.load(start + i) + value * value)
        with e.loop(spec.pixels) as i:
            total = e.let(y.load(start + i) * const(spec.alpha / spec.size, spec.dtype) + const(spec.bias, spec.dtype))
            factor = exp(e.let(log(total) * const(-spec.beta, spec.dtype)))
            y.store(start + i, x.load(start + i) * factor)

    nest(e, (spec.n, spec.c), channel, parallel=spec.n * spec.c * spec.pixels >= PARALLEL_WORK // 4)
