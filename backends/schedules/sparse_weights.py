"""The sparse operand of a kernel: its arrays, how they are packed, and the loop over the entries of a block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from tvm import tirx

from backends.formats import NM, BlockCSR, PatternCSR
from backends.schedules.emit import Array, Emitter, Expr, Index, Registers, const, splat
from backends.schedules.microkernel import factors
from backends.schedules.product import array_or_none, divide
from backends.schedules.sparse_tiles import Vector


@dataclass(frozen=True)
class SparseWeights:
    """`matrices` sparse matrices [rows, depth], each in blocks of `block` rows.

    An entry is a position, counted in `unit` elements of the other operand, and a value per row of the block. unroll:
    sums per row, to hide the latency of multiply-adds in small tiles. deltas: a position is stored as the distance, a
    byte, from the one before it in its block; column k then has position k.
    """

    matrices: int
    rows: int
    depth: int
    block: int
    unroll: int
    positions: int
    unit: int
    deltas: bool = False
    by_lane: int = 0

    @property
    def blocks(self) -> int:
        """Blocks of one matrix."""
        return -(-self.rows // self.block)

    @property
    def ahead(self) -> bool:
        """Each step reads the next one's position, too: there is one more than entries."""
        return self.by_lane > 0 and self.unroll == 1

    @property
    def index(self) -> str:
        """Element type of positions, which are below `positions`."""
        return "uint8" if self.deltas else "uint16" if self.positions <= 1 << 16 else "int32"

    def declare(self, e: Emitter, bias: bool) -> SparseArrays:
        """The parameters values, positions, starts, order and bias?. Their sizes are upper bounds."""
        blocks = self.matrices * self.blocks
        most = blocks * (self.depth + self.unroll)
        return SparseArrays(
            self,
            e.param("values", most * self.block),
            e.param("positions", most + self.ahead, self.index),
            e.param("starts", blocks + 1, "int32"),
            e.param("order", blocks * self.block, "int32"),
            array_or_none(e, bias, "bias", blocks * self.block),
        )

    def pack(self, matrices: Sequence[np.ndarray], table: np.ndarray, bias: np.ndarray | None) -> dict[str, np.ndarray]:
        """What `declare` declares: matrices [rows, depth] whose column k has position table[k]; bias in row order."""
        parts = [BlockCSR.encode(matrix, self.block, self.unroll) for matrix in matrices]
        ends = np.cumsum([0, *(part.starts[-1] for part in parts)])
        starts = [part.starts[:-1] + end for part, end in zip(parts, ends[:-1], strict=True)]
        places = [part.deltas if self.deltas else table[part.columns] for part in parts]
        if self.ahead:
            places.append(np.zeros(1, np.int64))
        packed = {
            "values": np.concatenate([part.values.reshape(-1) for part in parts]),
            "positions": np.concatenate(places).astype(self.index),
            "starts": np.concatenate([*starts, ends[-1:]]).astype(np.int32),
        }
        return packed | _by_rows([part.order.reshape(-1) for part in parts], bias)


def _by_rows(orders: Sequence[np.ndarray], bias: np.ndarray | None) -> dict[str, np.ndarray]:
    """The order of each matrix's rows, and a bias [matrices x rows] in that order."""
    packed = {"order": np.concatenate(orders).astype(np.int32)}
    if bias is not None:
        split = np.asarray(bias, np.float32).reshape(len(orders), -1)
        packed["bias"] = np.concatenate([part[order] for part, order in zip(split, orders, strict=True)])
    return packed


@dataclass(frozen=True)
class SparseArrays:
    """The declared parameters of sparse weights."""

    weights: SparseWeights
    values: Array
    positions: Array
    starts: Array
    order: Array
    bias: Array | None

    def row(self, e: Emitter, block: Index, r: int) -> Index:
        """Which row the r-th of a block is."""
        return self.order.load(block * self.weights.block + r)

    def multiply(
        self, e: Emitter, block: Index, source: Array, at: Index, vectors: Sequence[Vector]
    ) -> list[Registers]:
        """Emit the sums of one block by one tile: for each vector, a register per row."""
        size, unroll = self.weights.block, self.weights.unroll
        sums = [[e.registers(size, v.width) for v in vectors] for _ in range(unroll)]
        for step, part in enumerate(sums):
            for r in range(size):
                for v, acc in zip(vectors, part, strict=True):
                    if self.bias is not None and step == 0:
                        acc[r] = self.bias.splat(block * size + r, v.width)
                    else:
                        acc[r] = const(0.0, v.width, source.dtype)
        begin = e.let(self.starts.load(block))
        if self.weights.ahead:
            self._multiply_ahead(e, block, begin, source, at, vectors, sums[0])
            return sums[0]
        walk = e.registers(1, 1, "int32")
        walk[0] = at if isinstance(at, Expr) else tirx.IntImm("int32", at)
        with e.loop(e.let(self.starts.load(block + 1) - begin)) as j:
            for step, part in enumerate(sums):
                entry = e.let((begin + j) * unroll + step)
                distance = self.positions.load(entry).astype("int32") * self.weights.unit
                if self.weights.deltas:
                    walk[0] = walk[0] + distance
                self._step(e, entry, source, walk[0] if self.weights.deltas else e.let(at + distance), vectors, part)
        for part in sums[1:]:
            for first, acc in zip(sums[0], part, strict=True):
                for r in range(size):
                    first[r] = first[r] + acc[r]
        return sums[0]

    def _multiply_ahead(
        self,
        e: Emitter,
        block: Index,
        begin: Index,
        source: Array,
        at: Index,
        vectors: Sequence[Vector],
        sums: list[Registers],
    ) -> None:
        """As `multiply`; each step finds out where the next one reads, so that no multiply-add waits for that."""
        place = e.registers(1, 1, "int32")

        def distance(entry: Index) -> Expr:
            return self.positions.load(entry).astype("int32") * self.weights.unit

        place[0] = at + distance(begin)
        with e.loop(e.let(self.starts.load(block + 1) - begin)) as j:
            here, entry = e.let(place[0]), e.let(begin + j)
            place[0] = (here if self.weights.deltas else at) + distance(entry + 1)
            self._step(e, entry, source, here, vectors, sums)

    def _step(
        self, e: Emitter, entry: Index, source: Array, place: Expr, vectors: Sequence[Vector], sums: list[Registers]
    ) -> None:
        size = self.weights.block
        if size == 1:
            weight = e.name(self.values.load(entry))
            for v, acc in zip(vectors, sums, strict=True):
                acc[0] = acc[0] + source.load(place + v.at, v.width) * splat(weight, v.width)
            return
        xs = [e.name(source.load(place + v.at, v.width)) for v in vectors]
        weight = factors(e, self.values, entry * size, size, self.weights.by_lane)
        for r in range(size):
            for v, acc, pixels in zip(vectors, sums, xs, strict=True):
                acc[r] = acc[r] + pixels * weight(r, v.width)


@dataclass(frozen=True)
class PatternWeights:
    """As SparseWeights, but the columns of a block are grouped by the rows that use them: nothing is filled up."""

    matrices: int
    rows: int
    depth: int
    block: int
    positions: int
    unit: int
    by_lane: int = 0

    @property
    def blocks(self) -> int:
        """Blocks of one matrix."""
        return -(-self.rows // self.block)

    @property
    def patterns(self) -> int:
        """Patterns of a block."""
        return (1 << self.block) - 1

    @property
    def index(self) -> str:
        """Element type of positions, which are below `positions`."""
        return "uint16" if self.positions <= 1 << 16 else "int32"

    def declare(self, e: Emitter, bias: bool) -> PatternArrays:
        """The parameters values, positions, starts, firsts, order and bias?. Their sizes are upper bounds."""
        blocks = self.matrices * self.blocks
        return PatternArrays(
            self,
            e.param("values", blocks * self.depth * self.block),
            e.param("positions", blocks * self.depth, self.index),
            e.param("starts", blocks * self.patterns + 1, "int32"),
            e.param("firsts", blocks, "int32"),
            e.param("order", blocks * self.block, "int32"),
            array_or_none(e, bias, "bias", blocks * self.block),
        )

    def pack(self, matrices: Sequence[np.ndarray], table: np.ndarray, bias: np.ndarray | None) -> dict[str, np.ndarray]:
        """What `declare` declares: matrices [rows, depth] whose column k has position table[k]; bias in row order."""
        parts = [PatternCSR.encode(matrix, self.block) for matrix in matrices]
        entries = np.cumsum([0, *(part.entries for part in parts)])
        sizes = np.cumsum([0, *(part.values.size for part in parts)])
        starts = [part.starts[:-1] + end for part, end in zip(parts, entries[:-1], strict=True)]
        packed = {
            "values": np.concatenate([part.values for part in parts]),
            "positions": np.concatenate([table[part.columns] for part in parts]).astype(self.index),
            "starts": np.concatenate([*starts, entries[-1:]]).astype(np.int32),
            "firsts": np.concatenate([p.firsts + s for p, s in zip(parts, sizes[:-1], strict=True)]).astype(np.int32),
        }
        return packed | _by_rows([part.order.reshape(-1) for part in parts], bias)


@dataclass(frozen=True)
class PatternArrays:
    """The declared parameters of pattern weights."""

    weights: PatternWeights
    values: Array
    positions: Array
    starts: Array
    firsts: Array
    order: Array
    bias: Array | None

    def row(self, e: Emitter, block: Index, r: int) -> Index:
        """Which row the r-th of a block is."""
        return self.order.load(block * self.weights.block + r)

    def multiply(
        self, e: Emitter, block: Index, source: Array, at: Index, vectors: Sequence[Vector]
    ) -> list[Registers]:
        """Emit the sums of one block by one tile, a loop per pattern: for each vector, a register per row."""
        size, patterns = self.weights.block, self.weights.patterns
        sums = [e.registers(size, v.width) for v in vectors]
        for r in range(size):
            for v, acc in zip(vectors, sums, strict=True):
                acc[r] = (
                    const(0.0, v.width, source.dtype)
                    if self.bias is None
                    else self.bias.splat(block * size + r, v.width)
                )
        value = e.let(self.firsts.load(block))
        begin = e.let(self.starts.load(block * patterns))
        for pattern in range(1, patterns + 1):
            used = [r for r in range(size) if pattern >> r & 1]
            end = e.let(self.starts.load(block * patterns + pattern))
            count = e.let(end - begin)
            with e.loop(count) as j:
                place = e.let(at + self.positions.load(begin + j).astype("int32") * self.weights.unit)
                weight_at = e.let(value + j * len(used))
                if len(used) == 1:
                    weight = e.name(self.values.load(weight_at))
                    for v, acc in zip(vectors, sums, strict=True):
                        acc[used[0]] = acc[used[0]] + source.load(place + v.at, v.width) * splat(weight, v.width)
                else:
                    xs = [e.name(source.load(place + v.at, v.width)) for v in vectors]
                    factor = factors(e, self.values, weight_at, len(used), self.weights.by_lane)
                    for i, r in enumerate(used):
                        for v, acc, pixels in zip(vectors, sums, xs, strict=True):
                            acc[r] = acc[r] + pixels * factor(i, v.width)
            value = e.let(value + count * len(used))
            begin = end
        return sums


@dataclass(frozen=True)
class NMWeights:
    """`matrices` matrices [rows, inputs * taps], of which for each tap `n` of every `m` consecutive inputs are stored.

    Inputs are `step` units apart; taps have positions.
    """

    matrices: int
    rows: int
    inputs: int
    taps: int
    n: int
    m: int
    unit: int
    step: int

    @property
    def blocks(self) -> int:
        """Rows of one matrix."""
        return self.rows

    @property
    def groups(self) -> int:
        """Groups of a row."""
        return self.inputs // self.m * self.taps

    def declare(self, e: Emitter, bias: bool) -> NMArrays:
        """The parameters values, offsets, positions and bias?."""
        rows = self.matrices * self.rows
        return NMArrays(
            self,
            e.param("values", rows * self.groups * self.n),
            e.param("offsets", rows * self.groups * self.n, "uint8"),
            array_or_none(e, self.taps > 1, "positions", self.taps, "int32"),
            array_or_none(e, bias, "bias", rows),
        )

    def pack(self, matrices: Sequence[np.ndarray], table: np.ndarray, bias: np.ndarray | None) -> dict[str, np.ndarray]:
        """What `declare` declares: matrices [rows, inputs * taps] whose column k has position table[k]."""
        # Each group's taps follow each other: they read the same inputs.
        order = np.arange(self.inputs * self.taps).reshape(-1, self.m, self.taps).transpose(0, 2, 1).reshape(-1)
        parts = [NM.encode(matrix[:, order], self.n, self.m) for matrix in matrices]
        packed = {
            "values": np.concatenate([part.values.reshape(-1) for part in parts]),
            "offsets": np.concatenate([part.offsets.reshape(-1) for part in parts]),
        }
        if self.taps > 1:
            packed["positions"] = np.asarray(table)[: self.taps].astype(np.int32)
        if bias is not None:
            packed["bias"] = np.ascontiguousarray(bias, np.float32).reshape(-1)
        return packed


@dataclass(frozen=True)
class NMArrays:
    """The declared parameters of N:M weights."""

    weights: NMWeights
    values: Array
    offsets: Array
    positions: Array | None
    bias: Array | None

    def row(self, e: Emitter, block: Index, r: int) -> Index:
        """Which row a block is."""
        return divide(e, block, self.weights.rows)[1]

    def multiply(
        self, e: Emitter, block: Index, source: Array, at: Index, vectors: Sequence[Vector]
    ) -> list[Registers]:
        """Emit the sums of one row by one tile, a register for each vector."""
        w = self.weights
        sums = [e.registers(1, v.width) for v in vectors]
        for v, acc in zip(vectors, sums, strict=True):
            acc[0] = const(0.0, v.width, source.dtype) if self.bias is None else self.bias.splat(block, v.width)
        first = e.let(block * (w.groups * w.n))
        with e.loop(w.inputs // w.m) as group, e.loop(w.taps) as tap:
            base = at + group * (w.m * w.step * w.unit)
            base = e.let(base if self.positions is None else base + self.positions.load(tap) * w.unit)
            for i in range(w.n):
                entry = e.let(first + (group * w.taps + tap) * w.n + i)
                place = e.let(base + self.offsets.load(entry).astype("int32") * (w.step * w.unit))
                weight = e.name(self.values.load(entry))
                for v, acc in zip(vectors, sums, strict=True):
                    acc[0] = acc[0] + source.load(place + v.at, v.width) * splat(weight, v.width)
        return sums


class Blocked(Protocol):
    """What a specification says of the format of its weights."""

    @property
    def block(self) -> int: ...
    @property
    def unroll(self) -> int: ...
    @property
    def patterns(self) -> bool: ...
    @property
    def nm(self) -> tuple[int, int] | None: ...
    @property
    def deltas(self) -> bool: ...


def sparse_weights(
    matrices: int,
    rows: int,
    depth: int,
    spec: Blocked,
    positions: int,
    unit: int,
    inputs: int = 0,
    step: int = 1,
    by_lane: int = 0,
) -> SparseWeights | PatternWeights | NMWeights:
    """The sparse operand that `spec` asks for. inputs: of `depth` (else all), `step` units apart; by_lane: see
    `factors`."""
    if spec.nm is not None:
        inputs = inputs or depth
        return NMWeights(matrices, rows, inputs, depth // inputs, *spec.nm, unit, step)
    if spec.patterns:
        return PatternWeights(matrices, rows, depth, spec.block, positions, unit, by_lane)
    return SparseWeights(matrices, rows, depth, spec.block, spec.unroll, positions, unit, spec.deltas, by_lane)
