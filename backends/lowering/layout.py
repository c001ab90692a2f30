"""Operators that only move elements: views where memory allows it, one strided copy otherwise.

Concat lets its producers write straight into the joined buffer when each part is one contiguous run of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tvm import tirx

from backends.lowering.context import Lowering
from backends.lowering.elementwise import (
    PARALLEL_WORK,
    broadcast,
    contiguous,
    flat_index,
    nest,
    strided_map,
)
from backends.lowering.expressions import const
from backends.lowering.program import Buffer
from backends.lowering.rules import lowering, no_lowering
from backends.schedules.emit import Array, Emitter, Expr
from compiler.ir.graph import Node, Value


def shape_of(value: Value | None) -> tuple[int, ...]:
    """The static shape; preparation has made sure that there is one."""
    assert value is not None
    shape = value.static_shape
    assert shape is not None, value.name
    return shape


def known(node: Node, index: int, default: Sequence[int] | None = None) -> list[int] | None:
    """The integers of a constant input, `default` where it is omitted; E_NO_LOWERING where it is computed."""
    value = node.input(index)
    if value is None:
        return None if default is None else list(default)
    if not value.is_constant:
        raise no_lowering(node, f"input {index} ({value.name!r}) of {node.op} must be constant")
    return [int(i) for i in value.numpy().reshape(-1)]


def copy(lower: Lowering, source: Buffer, target: Buffer) -> None:
    """Copy all elements, in order."""
    strided_map(lower, (source.size,), [(source, (1,), 0)], (target, (1,), 0))


def is_contiguous(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """True when the strides walk one run of memory in order."""
    return all(d == 1 or s == c for d, s, c in zip(shape, strides, contiguous(shape), strict=True))


def read_strided(lower: Lowering, output: Value, source: Buffer, strides: Sequence[int], offset: int) -> None:
    """Bind `output` to the elements of `source` that strides and offset pick: a view where they are one run."""
    shape = shape_of(output)
    if is_contiguous(shape, strides) and source.data is None:
        lower.bind(output, lower.view(source, shape, offset=offset))
        return
    target = lower.result(output)
    strided_map(lower, shape, [(source, tuple(strides), offset)], (target, contiguous(shape), 0))


@lowering("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity")
def _view(node: Node, lower: Lowering) -> None:
    lower.alias(node.outputs[0], node.input(0))


@lowering("Dropout")
def _dropout(node: Node, lower: Lowering) -> None:
    training = node.input(2)
    if training is not None and not (training.is_constant and not training.numpy().any()):
        ratio = node.input(1)
        if ratio is None or not ratio.is_constant or ratio.numpy().any():
            raise no_lowering(node, "Dropout in training mode cannot be compiled")
    lower.alias(node.outputs[0], node.input(0))
    if len(node.outputs) > 1 and node.outputs[1].name:
        lower.bind(node.outputs[1], lower.constant(np.ones(shape_of(node.outputs[1]), bool)))


@lowering("BitCast")
def _bit_cast(node: Node, lower: Lowering) -> None:
    output = node.outputs[0]
    lower.bind(output, lower.view(lower.buffer(node.input(0)), shape_of(output), dtype=output.dtype))


@lowering("EyeLike", "ConstantOfShape")
def _constant(node: Node, lower: Lowering) -> None:
    output = node.outputs[0]
    shape = shape_of(output)
    if node.op == "EyeLike":
        array = np.eye(shape[0], shape[1], node.attribute("k", 0)).astype(output.dtype)
    else:
        fill = node.attribute("value", np.zeros(1, np.float32))
        array = np.full(shape, np.asarray(fill).reshape(()), output.dtype)
    lower.bind(output, lower.constant(array, output.name))


@lowering("Transpose")
def _transpose(node: Node, lower: Lowering) -> None:
    source = lower.buffer(node.input(0))
    rank = len(source.shape)
    order = node.attribute("perm") or list(range(rank))[::-1]
    strides = contiguous(source.shape)
    read_strided(lower, node.outputs[0], source, [strides[a] for a in order], 0)


@lowering("Expand")
def _expand(node: Node, lower: Lowering) -> None:
    source = lower.buffer(node.input(0))
    read_strided(lower, node.outputs[0], source, broadcast(source.shape, shape_of(node.outputs[0])), 0)


@lowering("Tile")
def _tile(node: Node, lower: Lowering) -> None:
    source = lower.buffer(node.input(0))
    repeats = known(node, 1)
    assert repeats is not None
    target = lower.result(node.outputs[0])
    strides = contiguous(source.shape)
    extents = [d for pair in zip(repeats, source.shape, strict=True) for d in pair]
    reads = tuple(s for stride in strides for s in (0, stride))
    strided_map(lower, extents, [(source, reads, 0)], (target, contiguous(extents), 0))


@lowering("Slice")
def _slice(node: Node, lower: Lowering) -> None:
    source = lower.buffer(node.input(0))
    starts, ends = known(node, 1), known(node, 2)
    assert starts is not None and ends is not None
    axes = known(node, 3, range(len(starts)))
    steps = known(node, 4, [1] * len(starts))
    assert axes is not None and steps is not None
    strides = list(contiguous(source.shape))
    offset = 0
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        first = range(source.shape[axis])[slice(start, end if end > -(1 << 62) else None, step)]
        offset += first.start * strides[axis]
        strides[axis] *= step
    if math.prod(shape_of(node.outputs[0])) == 0:
        lower.result(node.outputs[0])
        return
    read_strided(lower, node.outputs[0], source, strides, offset)


@lowering("Split")
def _split(node: Node, lower: Lowering) -> None:
    source = lower.buffer(node.input(0))
    axis = node.attribute("axis", 0)
    strides = contiguous(source.shape)
    position = 0
    for value in node.outputs:
        if value.name:
            read_strided(lower, value, source, strides, position * strides[axis])
            position += shape_of(value)[axis]


@lowering("Concat")
def _concat(node: Node, lower: Lowering) -> None:
    output = node.outputs[0]
    shape = shape_of(output)
    axis = node.attribute("axis", 0) % len(shape)
    joined = lower.result(output)
    strides = contiguous(shape)
    runs = math.prod(shape[:axis]) == 1
    position = 0
    for value in node.inputs:
        part = lower.buffer(value)
        offset = position * strides[axis]
        position += part.shape[axis]
        if not part.size:
            continue
        root, start = part.root()
        whole = root.role == "temporary" and start == 0 and root.nbytes == part.nbytes and root is not joined
        if runs and whole:
            root.base, root.offset = joined, offset * joined.dtype.itemsize
        else:
            strided_map(lower, part.shape, [(part, contiguous(part.shape), 0)], (joined, strides, offset))


@lowering("DepthToSpace")
def _depth_to_space(node: Node, lower: Lowering) -> None:
    source = lower.buffer(node.input(0))
    n, c, h, w = source.shape
    b = node.attribute("blocksize")
    if node.attribute("mode", "DCR") == "DCR":
        split, order = (n, b, b, c // (b * b), h, w), (0, 3, 4, 1, 5, 2)
    else:
        split, order = (n, c // (b * b), b, b, h, w), (0, 1, 4, 2, 5, 3)
    _shuffle(lower, node, source, split, order)


@lowering("SpaceToDepth")
def _space_to_depth(node: Node, lower: Lowering) -> None:
    source = lower.buffer(node.input(0))
    n, c, h, w = source.shape
    b = node.attribute("blocksize")
    order = (0, 3, 5, 1, 2, 4) if node.attribute("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
    _shuffle(lower, node, source, (n, c, h // b, b, w // b, b), order)


def _shuffle(lower: Lowering, node: Node, source: Buffer, split: Sequence[int], order: Sequence[int]) -> None:
    """Reshape to `split`, transpose by `order`, reshape to the output, as one copy."""
    target = lower.result(node.outputs[0])
    strides = contiguous(split)
    extents = [split[a] for a in order]
    strided_map(lower, extents, [(source, tuple(strides[a] for a in order), 0)], (target, contiguous(extents), 0))


@dataclass(frozen=True)
class PadSpec:
    """y of shape `output` is x of shape `source` shifted by `before`, filled according to `mode`."""

    source: tuple[int, ...]
    output: tuple[int, ...]
    before: tuple[int, ...]
    mode: str
    value: float | None
    """None: the value is read from the second parameter."""


@lowering("Pad")
def _pad(node: Node, lower: Lowering) -> None:
    source = lower.buffer(node.input(0))
    shape = shape_of(node.outputs[0])
    pads = known(node, 1)
    assert pads is not None
    rank = len(shape)
    axes = [a % rank for a in known(node, 3, range(rank)) or ()]
    before = [0] * rank
    for i, axis in enumerate(axes):
        before[axis] = pads[i]
    fill = node.input(2)
    reads = [source]
    value: float | None = 0.0
    if fill is not None and fill.data is not None and fill.data.size:
        value = fill.numpy().reshape(()).item()
    elif fill is not None and not fill.is_constant:
        value = None
        reads.append(lower.buffer(fill))
    spec = PadSpec(source.shape, shape, tuple(before), node.attribute("mode", "constant"), value)
    lower.call(_pad_kernel, spec, reads, [lower.result(node.outputs[0])])


def _pad_kernel(e: Emitter, spec: PadSpec, *arrays: Array) -> None:
    x, y = arrays[0], arrays[-1]
    kind = str(x.buffer.dtype)
    strides, out_strides = contiguous(spec.source), contiguous(spec.output)

    def body(indices: list[Expr]) -> None:
        places, inside = [], []
        for index, before, extent, length in zip(indices, spec.before, spec.source, spec.output, strict=True):
            place = index - before if before else index
            if spec.mode == "constant":
                if before > 0:
                    inside.append(place >= 0)
                if length - before > extent:
                    inside.append(place < extent)
            elif before > 0 or length - before > extent:
                place = _outside(spec.mode, place, extent)
            places.append(e.let(place))
        value: Expr = x.load(flat_index(places, strides))
        if inside:
            fill = const(spec.value, kind) if spec.value is not None else arrays[1].load(0)
            value = tirx.if_then_else(tirx.all(*inside) if len(inside) > 1 else inside[0], value, fill)
        y.store(flat_index(indices, out_strides), value)

    nest(e, spec.output, body, parallel=math.prod(spec.output) >= PARALLEL_WORK)


def _outside(mode: str, place: Expr, extent: int) -> Expr:
    """The index inside [0, extent) that a padded index stands for."""
    if mode == "edge" or extent == 1:
        return tirx.max(tirx.min(place, extent - 1), 0)
    if mode == "wrap":
        return _modulo(place, extent)
    folded = _modulo(place, 2 * (extent - 1))
    return tirx.min(folded, 2 * (extent - 1) - folded)


def _modulo(place: Expr, extent: int) -> Expr:
    """The remainder in [0, extent), also of negative numbers."""
    rest = tirx.truncmod(place, tirx.IntImm("int32", extent))
    return tirx.Select(rest < 0, rest + extent, rest)
