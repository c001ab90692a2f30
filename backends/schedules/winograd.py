"""Convolutions of few taps with fewer multiplications: Winograd's F(m x m, r x r).

Tiles of (m + r - 1)² pixels become as many points, each point a matrix product over channels, and m² outputs come back.
3x3: 2.25 times fewer multiplications than the direct sum for m = 2, 4 times for m = 4, with weights 16/9 and 4 times as
large; relative errors are about 3e-7 and 1e-6 (see `toom_cook`).

Stride 2 is stride 1 over four times the channels, one for every parity of row and column, with half the taps: 7x7 over
3 channels, where many networks begin, is 4x4 over 12, and takes 4 times fewer multiplications for m = 4.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from tvm import tirx

from backends.costs import dense_costs
from backends.schedules import rows as row_copies
from backends.schedules.emit import STACK_BYTES, Array, Emitter, Expr, Index, shuffle
from backends.schedules.epilogue import Epilogue
from backends.schedules.kernel import Kernel, symbol_for
from backends.schedules.microkernel import LONG, NARROW_STEPS, Operands, plan
from backends.schedules.product import GRAINS, Product, array_or_none
from backends.schedules.rows import cover, gather, power_of_two_above, power_of_two_below
from backends.schedules.specs import ConvSpec
from backends.schedules.toom_cook import SIZES, ToomCook, multiply
from backends.target import Target

__all__ = ["Tiling", "tile_sizes", "winograd"]

#: Cycles of the products over what their register tiles are estimated to take, of a byte that leaves the second-level
#: cache and comes back, and of staging a row of one channel.
_PRODUCT, _FAR, _STAGED = 0.85, 0.16, 55.0
#: Cycles per byte of weights at least: what comes from memory and is used once.
_WEIGHTS = 0.2
#: Points of a block may take so many second-level caches, or so many times what goes in and comes out.
_MOST_CACHES, _MOST_IMAGES = 1.75, 1.5
#: Points that take at most so much of what goes in and comes out are preferred, for so many times the cycles.
_LITTLE, _WORTH = 0.05, 1.15
#: Parts that the output channels may be computed in, and the fewest channels of one.
_PARTS, _FEWEST = (1, 2, 4), 16


def tile_sizes(spec: ConvSpec, target: Target) -> tuple[int, ...]:
    """The values of m by which the method can compute this convolution; none where it does not apply.

    In half precision the least alone: for 3x3, m = 2 errs less than twice as much as the sum as written, m = 4 five
    times as much.
    """
    square = spec.kernel[0] == spec.kernel[1] and spec.strides[0] == spec.strides[1] <= 2
    if not square or spec.dilations != (1, 1) or spec.groups != 1:
        return ()
    sizes = SIZES.get(_taps(spec), ())
    return sizes if target.dtype == "float32" else sizes[:1]


def _taps(spec: ConvSpec) -> int:
    """Taps of every phase of the kernel."""
    return -(-spec.kernel[0] // spec.strides[0])


@dataclass(frozen=True)
class Piece:
    """A vector of tiles: `count` neighbours from tile `first` on, in each of so many rows of tiles; `width` lanes."""

    first: int
    count: int
    width: int


@dataclass(frozen=True)
class Tiling:
    """Tiles of m x m outputs: `down` rows of `across` tiles, of which `rows` rows are in flight at once.

    parts: the output channels are computed in so many equal parts, so that fewer sums wait for their way out.
    With stride s every channel has s² phases: phase (p, q) is rows p, p + s, … and columns q, q + s, … of it.
    """

    spec: ConvSpec
    target: Target
    m: int
    rows: int
    parts: int = 1

    @classmethod
    def of(cls, spec: ConvSpec, target: Target, m: int) -> Tiling:
        """The number of rows and parts with the least estimated cycles."""
        down = -(-spec.out_height // m)
        heights = sorted({-(-down // blocks) for blocks in range(1, down + 1)})
        channels = spec.out_channels
        divisors = [n for n in _PARTS if n == 1 or (channels % n == 0 and channels // n >= _FEWEST)]
        tilings = [cls(spec, target, m, rows, parts) for rows in heights for parts in divisors]
        images = spec.in_channels * spec.height * spec.width + channels * spec.out_height * spec.out_width
        most = max(_MOST_CACHES * target.l2_bytes, _MOST_IMAGES * target.itemsize * images)
        fitting = [t for t in tilings if t.points_bytes <= most] or tilings[len(divisors) - 1 : len(divisors)]
        best = min(fitting, key=lambda tiling: tiling.cycles)
        little = [
            t
            for t in fitting
            if t.points_bytes <= _LITTLE * target.itemsize * images and t.cycles <= _WORTH * best.cycles
        ]
        return min(little, key=lambda tiling: tiling.cycles, default=best)

    @property
    def down(self) -> int:
        """Rows of tiles."""
        return -(-self.spec.out_height // self.m)

    @property
    def across(self) -> int:
        """Tiles in a row."""
        return -(-self.spec.out_width // self.m)

    @property
    def blocks(self) -> int:
        """Blocks of `rows` rows; the last one overlaps its neighbour rather than being shorter."""
        return -(-self.down // self.rows)

    @property
    def tiles(self) -> int:
        """Tiles in flight."""
        return self.rows * self.across

    @property
    def taps(self) -> int:
        """Taps along one axis."""
        return _taps(self.spec)

    @property
    def stride(self) -> int:
        """Pixels from one output to the next, along each axis."""
        return self.spec.strides[0]

    @property
    def phases(self) -> int:
        """Phases of all input channels: what the products sum over."""
        return self.spec.in_channels * self.stride**2

    @property
    def size(self) -> int:
        """Points of a tile along one axis."""
        return self.m + self.taps - 1

    @property
    def points(self) -> int:
        """Points of a tile."""
        return self.size**2

    @property
    def narrow_steps(self) -> int:
        """Steps of a sum that is held in half precision: errors grow with the coefficients that it is multiplied by."""
        return NARROW_STEPS if self.size <= 4 else NARROW_STEPS // 4

    @property
    def weights(self) -> int:
        """Elements of the weights."""
        return self.points * self.phases * self.spec.out_channels

    @property
    def together(self) -> int:
        """Rows of tiles in one vector: more than one where rows are short."""
        lanes = self.target.lanes()
        return min(self.rows, power_of_two_below(lanes // self.across)) if self.across < lanes else 1

    @property
    def pieces(self) -> list[Piece]:
        """The vectors over `together` rows of tiles."""
        lanes = self.target.lanes()
        if self.across <= lanes:
            return [Piece(0, self.across, power_of_two_above(self.together * self.across))]
        return [Piece(offset, width, width) for offset, width in cover(self.across, lanes)]

    @property
    def pitch(self) -> int:
        """Elements per channel and point: the tiles, and what vectors write beyond the last."""
        return (self.rows - self.together) * self.across + max(p.first + p.width for p in self.pieces)

    @property
    def outputs(self) -> int:
        """Output channels of a part."""
        return self.spec.out_channels // self.parts

    def elements(self, channels: int) -> int:
        """Elements of one point of all channels: an odd number of cache lines, so that points do not share sets."""
        return (-(-channels * self.pitch // 16) | 1) * 16

    @property
    def points_bytes(self) -> int:
        """Bytes of all points of a block, before and after the products."""
        return self.target.itemsize * self.points * (self.elements(self.phases) + self.elements(self.outputs))

    @property
    def line(self) -> int:
        """Elements of a staged row of pixels: zeros around it, and what vectors read beyond it."""
        lanes = self.target.lanes()
        return -(-(self.across * self.m + self.taps - 1 + 2 * lanes) // 16) * 16

    @property
    def staged_rows(self) -> int:
        """Rows of one phase that a block reads."""
        return self.rows * self.m + self.taps - 1

    @property
    def plane(self) -> int:
        """Elements of one staged phase."""
        return self.staged_rows * self.line

    @property
    def scratch(self) -> int:
        """Elements of scratch for staging the phases of one channel that have their rows in common."""
        return self.stride * self.plane

    @property
    def cycles(self) -> float:
        """Estimated cycles of the convolution on one core."""
        spec, lanes = self.spec, self.target.lanes()
        product = self.parts * self.points * plan(self.tiles, self.outputs, self.target).cost * self.phases
        far = max(0, self.points_bytes - self.target.l2_bytes)
        vectors = -(-self.rows // self.together) * sum(max(0.5, p.width / lanes) for p in self.pieces)
        transformed = vectors * self.points * (self.phases + spec.out_channels)
        staged, costs = self.rows * self.m * self.phases, dense_costs(self.target)
        each = costs.transformed + costs.spilled * max(0, 2 * self.size + 2 - self.target.vector_registers)
        block = _PRODUCT * product + _FAR * far + each * transformed + _STAGED * staged
        return max(spec.batch * self.blocks * block, _WEIGHTS * self.target.itemsize * self.weights)


def winograd(spec: ConvSpec, target: Target, parallel: bool = False, m: int = 2) -> Kernel:
    """As conv2d, by tiles of m x m outputs, m one of the `tile_sizes` of the spec."""
    return _Builder(spec, target, parallel, m).build()


class _Builder:
    def __init__(self, spec: ConvSpec, target: Target, parallel: bool, m: int) -> None:
        self.spec, self.target, self.parallel, self.m = spec, target, parallel, m
        self.tiling = tiling = Tiling.of(spec, target, m)
        self.transforms = ToomCook.of(m, tiling.taps)
        matrices = tiling.parts * tiling.points
        self.product = Product(tiling.outputs, tiling.phases, tiling.tiles, target, Epilogue(), matrices)
        self.inputs, self.outputs = tiling.elements(tiling.phases), tiling.elements(tiling.outputs)
        #: What is staged together: the phases of a channel that have their rows in common.
        self.staged = spec.in_channels * tiling.stride
        self.share = -(-self.staged // min(self.staged, 2 * GRAINS)) if parallel else self.staged
        self.slots = -(-self.staged // self.share)
        #: Elements of the buffer through which tiles with more points than registers are transformed; 0: without.
        many = tiling.points > target.vector_registers and tiling.together == 1
        self.lines = tiling.size * tiling.line if (target.few_in_flight or target.loads_first) and many else 0
        self.on_stack = (tiling.scratch + self.lines) * target.itemsize <= STACK_BYTES

    def build(self) -> Kernel:
        spec, epilogue, tiling, product = self.spec, self.spec.epilogue, self.tiling, self.product
        symbol = symbol_for(f"winograd{self.m}", spec, self.target, self.parallel)
        self.sums_at = tiling.points * self.inputs
        self.stage_at = self.sums_at + tiling.points * self.outputs
        workspace = self.stage_at + (0 if self.on_stack else self.slots * tiling.scratch)
        self.out_plane = spec.out_height * spec.out_width

        e = Emitter(symbol, self.parallel, self.target.dtype, self.target.max_keeps_nan)
        self.x = e.param("x", spec.batch * spec.in_channels * spec.height * spec.width)
        self.w = e.param("w", product.matrices * product.packed_weights)
        self.bias = array_or_none(e, epilogue.bias, "bias", spec.out_channels)
        size = spec.batch * spec.out_channels * self.out_plane
        self.residual = array_or_none(e, epilogue.residual, "residual", size)
        self.y = e.param("y", size)
        self.scratch = e.param("workspace", workspace)

        with e.loop(spec.batch) as image, e.loop(tiling.blocks) as block:
            first = e.let(tirx.min(block * tiling.rows, tiling.down - tiling.rows)) if tiling.blocks > 1 else 0
            with e.loop(self.slots, parallel=True) as slot:
                stage = e.stack(tiling.scratch) if self.on_stack else self.scratch
                at = 0 if self.on_stack else e.let(slot * tiling.scratch + self.stage_at)
                row_copies.fill(e, stage, at, tiling.scratch, self.target.lanes(), 0.0)
                with e.loop(self.share) as j:
                    index = e.let(slot * self.share + j)
                    with e.when(True if self.staged % self.share == 0 else index < self.staged):
                        self._stage_rows(e, e.let(image * self.staged + index), first, stage, at)
                        with e.loop(tiling.stride) as phase:
                            here = e.let(at + phase * tiling.plane)
                            self._to_points(e, stage, here, e.let((index * tiling.stride + phase) * tiling.pitch))
            with e.loop(tiling.parts) as part:
                product.emit_blocks(e, tiling.points, functools.partial(self._operands, e, part))
                with e.loop(tiling.outputs, parallel=True) as channel:
                    self._from_points(e, image, part, channel, first)
        return Kernel(symbol, e.finish(), e.roles, workspace * self.target.itemsize, self.pack, spec.macs)

    def pack(self, weights: np.ndarray, bias: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Weights [out, in, kernel, kernel] and bias [out] as the kernel reads them."""
        points, n = self.transforms.pack(self._split(weights)), self.tiling.outputs
        parts = [point[part * n : part * n + n] for part in range(self.tiling.parts) for point in points]
        packed = {"w": np.concatenate([self.product.pack_weights(part) for part in parts])}
        if self.spec.epilogue.bias:
            full = np.zeros(self.spec.out_channels, np.float32) if bias is None else bias
            packed["bias"] = np.ascontiguousarray(full, np.float32).reshape(-1)
        return packed

    def _operands(self, e: Emitter, part: Expr, point: Expr) -> Operands:
        matrix = e.let(part * self.tiling.points + point)
        return Operands(
            x=self.scratch,
            x_at=e.let(point * self.inputs),
            x_step=self.tiling.pitch,
            w=self.w,
            w_at=e.let(matrix * self.product.packed_weights),
            y=self.scratch,
            y_at=e.let(point * self.outputs + self.sums_at),
            y_channel=self.tiling.pitch,
            narrow_steps=self.tiling.narrow_steps,
        )

    def _split(self, weights: np.ndarray) -> np.ndarray:
        """Weights [out, in, kernel, kernel] of every phase, [out, phases, taps, taps]."""
        taps, stride = self.tiling.taps, self.tiling.stride
        missing = taps * stride - self.spec.kernel[0]
        padded = np.pad(weights, ((0, 0), (0, 0), (0, missing), (0, missing)))
        split = padded.reshape(*weights.shape[:2], taps, stride, taps, stride).transpose(0, 1, 3, 5, 2, 4)
        return split.reshape(weights.shape[0], self.tiling.phases, taps, taps)

    def _stage_rows(self, e: Emitter, index: Expr, first: Index, stage: Array, at: Index) -> None:
        """Copy the rows that a block reads, of all phases that have them; columns beyond the image stay zero.

        index: (image * in_channels + channel) * stride + parity of the rows.
        """
        spec, tiling, lanes, stride = self.spec, self.tiling, self.target.lanes(), self.tiling.stride
        top, left = spec.pads[:2]
        leaves = top > 0 or stride * (tiling.down * self.m + tiling.taps - 1) - top > spec.height
        plane, parity = (
            (index, 0) if stride == 1 else (e.let(tirx.truncdiv(index, stride)), e.let(tirx.truncmod(index, stride)))
        )
        with e.loop(tiling.staged_rows) as r:
            row, to = e.let((first * self.m + r) * stride + parity - top), e.let(at + r * tiling.line)
            source = e.let((plane * spec.height + row) * spec.width)

            def inside(source: Index = source, to: Index = to) -> None:
                for phase in range(stride):
                    skipped = max(0, -(-(left - phase) // stride))
                    start = skipped * stride + phase - left
                    length = min(-(-(spec.width - start) // stride), tiling.line - skipped)
                    here = to + (phase * tiling.plane + skipped)
                    row_copies.copy(e, stage, here, self.x, source + start, stride, length, lanes)

            def outside(to: Index = to) -> None:
                for phase in range(stride):
                    row_copies.fill(e, stage, to + phase * tiling.plane, tiling.line, lanes, 0.0)

            e.choose(tirx.all(row >= 0, row < spec.height) if leaves else True, inside, outside)

    @staticmethod
    def _groups(e: Emitter, tiling: Tiling) -> Iterator[Index]:
        """The first row of tiles of each vector; the last ones overlap."""
        groups = -(-tiling.rows // tiling.together)
        with e.loop(groups) as group:
            first = e.let(group * tiling.together)
            exact = tiling.rows % tiling.together == 0
            yield first if exact else e.let(tirx.min(first, tiling.rows - tiling.together))

    def _to_points(self, e: Emitter, stage: Array, at: Index, channel: Index) -> None:
        """All points of every tile of one staged channel."""
        tiling, m, size = self.tiling, self.m, self.tiling.size
        if self.lines:
            self._to_points_by_lines(e, stage, at, channel)
            return
        for first in self._groups(e, tiling):
            base, to = e.let(at + first * (m * tiling.line)), e.let(channel + first * tiling.across)
            for piece in tiling.pieces:
                across = [self._pixels(e, stage, base + i * tiling.line, piece) for i in range(size)]
                across = [multiply(e, self.transforms.to_points, row) for row in across]
                for j in range(size):
                    column = multiply(e, self.transforms.to_points, [across[i][j] for i in range(size)])
                    for i, value in enumerate(column):
                        place = to + ((i * size + j) * self.inputs + piece.first)
                        self.scratch.store(place, value, piece.width)

    def _to_points_by_lines(self, e: Emitter, stage: Array, at: Index, channel: Index) -> None:
        """As `_to_points`, down the columns of pixels first, into a buffer of lines: few vectors are in flight."""
        tiling, m, size, lanes = self.tiling, self.m, self.tiling.size, self.target.lanes()
        lines, to_points = e.stack(self.lines), self.transforms.to_points
        for first in self._groups(e, tiling):
            base, to = e.let(at + first * (m * tiling.line)), e.let(channel + first * tiling.across)
            with e.loop(-(-(tiling.across * m + tiling.taps - 1) // lanes)) as v:
                offset = e.let(v * lanes)
                values = [e.name(stage.load(base + (i * tiling.line + offset), lanes)) for i in range(size)]
                for i, value in enumerate(multiply(e, to_points, values)):
                    lines.store(i * tiling.line + offset, value, lanes)
            with e.loop(size) as i:
                line, row = e.let(i * tiling.line), e.let(to + i * (size * self.inputs))
                for piece in tiling.pieces:
                    square = piece.count == piece.width == m == lanes
                    pixels = (self._square if square else self._pixels)(e, lines, line, piece)
                    for j, value in enumerate(multiply(e, to_points, pixels)):
                        self.scratch.store(row + (j * self.inputs + piece.first), value, piece.width)

    def _square(self, e: Emitter, stage: Array, base: Index, piece: Piece) -> list[Expr]:
        """As `_pixels`, of as many tiles as they have outputs: pixel m + j is pixel j of the next tile."""
        m, first = self.m, base + piece.first * self.m
        columns = row_copies.transposed(e, [e.name(stage.load(first + c * m, m)) for c in range(m)])
        for j in range(self.tiling.taps - 1):
            beyond = e.name(stage.load(first + (m * m + j), m))
            columns.append(e.name(shuffle([columns[j], beyond], range(1, m + 1))))
        return columns

    def _pixels(self, e: Emitter, stage: Array, base: Index, piece: Piece) -> list[Expr]:
        """Pixel j of each tile of a vector, for every j; `base` is where the first row of tiles begins."""
        tiling, m = self.tiling, self.m
        lanes = min(self.target.lanes(), power_of_two_above(max(piece.count * m, piece.width)))
        columns = []
        for start in range(0, tiling.size, m):
            phases = range(min(m, tiling.size - start))
            reach = (piece.count - 1) * m + len(phases)
            vectors = [
                e.name(stage.load(base + (r * m * tiling.line + piece.first * m + start + offset), lanes))
                for r in range(tiling.together)
                for offset in range(0, reach, lanes)
            ]
            per_row = len(vectors) // tiling.together
            for phase in phases:
                places = [
                    r * per_row * lanes + c * m + phase for r in range(tiling.together) for c in range(piece.count)
                ]
                places += places[-1:] * (piece.width - len(places))
                columns.append(e.name(gather(e, vectors, places)))
        return columns

    def _from_points(self, e: Emitter, image: Expr, part: Expr, place: Expr, first_tile: Index) -> None:
        """The outputs of the channel at `place` of a part, from the sums at all points."""
        spec, tiling, m, size = self.spec, self.tiling, self.m, self.tiling.size
        channel = e.let(part * tiling.outputs + place)
        plane = e.let((image * spec.out_channels + channel) * self.out_plane)
        source = e.let(place * tiling.pitch + self.sums_at)
        for first in self._groups(e, tiling):
            start, row = e.let(source + first * tiling.across), e.let((first + first_tile) * m)
            for piece in tiling.pieces:
                down: list[list[Expr]] = []
                for j in range(size):
                    places = [start + ((i * size + j) * self.outputs + piece.first) for i in range(size)]
                    sums = [e.name(self.scratch.load(place, piece.width)) for place in places]
                    down.append(multiply(e, self.transforms.from_points, sums))
                outputs = [multiply(e, self.transforms.from_points, [d[i] for d in down]) for i in range(m)]
                self._store(e, piece, outputs, row, plane, channel)

    def _store(
        self, e: Emitter, piece: Piece, outputs: list[list[Expr]], row: Index, plane: Index, channel: Expr
    ) -> None:
        """Outputs [row of a tile][column of a tile] of a vector of tiles, to `row` and the rows after it."""
        spec, tiling, m = self.spec, self.tiling, self.m
        column = piece.first * m
        length = min(piece.count * m, spec.out_width - column)
        ragged = spec.out_height % m != 0
        vectors = cover(length, self.target.lanes()) if length > 0 else []
        spill = e.stack(tiling.together * m * length) if spec.epilogue.activation in LONG and length > 0 else None
        square = bool(self.lines) and piece.count == piece.width == m == self.target.lanes()
        for r in range(tiling.together):
            for i in range(m):
                here = e.let(row + (r * m + i))
                tiles = row_copies.transposed(e, outputs[i]) if square else []
                with e.when(here < spec.out_height if ragged and spill is None else True):
                    base = e.let(plane + here * spec.out_width + column)
                    for offset, width in vectors:
                        places = [
                            (p % m) * piece.width + r * piece.count + p // m for p in range(offset, offset + width)
                        ]
                        whole = square and width == m and offset % m == 0
                        value = tiles[offset // m] if whole else e.name(gather(e, outputs[i], places))
                        if spill is not None:
                            spill.store((r * m + i) * length + offset, value, width)
                        else:
                            self._finish(e, base + offset, value, width, channel)
        if spill is None:
            return
        with e.loop(tiling.together * m) as r:
            here = e.let(row + r)
            with e.when(here < spec.out_height if ragged else True):
                base = e.let(plane + here * spec.out_width + column)
                for offset, width in vectors:
                    self._finish(e, base + offset, spill.load(r * length + offset, width), width, channel)

    def _finish(self, e: Emitter, place: Index, value: Expr, width: int, channel: Expr) -> None:
        if self.bias is not None:
            value = value + self.bias.splat(channel, width)
        if self.residual is not None:
            value = value + self.residual.load(place, width)
        self.y.store(place, e.name(self.spec.epilogue.apply(value)), width)
