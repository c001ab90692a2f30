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
from compiler.ir.graph import Node, Value


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
    spec = DirectMatMulSpec(batch, a[-2], b[-1], a[-1], left, right, 1.0, 1.0, bias, kind, epilogue)
    _emit(lower, node, spec)


@lowering("Gemm")
def _gemm(node: Node, lower: Lowering) -> None:
    a, b, y = shape_of(node.input(0)), shape_of(node.input(1)), shape_of(node.outputs[0])
    k = a[0] if node.attribute("transA", 0) else a[1]
    left = Operand((), 1, a[1]) if node.attribute("transA", 0) else Operand((), a[1], 1)
    right = Operand((), 1, b[1]) if node.attribute("transB", 0) else Operand((), b[1], 1)
    bias = None
    if node.input(2) is not None:
        steps = broadcast(shape_of(node.input(2)), y)
        bias = (steps[0], steps[1])
    epilogue = node.attribute("epilogue") or Epilogue(bias=bias is not None)
    alpha, beta = node.attribute("alpha", 1.0), node.attribute("beta", 1.0)
    kind = str(node.outputs[0].dtype)
    _emit(lower, node, DirectMatMulSpec((), y[0], y[1], k, left, right, alpha, beta, bias, kind, epilogue))


def _batch_strides(shape: tuple[int, ...], batch: tuple[int, ...]) -> tuple[int, ...]:
    matrix = shape[-2] * shape[-1]
    return tuple(s * matrix for s in broadcast(shape[:-2], batch))


def _emit(lower: Lowering, node: Node, spec: DirectMatMulSpec) -> None:
    reads: list[Buffer] = [lower.buffer(v) for v in node.inputs if v is not None]
    target = lower.result(node.outputs[0])
    macs = math.prod(spec.batch) * spec.m * spec.n * spec.k
    if spec.b.column != 1 and _is_constant(node.input(1)):
        weight = node.input(1)
        assert weight is not None
        reads[1] = lower.constant(np.ascontiguousarray(weight.numpy().T), weight.name)
        spec = DirectMatMulSpec(**{**vars(spec), "b": Operand((), spec.n, 1)})
    lower.call(_product, spec, reads, [target], macs=macs)


def _is_constant(value: Value | None) -> bool:
    return value is not None and value.is_constant


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
