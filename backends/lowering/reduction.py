"""Reductions: sums, means, extremes, norms, arg-extremes, running sums, softmax and Einsum.

One kernel walks a box of kept and reduced loops with strided operands. It accumulates along contiguous memory in
partial sums (sixteen at a time), or down the columns straight into the result, whichever way memory runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import tirx

from backends.lowering.context import Lowering
from backends.lowering.elementwise import (
    IDENTITY,
    PARALLEL_WORK,
    Access,
    broadcast,
    contiguous,
    emit_program,
    flat_index,
    load,
    nest,
    step,
    store,
)
from backends.lowering.expressions import (
    Instruction,
    cast,
    const,
    evaluate,
    exp,
    highest,
    log,
    lowest,
    maximum,
    minimum,
    select,
)
from backends.lowering.layout import known, shape_of
from backends.lowering.program import Buffer
from backends.lowering.rules import lowering, no_lowering
from backends.schedules.emit import Array, Emitter, Expr, Index, splat
from backends.schedules.epilogue import exp_quick
from backends.schedules.epilogue import maximum as no_less
from backends.schedules.reduce import fold, pieces
from compiler.ir.graph import Node

Combine = Callable[[Expr, Expr], Expr]
PARTIALS = 16
"""Independent partial results of a reduction along contiguous memory: one widest vector register of floats."""

COMBINE: dict[str, tuple[Combine, Callable[[str], Expr]]] = {
    "sum": (lambda a, b: a + b, lambda kind: const(0, kind)),
    "prod": (lambda a, b: a * b, lambda kind: const(1, kind)),
    "max": (maximum, lowest),
    "min": (minimum, highest),
}


@dataclass(frozen=True)
class ReduceSpec:
    """y[kept] = after(combine over reduced of before(x0, x1, …), then extra inputs at [kept])."""

    kept: tuple[int, ...]
    reduced: tuple[int, ...]
    inputs: tuple[Access, ...]
    output: Access
    before: tuple[Instruction, ...]
    combine: str
    after: tuple[Instruction, ...]
    dtype: str


def reduce_box(
    lower: Lowering,
    kept: Sequence[int],
    reduced: Sequence[int],
    inputs: Sequence[tuple[Buffer, Sequence[int]]],
    target: Buffer,
    combine: str,
    before: tuple[Instruction, ...] = IDENTITY,
    after: tuple[Instruction, ...] = IDENTITY,
    dtype: str | None = None,
    macs: int = 0,
) -> None:
    """Reduce `inputs`, each with strides over the kept then the reduced loops, into the contiguous `target`."""
    if not math.prod(kept):
        return
    rank = len(kept)
    first, kept_steps = _join(kept, [tuple(s[:rank]) for _, s in inputs] + [contiguous(kept)])
    second, reduced_steps = _join(reduced, [tuple(s[rank:]) for _, s in inputs])
    buffers = list(dict.fromkeys(b for b, _ in inputs))
    accesses = tuple(
        Access(buffers.index(b), kept_steps[i] + reduced_steps[i], 0, str(b.dtype)) for i, (b, _) in enumerate(inputs)
    )
    output = Access(len(buffers), kept_steps[-1], 0, str(target.dtype))
    spec = ReduceSpec(first, second, accesses, output, before, combine, after, dtype or str(target.dtype))
    lower.call(_reduce, spec, buffers, [target], macs=macs)


def _join(extents: Sequence[int], strides: list[tuple[int, ...]]) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """Merge the neighbouring loops that every operand walks contiguously; loops of one turn vanish."""
    merged: list[tuple[int, tuple[int, ...]]] = []
    for i, extent in enumerate(extents):
        steps = tuple(s[i] for s in strides)
        if extent == 1:
            continue
        if merged and all(a == extent * b for a, b in zip(merged[-1][1], steps, strict=True)):
            merged[-1] = (merged[-1][0] * extent, steps)
        else:
            merged.append((extent, steps))
    return tuple(d for d, _ in merged), [tuple(steps[k] for _, steps in merged) for k in range(len(strides))]


def _reduce(e: Emitter, spec: ReduceSpec, *arrays: Array) -> None:
    y = arrays[-1]
    combine, start = COMBINE[spec.combine]
    parallel = math.prod(spec.kept) * math.prod(spec.reduced) >= PARALLEL_WORK
    down = (
        bool(spec.kept)
        and spec.inputs[0].strides[len(spec.kept) - 1] == 1
        and spec.output.dtype == spec.dtype
        and spec.dtype != "bool"
    )

    def term(indices: Sequence[Expr]) -> Expr:
        values = [load(arrays[a.param], flat_index(indices, a.strides, a.offset), a.dtype) for a in spec.inputs]
        return cast(evaluate(e, spec.before, values), spec.dtype)

    def across(outer: list[Expr]) -> None:
        *loops, last = spec.reduced or (1,)
        acc = e.registers(1, 1, spec.dtype)
        acc[0] = start(spec.dtype)

        def row(indices: list[Expr]) -> None:
            inner = [*outer, *indices]
            total = row_reduce(
                e, last, lambda i: term([*inner, i] if spec.reduced else inner), spec.combine, spec.dtype
            )
            acc[0] = combine(acc[0], total)

        nest(e, loops, row)
        result = evaluate(e, spec.after, [e.let(acc[0])])
        store(y, flat_index(outer, spec.output.strides), result)

    def columns(outer: list[Expr]) -> None:
        width = spec.kept[-1]

        def at(i: Expr) -> Expr:
            return flat_index([*outer, i], spec.output.strides)

        with e.loop(width) as i:
            y.store(at(i), start(spec.dtype))

        def row(indices: list[Expr]) -> None:
            with e.loop(width) as i:
                y.store(at(i), combine(y.load(at(i)), term([*outer, i, *indices])))

        nest(e, spec.reduced, row)
        if spec.after != IDENTITY:
            with e.loop(width) as i:
                store(y, at(i), evaluate(e, spec.after, [y.load(at(i))]))

    if down:
        nest(e, spec.kept[:-1], columns, parallel=parallel)
    else:
        nest(e, spec.kept, across, parallel=parallel)


def row_reduce(e: Emitter, extent: int, term: Callable[[Expr], Expr], combine: str, dtype: str) -> Expr:
    """Combine term(0) … term(extent - 1) in a fixed order; floats in `PARTIALS` interleaved chains."""
    operator, start = COMBINE[combine]
    acc = e.registers(1, 1, dtype)
    acc[0] = start(dtype)
    rounds = extent // PARTIALS if dtype.startswith("float") and extent >= 2 * PARTIALS else 0
    if rounds:
        partial = e.stack(PARTIALS, dtype)
        with e.loop(PARTIALS) as lane:
            partial.store(lane, start(dtype))
        with e.loop(rounds) as turn, e.loop(PARTIALS) as lane:
            partial.store(lane, operator(partial.load(lane), term(turn * PARTIALS + lane)))
        with e.loop(PARTIALS) as lane:
            acc[0] = operator(acc[0], partial.load(lane))
    done = rounds * PARTIALS
    if extent > done:
        with e.loop(extent - done) as rest:
            acc[0] = operator(acc[0], term(rest + done))
    return e.let(acc[0])


def reduced_axes(node: Node, rank: int) -> list[int]:
    """The axes of a Reduce* node, from its input or its attribute; all of them by default."""
    axes = known(node, 1) if node.input(1) is not None else node.attribute("axes")
    if not axes:
        return [] if node.attribute("noop_with_empty_axes", 0) else list(range(rank))
    return sorted({a % rank for a in axes})


def _reduce_axes(
    lower: Lowering,
    sources: Sequence[Buffer],
    shape: Sequence[int],
    axes: Sequence[int],
    target: Buffer,
    combine: str,
    before: tuple[Instruction, ...] = IDENTITY,
    after: tuple[Instruction, ...] = IDENTITY,
) -> None:
    """Reduce over `axes` of the box `shape`, every source broadcast to it."""
    order = [a for a in range(len(shape)) if a not in axes] + list(axes)
    inputs = []
    for source in sources:
        strides = broadcast(source.shape, shape)
        inputs.append((source, [strides[a] for a in order]))
    extents = [shape[a] for a in order]
    split = len(shape) - len(axes)
    reduce_box(lower, extents[:split], extents[split:], inputs, target, combine, before, after)


_REDUCE: dict[str, tuple[str, str | None, str | None]] = {
    # operator -> (combine, operator on each element, operator on the result)
    "ReduceSum": ("sum", None, None),
    "ReduceMean": ("sum", None, "mean"),
    "ReduceMax": ("max", None, None),
    "ReduceMin": ("min", None, None),
    "ReduceProd": ("prod", None, None),
    "ReduceL1": ("sum", "Abs", None),
    "ReduceL2": ("sum", "square", "Sqrt"),
    "ReduceSumSquare": ("sum", "square", None),
    "ReduceLogSum": ("sum", None, "Log"),
}


@lowering(*_REDUCE)
def _reduce_rule(node: Node, lower: Lowering) -> None:
    combine, each, final = _REDUCE[node.op]
    source = lower.buffer(node.input(0))
    kind = str(source.dtype)
    axes = reduced_axes(node, len(source.shape))
    count = math.prod(source.shape[a] for a in axes)
    before: tuple[Instruction, ...] = IDENTITY
    if each == "square":
        before = (step("Mul", 0, 0, dtype=kind),)
    elif each:
        before = (step(each, 0, dtype=kind),)
    after: tuple[Instruction, ...] = IDENTITY
    if final == "mean" and kind.startswith("float"):
        after = (step("Mul", 0, ("constant", 1 / max(1, count), kind), dtype=kind),)
    elif final == "mean":
        after = (step("Div", 0, ("constant", max(1, count), kind), dtype=kind),)
    elif final:
        after = (step(final, 0, dtype=kind),)
    _reduce_axes(lower, [source], source.shape, axes, lower.result(node.outputs[0]), combine, before, after)


@lowering("ReduceLogSumExp")
def _log_sum_exp(node: Node, lower: Lowering) -> None:
    source = lower.buffer(node.input(0))
    kind = str(source.dtype)
    axes = reduced_axes(node, len(source.shape))
    small = [1 if a in axes else d for a, d in enumerate(source.shape)]
    top = lower.temporary(small, kind, "maximum")
    total = lower.temporary(small, kind, "sum")
    _reduce_axes(lower, [source], source.shape, axes, top, "max")
    before = (step("Sub", 0, 1, dtype=kind), step("Exp", ~0, dtype=kind))
    _reduce_axes(lower, [source, top], source.shape, axes, total, "sum", before)
    target = lower.result(node.outputs[0])
    flat = (target.size,)
    program = (step("Log", 0, dtype=kind), step("Add", ~0, 1, dtype=kind))
    emit_program(lower, [lower.view(total, flat), lower.view(top, flat)], _flat(lower, target), program)


def _flat(lower: Lowering, buffer: Buffer) -> Buffer:
    return lower.view(buffer, (buffer.size,))


@dataclass(frozen=True)
class AxisSpec:
    """A box seen as (outer, n, inner), to work along n. mode and flags are the kernel's own."""

    outer: int
    n: int
    inner: int
    dtype: str
    mode: str = ""
    flags: tuple[int, ...] = ()


def axis_spec(buffer: Buffer, axis: int, mode: str = "", flags: tuple[int, ...] = ()) -> AxisSpec:
    """The box of a buffer around one axis."""
    shape = buffer.shape or (1,)
    axis %= len(shape)
    outer, inner = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
    return AxisSpec(outer, shape[axis], inner, str(buffer.dtype), mode, flags)


@lowering("ArgMax", "ArgMin")
def _arg_extreme(node: Node, lower: Lowering) -> None:
    source = lower.buffer(node.input(0))
    spec = axis_spec(source, node.attribute("axis", 0), node.op, (node.attribute("select_last_index", 0),))
    lower.call(_arg_kernel, spec, [source], [lower.result(node.outputs[0])])


def _arg_kernel(e: Emitter, spec: AxisSpec, x: Array, y: Array) -> None:
    def body(indices: list[Expr]) -> None:
        outer, inner = indices
        best, place = _best(e, spec, x, outer, inner)
        del best
        y.store(outer * spec.inner + inner, place.astype("int64"))

    nest(e, (spec.outer, spec.inner), body, parallel=spec.outer * spec.n * spec.inner >= PARALLEL_WORK)


def _best(e: Emitter, spec: AxisSpec, x: Array, outer: Expr, inner: Expr) -> tuple[Expr, Expr]:
    """The extreme value along n, and where it first (or, by flag, last) is."""
    best, place = e.registers(1, 1, spec.dtype), e.registers(1, 1, "int32")

    def at(i: Expr | int) -> Expr:
        return x.load((outer * spec.n + i) * spec.inner + inner)

    best[0], place[0] = at(0), tirx.IntImm("int32", 0)
    with e.loop(spec.n) as i:
        value = e.let(at(i))
        last = bool(spec.flags and spec.flags[0])
        if spec.mode == "ArgMin":
            better = value <= best[0] if last else value < best[0]
        else:
            better = value >= best[0] if last else value > best[0]
        with e.when(better):
            best[0], place[0] = value, i
    return e.let(best[0]), e.let(place[0])


@lowering("Hardmax")
def _hardmax(node: Node, lower: Lowering) -> None:
    source = lower.buffer(node.input(0))
    spec = axis_spec(source, node.attribute("axis", -1), "ArgMax")
    lower.call(_hardmax_kernel, spec, [source], [lower.result(node.outputs[0])])


def _hardmax_kernel(e: Emitter, spec: AxisSpec, x: Array, y: Array) -> None:
    def body(indices: list[Expr]) -> None:
        outer, inner = indices
        _, place = _best(e, spec, x, outer, inner)
        with e.loop(spec.n) as i:
            value = select(tirx.EQ(i, place), const(1, spec.dtype), const(0, spec.dtype))
            y.store((outer * spec.n + i) * spec.inner + inner, value)

    nest(e, (spec.outer, spec.inner), body)


@lowering("CumSum")
def _cumsum(node: Node, lower: Lowering) -> None:
    source = lower.buffer(node.input(0))
    axis = known(node, 1)
    assert axis is not None
    flags = (node.attribute("exclusive", 0), node.attribute("reverse", 0))
    spec = axis_spec(source, axis[0], "", flags)
    lower.call(_cumsum_kernel, spec, [source], [lower.result(node.outputs[0])])


def _cumsum_kernel(e: Emitter, spec: AxisSpec, x: Array, y: Array) -> None:
    exclusive, reverse = spec.flags

    def body(indices: list[Expr]) -> None:
        outer, inner = indices
        acc = e.registers(1, 1, spec.dtype)
        acc[0] = const(0, spec.dtype)
        with e.loop(spec.n) as i:
            place = spec.n - 1 - i if reverse else i
            index = e.let((outer * spec.n + place) * spec.inner + inner)
            before = e.let(acc[0])
            acc[0] = before + x.load(index)
            y.store(index, before if exclusive else acc[0])

    nest(e, (spec.outer, spec.inner), body, parallel=spec.outer * spec.n * spec.inner >= PARALLEL_WORK)


@lowering("Softmax", "LogSoftmax")
def _softmax(node: Node, lower: Lowering) -> None:
    source = lower.buffer(node.input(0))
    spec = axis_spec(source, node.attribute("axis", -1), node.op)
    scratch = [] if spec.inner == 1 else [lower.temporary((2, spec.outer, spec.inner), source.dtype, "workspace")]
    body = _softmax_rows if spec.inner == 1 else _softmax_columns
    lower.call(body, spec, [source], [lower.result(node.outputs[0])], scratch=scratch)


def _softmax_rows(e: Emitter, spec: AxisSpec, x: Array, y: Array) -> None:
    def body(indices: list[Expr]) -> None:
        start = e.let(indices[0] * spec.n)
        if spec.dtype == "float32" and spec.mode == "Softmax":
            _softmax_row(e, spec.n, x, y, start)
            return
        top = row_reduce(e, spec.n, lambda i: x.load(start + i), "max", spec.dtype)
        if spec.mode == "LogSoftmax":
            total = row_reduce(e, spec.n, lambda i: exp(e.let(x.load(start + i) - top)), "sum", spec.dtype)
            shift = e.let(top + log(total))
            with e.loop(spec.n) as i:
                y.store(start + i, x.load(start + i) - shift)
            return
        with e.loop(spec.n) as i:
            y.store(start + i, exp(e.let(x.load(start + i) - top)))
        total = row_reduce(e, spec.n, lambda i: y.load(start + i), "sum", spec.dtype)
        scale = e.let(const(1, spec.dtype) / total)
        with e.loop(spec.n) as i:
            y.store(start + i, y.load(start + i) * scale)

    nest(e, (spec.outer,), body, parallel=spec.outer * spec.n >= PARALLEL_WORK // 8)


def _softmax_row(e: Emitter, n: int, x: Array, y: Array, start: Expr) -> None:
    """One row of floats, by vectors; y may be x."""

    def larger(a: Expr, b: Expr) -> Expr:
        return tirx.Select(a > b, a, b)

    top = fold(e, n, PARTIALS, lambda i, width: x.load(start + i, width), larger, -math.inf)

    def exponential(i: Index, width: int) -> Expr:
        value = e.name(exp_quick(no_less(x.load(start + i, width) - splat(top, width), -88.0)))
        y.store(start + i, value, width)
        return value

    total = fold(e, n, PARTIALS, exponential, lambda a, b: a + b, 0.0)
    scale = e.name(const(1, "float32") / total)
    pieces(e, n, PARTIALS, lambda i, w: y.store(start + i, y.load(start + i, w) * splat(scale, w), w))


def _softmax_columns(e: Emitter, spec: AxisSpec, x: Array, y: Array, scratch: Array) -> None:
    def body(indices: list[Expr]) -> None:
        outer = indices[0]
        top = e.let(outer * spec.inner)
        total = e.let(top + spec.outer * spec.inner)
        start = e.let(outer * (spec.n * spec.inner))
        with e.loop(spec.inner) as i:
            scratch.store(top + i, lowest(spec.dtype))
            scratch.store(total + i, const(0, spec.dtype))
        with e.loop(spec.n) as row, e.loop(spec.inner) as i:
            scratch.store(top + i, maximum(scratch.load(top + i), x.load(start + row * spec.inner + i)))
        with e.loop(spec.n) as row, e.loop(spec.inner) as i:
            index = start + row * spec.inner + i
            value = e.let(exp(e.let(x.load(index) - scratch.load(top + i))))
            scratch.store(total + i, scratch.load(total + i) + value)
            if spec.mode == "Softmax":
                y.store(index, value)
        with e.loop(spec.inner) as i:
            value = e.let(scratch.load(total + i))
            scratch.store(total + i, log(value) if spec.mode == "LogSoftmax" else const(1, spec.dtype) / value)
        with e.loop(spec.n) as row, e.loop(spec.inner) as i:
            index = start + row * spec.inner + i
            if spec.mode == "LogSoftmax":
                y.store(index, x.load(index) - scratch.load(top + i) - scratch.load(total + i))
            else:
                y.store(index, y.load(index) * scratch.load(total + i))

    nest(e, (spec.outer,), body, parallel=spec.outer * spec.n * spec.inner >= PARALLEL_WORK // 8)


@lowering("Einsum")
def _einsum(node: Node, lower: Lowering) -> None:
    shapes = [shape_of(v) for v in node.inputs]
    terms, result = einsum_labels(node, shapes)
    extents: dict[str, int] = {}
    for term, shape in zip(terms, shapes, strict=True):
        for label, extent in zip(term, shape, strict=True):
            extents[label] = max(extents.get(label, 1), extent)
    summed = [label for label in extents if label not in result]
    loops = [*result, *summed]
    inputs = []
    for value, term, shape in zip(node.inputs, terms, shapes, strict=True):
        steps = dict.fromkeys(loops, 0)
        for label, extent, stride in zip(term, shape, contiguous(shape), strict=True):
            steps[label] += stride if extent > 1 else 0
        inputs.append((lower.buffer(value), [steps[label] for label in loops]))
    kind = str(node.outputs[0].dtype)
    program = [step("Identity", 0, dtype=kind)]
    for k in range(1, len(inputs)):
        program.append(step("Mul", ~(k - 1), k, dtype=kind))
    kept = [extents[label] for label in result]
    reduced = [extents[label] for label in summed]
    macs = math.prod(kept) * math.prod(reduced) * (len(inputs) > 1)
    reduce_box(lower, kept, reduced, inputs, lower.result(node.outputs[0]), "sum", tuple(program), macs=macs)


def einsum_labels(node: Node, shapes: Sequence[tuple[int, ...]]) -> tuple[list[list[str]], list[str]]:
    """Labels of each operand's axes and of the result's; an ellipsis becomes labels of its own."""
    equation = str(node.attribute("equation")).replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms: list[list[str]] = []
    dots = 0
    for text, shape in zip(left.split(","), shapes, strict=True):
        if "..." in text:
            before, after = text.split("...")
            count = len(shape) - len(before) - len(after)
            dots = max(dots, count)
            terms.append([*before, *(f"_{i}" for i in reversed(range(count))), *after])
        else:
            terms.append(list(text))
        if len(terms[-1]) != len(shape):
            raise no_lowering(node, f"equation {equation!r} does not fit operand {len(terms) - 1} of shape {shape}")
    ellipsis = [f"_{i}" for i in reversed(range(dots))]
    if arrow:
        before, _, after = right.partition("...")
        return terms, [*before, *(ellipsis if "..." in right else []), *after]
    labels = [label for term in terms for label in term if not label.startswith("_")]
    return terms, [*ellipsis, *sorted(label for label in set(labels) if labels.count(label) == 1)]


@lowering("LpNormalization")
def _lp_normalization(node: Node, lower: Lowering) -> None:
    source = lower.buffer(node.input(0))
    kind = str(source.dtype)
    axis = node.attribute("axis", -1) % len(source.shape)
    norm = lower.temporary([1 if a == axis else d for a, d in enumerate(source.shape)], kind, "norm")
    square = node.attribute("p", 2) == 2
    before = (step("Mul", 0, 0, dtype=kind),) if square else (step("Abs", 0, dtype=kind),)
    after = (step("Sqrt", 0, dtype=kind),) if square else IDENTITY
    _reduce_axes(lower, [source], source.shape, [axis], norm, "sum", before, after)
    zero = ("constant", 0.0, kind)
    program = (
        step("Div", 0, 1, dtype=kind),
        step("Equal", 1, zero, dtype="bool"),
        step("Where", ~1, zero, ~0, dtype=kind),
    )
    emit_program(lower, [source, norm], lower.result(node.outputs[0]), program)


@lowering("MeanVarianceNormalization")
def _mean_variance(node: Node, lower: Lowering) -> None:
    source = lower.buffer(node.input(0))
    kind, rank = str(source.dtype), len(source.shape)
    axes = sorted({a % rank for a in node.attribute("axes") or [0, 2, 3]})
    small = [1 if a in axes else d for a, d in enumerate(source.shape)]
    scale = ("constant", 1 / math.prod(source.shape[a] for a in axes), kind)
    mean, variance = lower.temporary(small, kind, "mean"), lower.temporary(small, kind, "variance")
    after = (step("Mul", 0, scale, dtype=kind),)
    _reduce_axes(lower, [source], source.shape, axes, mean, "sum", IDENTITY, after)
    squared = (step("Sub", 0, 1, dtype=kind), step("Mul", ~0, ~0, dtype=kind))
    _reduce_axes(lower, [source, mean], source.shape, axes, variance, "sum", squared, after)
    program = (
        step("Sub", 0, 1, dtype=kind),
        step("Sqrt", 2, dtype=kind),
        step("Add", ~1, ("constant", 1e-9, kind), dtype=kind),
        step("Div", ~0, ~2, dtype=kind),
    )
    emit_program(lower, [source, mean, variance], lower.result(node.outputs[0]), program)
