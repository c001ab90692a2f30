"""Gather, scatter, one-hot, triangles and top-k: operators whose addresses come from data.

Indices count from the end when negative and are clamped to the axis, so that no kernel reads or writes outside
its arrays whatever the data says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from tvm import tirx

from backends.lowering.context import Lowering
from backends.lowering.elementwise import PARALLEL_WORK, contiguous, flat_index, nest
from backends.lowering.expressions import EXPRESSIONS, const, select
from backends.lowering.layout import known, read_strided, shape_of
from backends.lowering.reduction import AxisSpec, axis_spec
from backends.lowering.rules import lowering, no_lowering
from backends.schedules.emit import Array, Emitter, Expr
from compiler.ir.graph import Node


@dataclass(frozen=True)
class IndexSpec:
    """Shapes of data, indices and result, the axis (or number of batch axes), and the way to combine."""

    data: tuple[int, ...]
    indices: tuple[int, ...]
    output: tuple[int, ...]
    axis: int = 0
    mode: str = "none"
    dtype: str = "float32"


def _place(e: Emitter, raw: Expr, extent: int) -> Expr:
    """An index as data gives it, inside [0, extent)."""
    index = e.let(raw.astype("int32"))
    wrapped = select(index < 0, index + extent, index)
    return e.let(tirx.max(tirx.min(wrapped, extent - 1), 0))


@lowering("Gather")
def _gather(node: Node, lower: Lowering) -> None:
    data = lower.buffer(node.input(0))
    axis = node.attribute("axis", 0) % len(data.shape)
    indices = node.input(1)
    assert indices is not None
    strides = contiguous(data.shape)
    if indices.is_constant and indices.data is not None and indices.data.size == 1:
        position = int(indices.numpy().reshape(())) % data.shape[axis]
        inserted = (0,) * len(shape_of(indices))
        read_strided(
            lower, node.outputs[0], data, [*strides[:axis], *inserted, *strides[axis + 1 :]], position * strides[axis]
        )
        return
    spec = IndexSpec(data.shape, shape_of(indices), shape_of(node.outputs[0]), axis)
    lower.call(_gather_kernel, spec, [data, lower.buffer(indices)], [lower.result(node.outputs[0])])


def _gather_kernel(e: Emitter, spec: IndexSpec, x: Array, index: Array, y: Array) -> None:
    extent = spec.data[spec.axis]
    outer, inner = math.prod(spec.data[: spec.axis]), math.prod(spec.data[spec.axis + 1 :])
    count = math.prod(spec.indices)

    def body(indices: list[Expr]) -> None:
        row, i = indices
        source = e.let((row * extent + _place(e, index.load(i), extent)) * inner)
        target = e.let((row * count + i) * inner)
        with e.loop(inner) as k:
            y.store(target + k, x.load(source + k))

    nest(e, (outer, count), body, parallel=outer * count * inner >= PARALLEL_WORK)


@lowering("Compress")
def _compress(node: Node, lower: Lowering) -> None:
    data = lower.buffer(node.input(0))
    condition = node.input(1)
    if condition is None or not condition.is_constant:
        raise no_lowering(node, "the condition of Compress must be constant")
    chosen = np.flatnonzero(condition.numpy()).astype(np.int64)
    shape = data.shape if "axis" in node.attributes else (data.size,)
    axis = node.attribute("axis", 0) % len(shape)
    spec = IndexSpec(shape, chosen.shape, shape_of(node.outputs[0]), axis)
    lower.call(_gather_kernel, spec, [data, lower.constant(chosen, "chosen")], [lower.result(node.outputs[0])])


@lowering("GatherElements")
def _gather_elements(node: Node, lower: Lowering) -> None:
    data, index = lower.buffer(node.input(0)), lower.buffer(node.input(1))
    axis = node.attribute("axis", 0) % len(data.shape)
    spec = IndexSpec(data.shape, index.shape, index.shape, axis)
    lower.call(_gather_elements_kernel, spec, [data, index], [lower.result(node.outputs[0])])


def _gather_elements_kernel(e: Emitter, spec: IndexSpec, x: Array, index: Array, y: Array) -> None:
    strides, steps = contiguous(spec.data), contiguous(spec.indices)

    def body(indices: list[Expr]) -> None:
        flat = e.let(flat_index(indices, steps))
        place = list(indices)
        place[spec.axis] = _place(e, index.load(flat), spec.data[spec.axis])
        y.store(flat, x.load(flat_index(place, strides)))

    nest(e, spec.indices, body, parallel=math.prod(spec.indices) >= PARALLEL_WORK)


@lowering("GatherND")
def _gather_nd(node: Node, lower: Lowering) -> None:
    data, index = lower.buffer(node.input(0)), lower.buffer(node.input(1))
    spec = IndexSpec(data.shape, index.shape, shape_of(node.outputs[0]), node.attribute("batch_dims", 0))
    lower.call(_gather_nd_kernel, spec, [data, index], [lower.result(node.outputs[0])])


def _gather_nd_kernel(e: Emitter, spec: IndexSpec, x: Array, index: Array, y: Array) -> None:
    width = spec.indices[-1]
    strides = contiguous(spec.data)
    inner = math.prod(spec.data[spec.axis + width :])
    outer = spec.indices[:-1]
    steps = contiguous(spec.indices)

    def body(indices: list[Expr]) -> None:
        row = e.let(flat_index(indices, steps[:-1]))
        source = flat_index(indices[: spec.axis], strides[: spec.axis])
        for k in range(width):
            place = _place(e, index.load(row + k), spec.data[spec.axis + k])
            source = e.let(source + place * strides[spec.axis + k])
        target = e.let(flat_index(indices, contiguous(outer)) * inner)
        with e.loop(inner) as k:
            y.store(target + k, x.load(source + k))

    nest(e, outer, body)


@lowering("ScatterElements", "Scatter")
def _scatter_elements(node: Node, lower: Lowering) -> None:
    data, index, updates = (lower.buffer(v) for v in node.inputs)
    axis = node.attribute("axis", 0) % len(data.shape)
    mode = node.attribute("reduction", "none")
    spec = IndexSpec(data.shape, index.shape, data.shape, axis, mode, str(data.dtype))
    lower.call(_scatter_elements_kernel, spec, [data, index, updates], [lower.result(node.outputs[0])])


_COMBINE = {"add": "Add", "mul": "Mul", "max": "Max", "min": "Min"}


def _put(e: Emitter, spec: IndexSpec, y: Array, index: Expr, value: Expr) -> None:
    if spec.mode in _COMBINE:
        value = EXPRESSIONS[_COMBINE[spec.mode]]({}, [e.let(y.load(index)), e.let(value)], spec.dtype)
    y.store(index, value)


def _copy(e: Emitter, x: Array, y: Array, size: int) -> None:
    with e.loop(size) as i:
        y.store(i, x.load(i))


def _scatter_elements_kernel(e: Emitter, spec: IndexSpec, x: Array, index: Array, updates: Array, y: Array) -> None:
    _copy(e, x, y, math.prod(spec.data))
    strides, steps = contiguous(spec.data), contiguous(spec.indices)

    def body(indices: list[Expr]) -> None:
        flat = e.let(flat_index(indices, steps))
        place = list(indices)
        place[spec.axis] = _place(e, index.load(flat), spec.data[spec.axis])
        _put(e, spec, y, e.let(flat_index(place, strides)), updates.load(flat))

    nest(e, spec.indices, body)


@lowering("ScatterND")
def _scatter_nd(node: Node, lower: Lowering) -> None:
    data, index, updates = (lower.buffer(v) for v in node.inputs)
    mode = node.attribute("reduction", "none")
    spec = IndexSpec(data.shape, index.shape, data.shape, 0, mode, str(data.dtype))
    lower.call(_scatter_nd_kernel, spec, [data, index, updates], [lower.result(node.outputs[0])])


def _scatter_nd_kernel(e: Emitter, spec: IndexSpec, x: Array, index: Array, updates: Array, y: Array) -> None:
    _copy(e, x, y, math.prod(spec.data))
    width = spec.indices[-1]
    strides = contiguous(spec.data)
    inner = math.prod(spec.data[width:])
    with e.loop(math.prod(spec.indices[:-1])) as row:
        target: Expr = tirx.IntImm("int32", 0)
        for k in range(width):
            place = _place(e, index.load(row * width + k), spec.data[k])
            target = e.let(target + place * strides[k])
        with e.loop(inner) as i:
            _put(e, spec, y, e.let(target + i), updates.load(row * inner + i))


@lowering("OneHot")
def _one_hot(node: Node, lower: Lowering) -> None:
    index, values = lower.buffer(node.input(0)), lower.buffer(node.input(2))
    shape = shape_of(node.outputs[0])
    axis = node.attribute("axis", -1) % len(shape)
    spec = IndexSpec((2,), index.shape, shape, axis, dtype=str(index.dtype))
    lower.call(_one_hot_kernel, spec, [index, values], [lower.result(node.outputs[0])])


def _one_hot_kernel(e: Emitter, spec: IndexSpec, index: Array, values: Array, y: Array) -> None:
    depth = spec.output[spec.axis]
    strides, steps = contiguous(spec.output), contiguous(spec.indices)

    def body(indices: list[Expr]) -> None:
        others = [i for a, i in enumerate(indices) if a != spec.axis]
        raw = e.let(index.load(flat_index(others, steps)).astype("int32"))
        wanted = select(raw < 0, raw + depth, raw)
        y.store(
            flat_index(indices, strides),
            select(tirx.EQ(wanted, indices[spec.axis]), values.load(1), values.load(0)),
        )

    nest(e, spec.output, body, parallel=math.prod(spec.output) >= PARALLEL_WORK)


@lowering("Trilu")
def _trilu(node: Node, lower: Lowering) -> None:
    source = lower.buffer(node.input(0))
    shift = known(node, 1, [0])
    assert shift is not None
    limit = max(-(1 << 30), min(1 << 30, shift[0]))
    mode = "upper" if node.attribute("upper", 1) else "lower"
    spec = IndexSpec(source.shape, (), source.shape, limit, mode, str(source.dtype))
    lower.call(_trilu_kernel, spec, [source], [lower.result(node.outputs[0])])


def _trilu_kernel(e: Emitter, spec: IndexSpec, x: Array, y: Array) -> None:
    rows, columns = spec.data[-2:]
    kind = str(y.buffer.dtype)

    def body(indices: list[Expr]) -> None:
        matrix, i, j = indices
        flat = e.let((matrix * rows + i) * columns + j)
        kept = j - i >= spec.axis if spec.mode == "upper" else j - i <= spec.axis
        y.store(flat, select(kept, x.load(flat), const(0, kind)))

    nest(e, (math.prod(spec.data[:-2]), rows, columns), body)


@lowering("TopK")
def _top_k(node: Node, lower: Lowering) -> None:
    source = lower.buffer(node.input(0))
    count = known(node, 1)
    assert count is not None
    if count[0] > source.shape[node.attribute("axis", -1)]:
        raise no_lowering(node, f"TopK asks for {count[0]} elements, more than the axis has")
    mode = "largest" if node.attribute("largest", 1) else "smallest"
    spec = axis_spec(source, node.attribute("axis", -1), mode, (count[0],))
    shape = shape_of(node.outputs[0]) if node.outputs[0].name else shape_of(node.outputs[1])
    values = lower.result(node.outputs[0]) if node.outputs[0].name else lower.temporary(shape, source.dtype)
    second = node.outputs[1] if len(node.outputs) > 1 else None
    places = lower.result(second) if second is not None and second.name else lower.temporary(shape, "int64")
    lower.call(_top_k_kernel, spec, [source], [values, places])


def _top_k_kernel(e: Emitter, spec: AxisSpec, x: Array, values: Array, places: Array) -> None:
    """Insertion into a sorted list of k; of equal elements the first stays ahead."""
    (k,) = spec.flags

    def better(a: Expr, b: Expr) -> Expr:
        return a > b if spec.mode == "largest" else a < b

    def body(indices: list[Expr]) -> None:
        outer, inner = indices

        def slot(i: Expr) -> Expr:
            return (outer * k + i) * spec.inner + inner

        with e.loop(spec.n) as i:
            value = e.let(x.load((outer * spec.n + i) * spec.inner + inner))
            room = e.let(tirx.min(i, tirx.IntImm("int32", k - 1)))
            enters = tirx.any(i < k, better(value, values.load(slot(tirx.IntImm("int32", k - 1)))))
            with e.when(enters):
                free = e.registers(1, 1, "int32")
                free[0] = room
                with e.loop(room) as back:
                    place = e.let(room - back)
                    with e.when(better(value, values.load(slot(place - 1)))):
                        values.store(slot(place), values.load(slot(place - 1)))
                        places.store(slot(place), places.load(slot(place - 1)))
                        free[0] = place - 1
                last = e.let(free[0])
                values.store(slot(last), value)
                places.store(slot(last), i.astype("int64"))

    nest(e, (spec.outer, spec.inner), body, parallel=spec.outer * spec.n * spec.inner >= PARALLEL_WORK)
