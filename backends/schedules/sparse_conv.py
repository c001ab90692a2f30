"""Sparse convolution: the loop runs over the stored weights, each of which meets a register tile of pixels.

A step loads a position and the weights of a block of output channels there, and multiplies them with the vectors of
pixels at that position (the shape of kernel of Elsen et al., "Fast Sparse ConvNets", 2020, here for any window, any
block and any vector width). Weights differ in place from layer to layer, so they are data: equal shapes share code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tvm import tirx

from backends.schedules import rows
from backends.schedules.emit import Array, Emitter, Expr, Index, Registers
from backends.schedules.epilogue import Epilogue
from backends.schedules.kernel import Kernel, symbol_for
from backends.schedules.microkernel import LONG
from backends.schedules.product import GRAINS, array_or_none, divide, waves
from backends.schedules.sparse_tiles import FlatTiles, Vector, WindowTiles
from backends.schedules.sparse_weights import sparse_weights
from backends.schedules.specs import ConvSpec
from backends.target import Target
from compiler.errors import SecateurError

#: Blocks between a prefetch and its use.
_AHEAD = 4


@dataclass(frozen=True)
class SparseConvSpec:
    """A convolution whose weights are stored in blocks of `block` output channels by one input and tap.

    vectors: vectors of pixels in a register tile. unroll: sums per pixel and channel, to hide the latency of
    multiply-adds in small tiles. packed: 1x1 windows copy each tile of pixels to aligned memory first. patterns:
    inputs are grouped by the channels of a block that use them, instead of filling blocks up with zeros. nm: of every
    so many consecutive inputs so many are stored, (2, 4) for 2:4. deltas: 1x1 windows store the distance from one input
    to the next, a byte.
    """

    conv: ConvSpec
    block: int = 1
    vectors: int = 4
    unroll: int = 1
    packed: bool = False
    patterns: bool = False
    nm: tuple[int, int] | None = None
    deltas: bool = False

    def __post_init__(self) -> None:
        inputs = self.conv.in_channels // self.conv.groups
        misfit = self.nm is not None and (self.block * self.unroll > 1 or self.patterns or inputs % self.nm[1] > 0)
        misfit |= self.deltas and (not self.packs or self.patterns or self.nm is not None)
        if min(self.block, self.vectors, self.unroll) < 1 or misfit:
            raise SecateurError("E_SPEC", "not a tile", where=repr(self))

    @property
    def packs(self) -> bool:
        """True if `packed` makes a difference."""
        conv = self.conv
        return conv.kernel == (1, 1) and conv.strides == (1, 1) and conv.pads == (0, 0, 0, 0)

    @property
    def label(self) -> str:
        """The tile in a few words."""
        return f"{self.vectors} vectors{', packed' if self.packed and self.packs else ''}"

    def tiles(self, target: Target) -> FlatTiles | WindowTiles:
        """How the pixels are cut."""
        conv = self.conv
        if self.packs:
            inputs = conv.in_channels // conv.groups
            return FlatTiles(conv.height * conv.width, inputs, self.vectors, self.packed, target)
        return WindowTiles(conv, self.vectors, target)

    def registers(self, target: Target) -> int:
        """Vector registers in use at once."""
        return sparse_registers(len(self.tiles(target).vectors), self.block, self.unroll, target)


def sparse_registers(vectors: int, block: int, unroll: int, target: Target) -> int:
    """Vector registers that so many vectors of pixels by a block of channels use at once."""
    if target.loads_first:
        return vectors * block * unroll + vectors + block + 1
    return vectors * block * unroll + (vectors if block > 1 else 0) + 1


def sparse_conv2d(spec: SparseConvSpec, target: Target, parallel: bool = False) -> Kernel:
    """y = epilogue(conv(x, w)); parameters x, values, positions, starts, order, bias?, residual?, y, workspace?.

    pack(weights[out, in // groups, kh, kw], bias[out]) encodes what is not zero. Any number of nonzeros fits.
    """
    return _Builder(spec, target, parallel).build()


class _Builder:
    def __init__(self, spec: SparseConvSpec, target: Target, parallel: bool) -> None:
        self.spec, self.conv, self.target, self.parallel = spec, spec.conv, target, parallel
        self.tiles = spec.tiles(target)
        conv = self.conv
        self.outputs, self.inputs = conv.out_channels // conv.groups, conv.in_channels // conv.groups
        self.depth = self.inputs * conv.kernel[0] * conv.kernel[1]
        self.pixels = conv.out_height * conv.out_width
        self.streams = conv.out_channels * self.pixels * target.itemsize > target.l2_bytes // 4
        self.weights = sparse_weights(
            conv.groups,
            self.outputs,
            self.depth,
            spec,
            self.tiles.positions,
            self.tiles.unit,
            self.inputs,
            self.tiles.step,
            target.by_lane,
        )
        self.blocks = self.weights.blocks

    def build(self) -> Kernel:
        conv = self.conv
        items = conv.batch * conv.groups * self.tiles.bands
        staged = self.tiles.scratch > 0
        together = (
            waves(items, self.tiles.scratch * self.target.itemsize, self.target) if self.parallel and staged else 1
        )
        workspace = together * self.tiles.scratch
        symbol = symbol_for("sparse_conv", self.spec, self.target, self.parallel)
        e = Emitter(symbol, self.parallel, self.target.dtype, self.target.max_keeps_nan)
        self.x = e.param("x", conv.batch * conv.in_channels * conv.height * conv.width)
        self.arrays = self.weights.declare(e, conv.epilogue.bias)
        size = conv.batch * conv.out_channels * self.pixels
        self.residual = array_or_none(e, conv.epilogue.residual, "residual", size)
        self.y = e.param("y", size)
        self.scratch = array_or_none(e, workspace > 0, "workspace", workspace)
        if self.parallel and staged:
            self._by_waves(e, items, together)
        else:
            self._one_by_one(e, items)
        return Kernel(symbol, e.finish(), e.roles, workspace * self.target.itemsize, self.pack, conv.macs)

    def _one_by_one(self, e: Emitter, items: int) -> None:
        """Each band is staged, if at all, and computed in turn."""
        with e.loop(items, parallel=True) as item:
            problem, band = divide(e, item, self.tiles.bands)
            if self.scratch is not None:
                with e.loop(self.inputs) as channel:
                    self.tiles.stage(e, self.x, self._image(e, problem), band, channel, self.scratch, 0)
            self._band(e, problem, band, 0, 0, self.blocks)

    def _by_waves(self, e: Emitter, items: int, together: int) -> None:
        """So many bands at a time: all are staged, then all are computed, by several threads each if they are few."""
        assert self.scratch is not None
        splits = min(self.blocks, -(-GRAINS // together))
        each = -(-self.blocks // splits)
        splits = -(-self.blocks // each)
        with e.loop(-(-items // together)) as wave:
            start = e.let(wave * together)
            here: Index = together if items % together == 0 else e.let(tirx.min(together, items - start))
            with e.loop(here * self.inputs, parallel=True) as job:
                place, channel = divide(e, job, self.inputs)
                problem, band = divide(e, e.let(start + place), self.tiles.bands)
                at = e.let(place * self.tiles.scratch)
                self.tiles.stage(e, self.x, self._image(e, problem), band, channel, self.scratch, at)
            with e.loop(here * splits, parallel=True) as job:
                place, split = divide(e, job, splits)
                problem, band = divide(e, e.let(start + place), self.tiles.bands)
                first = e.let(split * each)
                count: Index = each if self.blocks % each == 0 else e.let(tirx.min(each, self.blocks - first))
                self._band(e, problem, band, e.let(place * self.tiles.scratch), first, count)

    def _image(self, e: Emitter, problem: Index) -> Index:
        return e.let(problem * (self.inputs * self.conv.height * self.conv.width))

    def _band(self, e: Emitter, problem: Index, band: Index, at: Index, first: Index, count: Index) -> None:
        """All tiles of a band by blocks [first, first + count)."""
        source = self.x if self.scratch is None else self.scratch
        base = self._image(e, problem) if self.scratch is None else at
        _, group = divide(e, problem, self.conv.groups)
        with e.loop(self.tiles.tiles_per_band) as tile:
            x_at = e.let(base + self.tiles.origin(e, band, tile))
            y_at = e.let(problem * (self.outputs * self.pixels) + self.tiles.first_pixel(e, band, tile))
            with e.loop(count) as b:
                block = e.let(group * self.blocks + first + b)
                self._tile(e, block, source, x_at, y_at)

    def _tile(self, e: Emitter, block: Index, source: Array, x_at: Index, y_at: Index) -> None:
        """One block of channels for one tile of pixels."""
        rows_at = [e.let(y_at + self.arrays.row(e, block, r) * self.pixels) for r in range(self.spec.block)]
        self._prefetch(e, block, y_at)
        sums = self.arrays.multiply(e, block, source, x_at, self.tiles.vectors)
        store_tile(e, self.conv.epilogue, self.y, self.residual, self.tiles.vectors, sums, rows_at)

    def _prefetch(self, e: Emitter, block: Index, y_at: Index) -> None:
        """Ask for the lines of y that a later block writes, where y comes from beyond the second-level cache."""
        if not self.streams:
            return
        later = e.let(tirx.min(block + _AHEAD, self.conv.groups * self.blocks - 1))
        for r in range(self.spec.block):
            row = e.let(y_at + self.arrays.row(e, later, r) * self.pixels)
            for piece in (piece for v in self.tiles.vectors for piece in v.pieces):
                self.y.prefetch(row + piece.pixel, write=True)
                if self.residual is not None:
                    self.residual.prefetch(row + piece.pixel)

    def pack(self, weights: np.ndarray, bias: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Weights [out, in // groups, kh, kw] and bias [out] as the kernel reads them."""
        conv, (kh, kw) = self.conv, self.conv.kernel
        grouped = np.asarray(weights, np.float32).reshape(conv.groups, self.outputs, self.depth)
        table = np.array(
            [self.tiles.position(c, ky, kx) for c in range(self.inputs) for ky in range(kh) for kx in range(kw)]
        )
        full = np.zeros(conv.out_channels, np.float32) if bias is None else bias
        return self.weights.pack(list(grouped), table, full if conv.epilogue.bias else None)


def store_tile(
    e: Emitter,
    epilogue: Epilogue,
    y: Array,
    residual: Array | None,
    vectors: Sequence[Vector],
    sums: Sequence[Registers],
    rows_at: Sequence[Index],
) -> None:
    """Store the sums of a tile, for each vector a register per row, to the rows of y that begin at rows_at."""
    if epilogue.activation in LONG and len(rows_at) * len(vectors) > 2:
        _store_by_loop(e, epilogue, y, residual, vectors, sums, rows_at)
        return
    for r, row in enumerate(rows_at):
        for v, acc in zip(vectors, sums, strict=True):
            _put(y, residual, epilogue, row, v, acc[r])


def _store_by_loop(
    e: Emitter,
    epilogue: Epilogue,
    y: Array,
    residual: Array | None,
    vectors: Sequence[Vector],
    sums: Sequence[Registers],
    rows_at: Sequence[Index],
) -> None:
    """Activations of much code: once per vector in a loop over the channels."""
    size = len(rows_at)
    places = e.stack(size, "int32")
    for r, row in enumerate(rows_at):
        places.store(r, row)
    for v, acc in zip(vectors, sums, strict=True):
        spill = e.stack(size * v.width)
        for r in range(size):
            spill.store(r * v.width, acc[r], v.width)
        with e.loop(size) as r:
            value = e.name(spill.load(r * v.width, v.width))
            _put(y, residual, epilogue, e.let(places.load(r)), v, value)


def _put(y: Array, residual: Array | None, epilogue: Epilogue, row: Index, vector: Vector, value: Expr) -> None:
    """The epilogue of one vector, and its stores."""
    if residual is None:
        value = epilogue.apply(value)
        for piece in vector.pieces:
            rows.store_lanes(y, row + piece.pixel, value, vector.width, piece.lane, piece.count)
        return
    for piece in vector.pieces:
        if vector.whole:
            y.store(
                row + piece.pixel, epilogue.apply(value + residual.load(row + piece.pixel, vector.width)), vector.width
            )
            continue
        for offset, width in rows.cover(piece.count, rows.power_of_two_below(piece.count)):
            part = rows.lanes(value, vector.width, piece.lane + offset, width)
            at = row + piece.pixel + offset
            y.store(at, epilogue.apply(part + residual.load(at, width)), width)
