"""Matrix products with a sparse constant on the right: y[m, n] = epilogue(a[m, k] @ b[k, n]).

Rows of a (tokens) take the place of pixels: a tile of them is turned round into [k][row], so that the loop over the
stored weights is the one of sparse convolutions, and its sums [n][row] are turned back on their way to y.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import numpy as np
from tvm import tirx

from backends.schedules.emit import Array, Emitter, Expr, Index
from backends.schedules.kernel import Kernel, symbol_for
from backends.schedules.product import GRAINS, array_or_none
from backends.schedules.sparse_conv import SparseConvSpec, sparse_conv2d, sparse_registers
from backends.schedules.sparse_tiles import Vector, line
from backends.schedules.sparse_weights import sparse_weights
from backends.schedules.specs import ConvSpec, MatMulSpec
from backends.schedules.transpose import transpose_block
from backends.target import Target
from compiler.errors import SecateurError


@dataclass(frozen=True)
class SparseMatMulSpec:
    """A product whose constant operand is sparse, in blocks of `block` outputs by one input.

    vectors: vectors of rows (of columns, if the constant is on the left) in a register tile; unroll, patterns, nm and
    deltas: as for convolutions.
    """

    matmul: MatMulSpec
    block: int = 1
    vectors: int = 4
    unroll: int = 1
    patterns: bool = False
    nm: tuple[int, int] | None = None
    deltas: bool = False

    def __post_init__(self) -> None:
        product = self.matmul
        batched = product.b_batched if product.weight_side == "b" else product.a_batched
        if product.weight_side is None or (batched and product.batch > 1):
            raise SecateurError("E_SPEC", "a sparse product needs one constant operand", where=repr(product))
        if min(self.block, self.vectors, self.unroll) < 1:
            raise SecateurError("E_SPEC", "not a tile", where=repr(self))

    @property
    def label(self) -> str:
        """The tile in a few words."""
        return f"{self.vectors} vectors"

    def tile(self, target: Target) -> tuple[int, int, int]:
        """Rows of a register tile, the vectors that hold them, and the number of tiles."""
        height, lanes = self.matmul.batch * self.matmul.m, target.lanes()
        count = -(-height // (self.vectors * lanes))
        share, half = -(-height // count), max(1, lanes // 2)
        length = min(height, -(-share // half) * half)
        return length, -(-length // lanes), -(-height // length)

    def registers(self, target: Target) -> int:
        """Vector registers in use at once."""
        conv = self.as_convolution()
        if conv is not None:
            return conv.registers(target)
        return sparse_registers(self.tile(target)[1], self.block, self.unroll, target)

    def as_convolution(self) -> SparseConvSpec | None:
        """The same product as a 1x1 convolution, where no operand need be turned round."""
        product = self.matmul
        epilogue = product.epilogue
        if product.weight_side == "a":
            if product.transpose_b or (epilogue.bias and product.bias_axis != "m"):
                return None
            images = product.batch if product.b_batched else 1
            if images != product.batch:
                return None
            conv = ConvSpec(images, product.k, 1, product.n, product.m, (1, 1), epilogue=epilogue)
        else:
            if product.m != 1 or (epilogue.bias and product.bias_axis != "n"):
                return None
            if not product.a_batched and product.batch > 1:
                return None
            conv = ConvSpec(product.batch, product.k, 1, 1, product.n, (1, 1), epilogue=epilogue)
        unroll = self.unroll if conv.width > 1 or self.nm is not None else 4
        return SparseConvSpec(
            conv, self.block, self.vectors, unroll, patterns=self.patterns, nm=self.nm, deltas=self.deltas
        )


def supported(spec: MatMulSpec) -> bool:
    """Whether `sparse_matmul` can compute this product."""
    if spec.weight_side == "b":
        turned = spec.transpose_a or (spec.epilogue.bias and spec.bias_axis != "n")
        return not (spec.b_batched and spec.batch > 1) and not turned and (spec.a_batched or spec.batch == 1)
    if spec.weight_side == "a":
        return not (spec.a_batched and spec.batch > 1) and SparseMatMulSpec(spec).as_convolution() is not None
    return False


def sparse_matmul(spec: SparseMatMulSpec, target: Target, parallel: bool = False) -> Kernel:
    """y = epilogue(a @ b); parameters a or b, values, positions, starts, order, bias?, residual?, y, workspace?.

    pack(weights, bias) takes the constant operand as it is stored. Raises SecateurError E_SPEC for what `supported`
    denies.
    """
    if not supported(spec.matmul):
        raise SecateurError("E_SPEC", "no sparse schedule for this product", where=repr(spec.matmul))
    conv = spec.as_convolution()
    if conv is None:
        return _Rows(spec, target, parallel).build()
    kernel = sparse_conv2d(conv, target, parallel)
    activation = "b" if spec.matmul.weight_side == "a" else "a"
    params = tuple(activation if role == "x" else role for role in kernel.params)

    def pack(weights: np.ndarray, bias: np.ndarray | None = None) -> dict[str, np.ndarray]:
        return kernel.pack(outputs_first(spec.matmul, weights), bias)

    return replace(kernel, params=params, pack=pack, macs=spec.matmul.macs)


def outputs_first(spec: MatMulSpec, weights: np.ndarray) -> np.ndarray:
    """The constant operand as [outputs, k]."""
    array = np.asarray(weights, np.float32)
    if spec.weight_side == "a":
        array = array.reshape((spec.k, spec.m) if spec.transpose_a else (spec.m, spec.k))
        return array.T if spec.transpose_a else array
    array = array.reshape((spec.n, spec.k) if spec.transpose_b else (spec.k, spec.n))
    return array if spec.transpose_b else array.T


class _Rows:
    """Tiles of rows of a, one after the other: turn round, multiply, turn back; each step shared among threads."""

    def __init__(self, spec: SparseMatMulSpec, target: Target, parallel: bool) -> None:
        self.spec, self.product, self.target, self.parallel = spec, spec.matmul, target, parallel
        self.height = self.product.batch * self.product.m
        self.lanes = target.lanes()
        self.length = spec.tile(target)[0]
        self.weights = sparse_weights(
            1, self.product.n, self.product.k, spec, self.product.k, self.pitch, by_lane=target.by_lane
        )

    @functools.cached_property
    def pitch(self) -> int:
        """Elements from one input or output to the next in a tile that is turned round."""
        return -(-self.length // self.lanes) * self.lanes if self.length > 1 else 1

    @functools.cached_property
    def vectors(self) -> tuple[Vector, ...]:
        """The vectors of a tile."""
        return tuple(line(self.length, self.lanes))

    def build(self) -> Kernel:
        product = self.product
        symbol = symbol_for("sparse_matmul", self.spec, self.target, self.parallel)
        e = Emitter(symbol, self.parallel, self.target.dtype, self.target.max_keeps_nan)
        self.a = e.param("a", self.height * product.k)
        self.arrays = self.weights.declare(e, product.epilogue.bias)
        self.residual = array_or_none(e, product.epilogue.residual, "residual", self.height * product.n)
        self.y = e.param("y", self.height * product.n)
        inner, outer = product.k * self.pitch, product.n * self.pitch
        self.scratch = e.param("workspace", inner + outer)
        with e.loop(-(-self.height // self.length)) as tile:
            first: Index = 0
            if self.length < self.height:
                first = e.let(tirx.min(tile * self.length, self.height - self.length))
            self._turn(e, first)
            splits = min(self.weights.blocks, GRAINS)
            each = -(-self.weights.blocks // splits)
            with e.loop(-(-self.weights.blocks // each), parallel=True) as split:
                left = e.let(tirx.min(each, self.weights.blocks - split * each))
                with e.loop(left) as b:
                    self._block(e, e.let(split * each + b), inner)
            self._turn_back(e, first, inner)
        return Kernel(symbol, e.finish(), e.roles, (inner + outer) * self.target.itemsize, self._pack, product.macs)

    def _turn(self, e: Emitter, first: Index) -> None:
        """scratch[k][row] = a[first + row][k]."""
        depth, lanes = self.product.k, self.lanes
        if depth < lanes or self.length < 2:
            with e.loop(depth, parallel=True) as k, e.loop(self.length) as row:
                self.scratch.store(k * self.pitch + row, self.a.load((first + row) * depth + k))
            return
        groups = -(-depth // lanes)
        with e.loop(groups, parallel=True) as group:
            k = e.let(tirx.min(group * lanes, depth - lanes))
            for at in range(0, self.length, lanes):

                def row_at(i: int, at: int = at, k: Index = k) -> Index:
                    return (first + min(at + i, self.length - 1)) * depth + k

                def put(j: int, column: Expr, at: int = at, k: Index = k) -> None:
                    self.scratch.store((k + j) * self.pitch + at, column, lanes)

                transpose_block(e, self.a, row_at, lanes, put)

    def _block(self, e: Emitter, block: Index, z: int) -> None:
        """scratch[z + n][row] = the sums of one block of outputs."""
        sums = self.arrays.multiply(e, block, self.scratch, 0, self.vectors)
        for r in range(self.spec.block):
            row = e.let(self.arrays.row(e, block, r) * self.pitch + z)
            for v, acc in zip(self.vectors, sums, strict=True):
                self.scratch.store(row + v.at, acc[r], v.width)

    def _turn_back(self, e: Emitter, first: Index, z: int) -> None:
        """y[first + row][n] = epilogue(scratch[z + n][row])."""
        wide, lanes = self.product.n, self.lanes
        if wide < lanes or self.length < 2:
            with e.loop(wide, parallel=True) as n, e.loop(self.length) as row:
                value = e.name(self.scratch.load(z + n * self.pitch + row))
                self._finish(e, e.let((first + row) * wide + n), value, 1)
            return
        with e.loop(-(-wide // lanes), parallel=True) as group:
            n = e.let(tirx.min(group * lanes, wide - lanes))
            for at in range(0, self.length, lanes):
                count = min(lanes, self.length - at)
                spill = e.stack(lanes * lanes)

                def row_at(i: int, at: int = at, n: Index = n) -> Index:
                    return z + (n + i) * self.pitch + at

                def put(j: int, column: Expr, spill: Array = spill) -> None:
                    spill.store(j * lanes, column, lanes)

                transpose_block(e, self.scratch, row_at, lanes, put)
                with e.loop(count) as row:
                    place = e.let((first + at + row) * wide + n)
                    self._finish(e, place, e.name(spill.load(row * lanes, lanes)), lanes)

    def _finish(self, e: Emitter, at: Index, value: Expr, width: int) -> None:
        if self.residual is not None:
            value = value + self.residual.load(at, width)
        self.y.store(at, self.product.epilogue.apply(value), width)

    def _pack(self, weights: np.ndarray, bias: np.ndarray | None = None) -> dict[str, np.ndarray]:
        full = np.zeros(self.product.n, np.float32) if bias is None else np.broadcast_to(bias, (self.product.n,))
        matrix = outputs_first(self.product, weights)
        return self.weights.pack([matrix], np.arange(self.product.k), full if self.product.epilogue.bias else None)
