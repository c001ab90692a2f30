"""Element-wise kernels, and everything that is one in disguise: copies, transposes, broadcasts, strided slices.

The one kernel here walks a box of loops in which every operand has a stride per loop; loops that all operands
walk contiguously are merged, so that most kernels end up with one or two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from backends.lowering.context import Lowering
from backends.lowering.expressions import EXPRESSIONS, Instruction, cast, evaluate
from backends.lowering.program import Buffer
from backends.lowering.rules import INTERNAL, lowering
from backends.schedules.emit import Array, Emitter, Expr, Index
from backends.schedules.rows import transpose_square
from compiler.ir.graph import Node, Value

Strides = tuple[int, ...]
IDENTITY = (Instruction("Identity", (), (("input", 0),), ""),)
PARALLEL_WORK = 1 << 15
"""Elements below which a kernel is not worth sharing among threads."""
CHUNK = 1 << 13
"""Elements of one contiguous run that one thread takes at a time."""
TILE = 16


@dataclass(frozen=True)
class Access:
    """How a loop nest reads or writes parameter `param`: element `offset + sum(stride * loop)`."""

    param: int
    strides: Strides
    offset: int
    dtype: str


@dataclass(frozen=True)
class MapSpec:
    """y[access] = program(x0[access], x1[access], …) over the box `extents`."""

    extents: tuple[int, ...]
    inputs: tuple[Access, ...]
    output: Access
    program: tuple[Instruction, ...]


def contiguous(shape: Sequence[int]) -> Strides:
    """Row-major strides in elements."""
    strides, step = [], 1
    for extent in reversed(shape):
        strides.append(step)
        step *= extent
    return tuple(reversed(strides))


def broadcast(shape: Sequence[int], to: Sequence[int]) -> Strides:
    """Strides that read a contiguous array of `shape` as `to` (numpy's rules): 0 where it repeats."""
    padded = (1,) * (len(to) - len(shape)) + tuple(shape)
    return tuple(0 if d == 1 else s for d, s in zip(padded, contiguous(padded), strict=True))


def strided_map(
    lower: Lowering,
    extents: Sequence[int],
    inputs: Sequence[tuple[Buffer, Strides, int]],
    output: tuple[Buffer, Strides, int],
    program: tuple[Instruction, ...] = IDENTITY,
) -> None:
    """Call the kernel `output[strides] = program(inputs[strides])`; offsets and strides are in elements."""
    if not math.prod(extents):
        return
    buffers: list[Buffer] = []
    for buffer, _, _ in inputs:
        if buffer not in buffers:
            buffers.append(buffer)
    loops, strides = _merge(extents, [s for _, s, _ in (*inputs, output)])
    accesses = [
        Access(buffers.index(b), s, offset, str(b.dtype))
        for (b, _, offset), s in zip(inputs, strides[:-1], strict=True)
    ]
    out, _, offset = output
    spec = MapSpec(loops, tuple(accesses), Access(len(buffers), strides[-1], offset, str(out.dtype)), program)
    same = [
        i
        for i, buffer in enumerate(buffers)
        if buffer.dtype.itemsize == out.dtype.itemsize
        and all(a.strides == spec.output.strides and a.offset == offset for a in accesses if a.param == i)
    ]
    lower.call(_map, spec, buffers, [out], in_place=tuple(same))


def _merge(extents: Sequence[int], strides: list[Strides]) -> tuple[tuple[int, ...], list[Strides]]:
    loops = [(d, tuple(s[i] for s in strides)) for i, d in enumerate(extents) if d != 1]
    merged: list[tuple[int, tuple[int, ...]]] = []
    for extent, steps in loops:
        if merged and all(outer == extent * inner for outer, inner in zip(merged[-1][1], steps, strict=True)):
            merged[-1] = (merged[-1][0] * extent, steps)
        else:
            merged.append((extent, steps))
    if not merged:
        merged = [(1, tuple(1 for _ in strides))]
    return tuple(d for d, _ in merged), [tuple(steps[k] for _, steps in merged) for k in range(len(strides))]


def _map(e: Emitter, spec: MapSpec, *arrays: Array) -> None:
    def body(indices: list[Expr]) -> None:
        values = [load(arrays[a.param], _at(a, indices), a.dtype) for a in spec.inputs]
        result = evaluate(e, spec.program, values)
        store(arrays[spec.output.param], _at(spec.output, indices), result)

    total = math.prod(spec.extents)
    last = spec.extents[-1]
    if len(spec.extents) == 1:
        chunked(e, last, total >= PARALLEL_WORK, lambda i: body([i]))
        return
    turned = _transposed_loop(spec)
    if turned is not None:
        _tiled(e, spec, turned, body, arrays)
        return
    nest(e, spec.extents, body, parallel=total >= PARALLEL_WORK)


def _at(access: Access, indices: Sequence[Index]) -> Expr:
    return flat_index(indices, access.strides, access.offset)


def flat_index(indices: Sequence[Index], strides: Sequence[int], offset: Index = 0) -> Expr:
    """offset + sum(index * stride) as an int32 expression."""
    total: Index = offset
    for index, stride in zip(indices, strides, strict=True):
        if stride == 0 or (isinstance(index, tirx.IntImm) and index.value == 0):
            continue
        term = index if stride == 1 else index * stride
        total = term if isinstance(total, int) and total == 0 else total + term
    return tirx.IntImm("int32", total) if isinstance(total, int) else total


def nest(e: Emitter, extents: Sequence[int], body: Any, *, parallel: bool = False) -> None:
    """Loops over a box around `body(indices)`; the first that turns may be shared among threads."""
    shared = next((i for i, extent in enumerate(extents) if extent != 1), 0) if parallel else -1

    def level(indices: list[Expr]) -> None:
        if len(indices) == len(extents):
            body(indices)
            return
        with e.loop(extents[len(indices)], parallel=len(indices) == shared) as index:
            level([*indices, index])

    level([])


def chunked(e: Emitter, extent: int, parallel: bool, body: Any) -> None:
    """One long loop around `body(index)`, cut into chunks for threads where it is worth it."""
    if not parallel or not e.parallel or extent <= CHUNK:
        with e.loop(extent) as index:
            body(index)
        return
    with e.loop(-(-extent // CHUNK), parallel=True) as chunk:
        start = e.let(chunk * CHUNK)
        with e.loop(e.let(tirx.min(tirx.IntImm("int32", CHUNK), extent - start))) as index:
            body(start + index)


def _transposed_loop(spec: MapSpec) -> int | None:
    """The loop that the only input walks contiguously while the output walks the last one, if they differ."""
    if len(spec.inputs) != 1 or spec.output.strides[-1] != 1 or abs(spec.inputs[0].strides[-1]) < TILE:
        return None
    candidates = [i for i, s in enumerate(spec.inputs[0].strides[:-1]) if s == 1]
    if not candidates or min(spec.extents[candidates[0]], spec.extents[-1]) < TILE:
        return None
    return candidates[0]


def _tiled(e: Emitter, spec: MapSpec, turned: int, body: Any, arrays: Sequence[Array]) -> None:
    """Square tiles over the two loops of a transpose, so that both sides stay in cache."""
    last = len(spec.extents) - 1
    outer = [d if i not in (turned, last) else -(-d // TILE) for i, d in enumerate(spec.extents)]
    copies = spec.program == IDENTITY and spec.inputs[0].dtype == spec.output.dtype == "float32"

    def tile(indices: list[Expr]) -> None:
        starts = {i: e.let(indices[i] * TILE) for i in (turned, last)}
        sizes = {i: e.let(tirx.min(tirx.IntImm("int32", TILE), spec.extents[i] - starts[i])) for i in (turned, last)}

        def one_by_one() -> None:
            with e.loop(sizes[turned]) as a, e.loop(sizes[last]) as b:
                inner = list(indices)
                inner[turned], inner[last] = starts[turned] + a, starts[last] + b
                body(inner)

        def whole() -> None:
            corner = [starts.get(i, index) for i, index in enumerate(indices)]
            source, target = arrays[spec.inputs[0].param], arrays[spec.output.param]
            read, write = e.let(_at(spec.inputs[0], corner)), e.let(_at(spec.output, corner))
            transpose_square(
                e, TILE, source, read, spec.inputs[0].strides[last], target, write, spec.output.strides[turned]
            )

        if copies:
            e.choose(tirx.all(sizes[turned] >= TILE, sizes[last] >= TILE), whole, one_by_one)
        else:
            one_by_one()

    nest(e, outer, tile, parallel=math.prod(spec.extents) >= PARALLEL_WORK)


def load(array: Array, index: Index, dtype: str) -> Expr:
    """One element as its logical type: a stored byte of a boolean becomes a TIR bool."""
    value = array.load(index)
    return cast(value, "bool") if dtype == "bool" else value


def store(array: Array, index: Index, value: Expr) -> None:
    """Write one element in the array's storage type."""
    array.store(index, cast(value, str(array.buffer.ty.dtype) if hasattr(array.buffer, "ty") else array.buffer.dtype))


def scalar(value: Value) -> tuple[Any, ...] | None:
    """The operand of a constant with one element, or None."""
    if value.data is None or value.data.size != 1 or value.dtype is None:
        return None
    return ("constant", value.numpy().reshape(()).item(), str(value.dtype))


def instruction(node: Node, operands: Sequence[tuple[Any, ...]]) -> Instruction:
    """A node as an instruction; its omitted inputs have no operand."""
    attributes = {k: v for k, v in node.attributes.items() if isinstance(v, int | float | str)}
    if node.op == "Clip":
        present = [i for i in (1, 2) if node.input(i) is not None]
        attributes |= {("low", "high")[i - 1]: 1 + present.index(i) for i in present}
    return Instruction(node.op, tuple(sorted(attributes.items())), tuple(operands), str(node.outputs[0].dtype))


def _elementwise(node: Node, lower: Lowering) -> None:
    operands: list[tuple[Any, ...]] = []
    inputs: list[Value] = []
    for value in node.inputs:
        if value is None:
            continue
        known = scalar(value)
        if node.op == "CastLike" and operands:
            break
        if known is None:
            known = ("input", inputs.index(value) if value in inputs else len(inputs))
            if value not in inputs:
                inputs.append(value)
        operands.append(known)
    sources = [lower.buffer(v) for v in inputs]
    emit_program(lower, sources, lower.result(node.outputs[0]), (instruction(node, operands),))


def emit_program(lower: Lowering, sources: Sequence[Buffer], target: Buffer, program: Sequence[Instruction]) -> None:
    """Call the kernel that computes `program` for every element of `target`, its inputs broadcast."""
    reads = [(b, broadcast(b.shape, target.shape), 0) for b in sources]
    strided_map(lower, target.shape, reads, (target, contiguous(target.shape), 0), tuple(program))


def step(op: str, *operands: int | tuple[Any, ...], dtype: str = "float32", **attributes: Any) -> Instruction:
    """An instruction by hand: an operand k >= 0 is input k, k < 0 the result ~k, else as `Instruction` says."""
    spelled = [o if isinstance(o, tuple) else ("input", o) if o >= 0 else ("result", ~o) for o in operands]
    return Instruction(op, tuple(sorted(attributes.items())), tuple(spelled), dtype)


for _op in EXPRESSIONS:
    lowering(_op)(_elementwise)


@lowering("Elementwise", domain=INTERNAL)
def _fused(node: Node, lower: Lowering) -> None:
    sources = [lower.buffer(v) for v in node.inputs]
    emit_program(lower, sources, lower.result(node.outputs[0]), node.attributes["program"])
