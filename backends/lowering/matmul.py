"""Matrix products: MatMul with any batch axes, and Gemm."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from backends.lowering.context import Lowering
from backends.lowering.elementwise import PARALLEL_WORK, broadcast, contiguous, flat_index, nest
from backends.lowering.expressions import const
from backends.lowering.layout import shape_of
from backends.lowering.program import Buffer
from backends.lowering.rules import lowering
from backends.schedules.emit import Array, Emitter, Expr, Index
from backends.schedules.epilogue import Epilogue
from backends.schedules.specs import MatMulSpec
from compiler.ir.graph import Node


@dataclass(frozen=True)
class Operand:
    """A matrix operand: strides over the batch axes, then of its row and column."""

    batch: tuple[int, ...]
    row: int
    column: int


@dataclass(frozen=True)
class DirectMatMulSpec:
    """y[batch, i, j] = epilogue(alpha * sum over k of a[batch, i, k] * b[batch, k, j] + bias)."""

    batch: tuple[int, ...]
    m: int
    n: int
    k: int
    a: Operand
    b: Operand
    alpha: float
    beta: float
    bias: tuple[int, int] | None
    """Strides of the bias over i and j."""
    dtype: str
    epilogue: Epilogue


@lowering("MatMul")
def _matmul(node: Node, lower: Lowering) -> None:
    a, b = shape_of(node.input(0)), shape_of(node.input(1))
    a = (1, *a) if len(a) == 1 else a
    b = (*b, 1) if len(b) == 1 else b
    batch = np.broadcast_shapes(a[:-2], b[:-2])
    left = Operand(_batch_strides(a, batch), a[-1], 1)
    right = Operand(_batch_strides(b, batch), b[-1], 1)
    kind = str(node.outputs[0].dtype)
    epilogue = node.attribute("epilogue") or Epilogue()
    bias = (0, 1) if epilogue.bias else None
    _emit(lower, node, DirectMatMulSpec(batch, a[-2], b[-1], a[-1], left, right, 1.0, 1.0, bias, kind, epilogue))


@lowering("Gemm")
def _gemm(node: Node, lower: Lowering) -> None:
    a, b, y = shape_of(node.input(0)), shape_of(node.input(1)), shape_of(node.outputs[0])
    k = a[0] if node.attribute("transA", 0) else a[1]
    left = Operand((), 1, a[1]) if node.attribute("transA", 0) else Operand((), a[1], 1)
    right = Operand((), 1, b[1]) if node.attribute("transB", 0) else Operand((), b[1], 1)
    epilogue = node.attribute("epilogue") or Epilogue(bias=node.input(2) is not None)
    bias = None
    if epilogue.bias:
        steps = broadcast(shape_of(node.input(2)), y)
        bias = (steps[0], steps[1])
    alpha, beta = node.attribute("alpha", 1.0), node.attribute("beta", 1.0)
    kind = str(node.outputs[0].dtype)
    _emit(lower, node, DirectMatMulSpec((), y[0], y[1], k, left, right, alpha, beta, bias, kind, epilogue))


def _batch_strides(shape: tuple[int, ...], batch: tuple[int, ...]) -> tuple[int, ...]:
    matrix = shape[-2] * shape[-1]
    return tuple(s * matrix for s in broadcast(shape[:-2], batch))


def _emit(lower: Lowering, node: Node, spec: DirectMatMulSpec) -> None:
    if not _by_schedule(lower, node, spec):
        reads: list[Buffer] = [lower.buffer(v) for v in node.inputs if v is not None]
        macs = math.prod(spec.batch) * spec.m * spec.n * spec.k
        lower.call(_product, spec, reads, [lower.result(node.outputs[0])], macs=macs)


def _by_schedule(lower: Lowering, node: Node, direct: DirectMatMulSpec) -> bool:
    """Call the tiled schedule if it fits: a type it computes in, whole batches or none, a bias known or none."""
    left, right = node.input(0), node.input(1)
    assert left is not None and right is not None
    bias = node.input(2) if direct.epilogue.bias else None
    batch, m, total = math.prod(direct.batch), direct.m, contiguous(direct.batch)
    dense = tuple(s * direct.m * direct.k for s in total), tuple(s * direct.k * direct.n for s in total)
    batched = [batch > 1 and any(o.batch) for o in (direct.a, direct.b)]
    whole = all(
        not flag or all(d == 1 or s == t for d, s, t in zip(direct.batch, o.batch, full, strict=True))
        for flag, o, full in zip(batched, (direct.a, direct.b), dense, strict=True)
    )
    target = lower.scheduled(direct.dtype)
    if target is None or not whole or not min(batch, m, direct.n, direct.k):
        return False
    if bias is not None and (not bias.is_constant or direct.bias is None or all(direct.bias)):
        return False
    side = "b" if right.is_constant else "a" if left.is_constant else None
    if direct.alpha != 1.0 and side is None:
        return False
    transposed = _transposes(node)
    if side == "b" and batched[0] and not batched[1] and not transposed[0]:
        m, batch, batched = batch * m, 1, [False, False]
    spec = MatMulSpec(
        batch,
        m,
        direct.k,
        direct.n,
        transpose_a=transposed[0],
        transpose_b=transposed[1],
        weight_side=side,
        a_batched=batched[0],
        b_batched=batched[1],
        epilogue=direct.epilogue,
        bias_axis="m" if _by_rows(direct) else "n",
    )
    weight = {"a": left, "b": right}.get(side or "")
    scaled = None if weight is None else weight.numpy() * np.float32(direct.alpha)
    choice = lower.selector.matmul(spec, scaled, target)
    kernel = choice.chosen.make(target, lower.parallel)
    vector = None
    if bias is not None:
        length = m if spec.bias_axis == "m" else direct.n
        vector = np.broadcast_to(bias.numpy().reshape(-1), (length,)) * np.float32(direct.beta)
    packed = kernel.pack(bias=vector) if scaled is None else kernel.pack(scaled, vector)
    activations = {"y": lower.result(node.outputs[0])}
    activations |= {role: lower.buffer(v) for role, v in (("a", left), ("b", right)) if role != side}
    if direct.epilogue.residual:
        activations["residual"] = lower.buffer(node.inputs[-1])
    lower.schedule(kernel, activations, packed, choice.chosen.schedule, {} if scaled is None else choice.describe())
    return True


def _transposes(node: Node) -> tuple[bool, bool]:
    return bool(node.attribute("transA", 0)), bool(node.attribute("transB", 0))


def _by_rows(spec: DirectMatMulSpec) -> bool:
    """True for a bias with one element per row."""
    return spec.bias is not None and spec.bias[0] != 0


def _product(e: Emitter, spec: DirectMatMulSpec, *arrays: Array) -> None:
    a, b, y = arrays[0], arrays[1], arrays[-1]
    extras = list(arrays[2:-1])
    bias = extras.pop(0) if spec.bias is not None else None
    residual = extras.pop(0) if spec.epilogue.residual else None
    strides = contiguous((*spec.batch, spec.m, spec.n))

    def row(indices: list[Expr]) -> None:
        *batch, i = indices
        a_start = e.let(flat_index([*batch, i], (*spec.a.batch, spec.a.row)))
        b_start = e.let(flat_index(batch, spec.b.batch))
        start = e.let(flat_index(indices, strides[:-1]))
        with e.loop(spec.n) as j:
            y.store(start + j, const(0, spec.dtype))
        with e.loop(spec.k) as k:
            factor = e.let(a.load(a_start + k * spec.a.column))
            line = e.let(b_start + k * spec.b.row)
            with e.loop(spec.n) as j:
                product = factor * b.load(line + j * spec.b.column)
                y.store(start + j, y.load(start + j) + product)
        plain = spec.alpha == 1.0 and bias is None and residual is None and spec.epilogue.activation is None
        if plain:
            return
        with e.loop(spec.n) as j:
            value = y.load(start + j)
            if spec.alpha != 1.0:
                value = value * const(spec.alpha, spec.dtype)
            if bias is not None and spec.bias is not None:
                term: Expr = bias.load(flat_index([i, j], spec.bias))
                value = value + (term if spec.beta == 1.0 else term * const(spec.beta, spec.dtype))
            if residual is not None:
                value = value + residual.load(_plus(start, j))
            y.store(start + j, spec.epilogue.apply(e.let(value)) if spec.epilogue.activation else value)

    nest(e, (*spec.batch, spec.m), row, parallel=math.prod(spec.batch) * spec.m * spec.n * spec.k >= PARALLEL_WORK)


def _plus(a: Index, b: Index) -> Expr:
    return flat_index([a, b], (1, 1))
