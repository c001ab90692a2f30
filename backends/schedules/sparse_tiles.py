"""How the pixels of an image are cut for sparse convolutions: bands that are staged, tiles that fit the registers.

A tile is a fixed list of vectors. In staged memory every tap of a window is a constant distance from its pixel, so a
weight's position is one number: pixels beyond the image are there as zeros, and strides are taken out by keeping the
pixels of each remainder apart.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from tvm import tirx

from backends.schedules import rows
from backends.schedules.emit import LINE, Array, Emitter, Index
from backends.schedules.product import divide
from backends.schedules.specs import ConvSpec
from backends.target import Target

#: Elements of a staged band that two bytes can address.
_REACH = 1 << 16


@dataclass(frozen=True)
class Piece:
    """Lanes [lane, lane + count) of a vector are the pixels from `pixel` on, counted from the tile's first."""

    lane: int
    count: int
    pixel: int


@dataclass(frozen=True)
class Vector:
    """`width` elements from `at` on, counted from the tile's origin; `pieces` say which are stored, and where."""

    at: int
    width: int
    pieces: tuple[Piece, ...]

    @property
    def whole(self) -> bool:
        """True if one store takes all lanes."""
        return len(self.pieces) == 1 and self.pieces[0].count == self.width


def line(length: int, lanes: int, at: int = 0, pixel: int = 0) -> list[Vector]:
    """Vectors over a row of `length` pixels, the last of which may read beyond it."""
    found = []
    for first in range(0, length, lanes):
        count = min(lanes, length - first)
        found.append(Vector(at + first, rows.power_of_two_above(count), (Piece(0, count, pixel + first),)))
    return found


@dataclass(frozen=True)
class FlatTiles:
    """1x1 windows of stride 1: the image is one long row. `packed` copies each tile to aligned memory first.

    plane: pixels from one channel to the next, where the row is a part of the image.
    """

    pixels: int
    channels: int
    vectors_wanted: int
    packed: bool
    target: Target
    plane: int = 0

    @functools.cached_property
    def length(self) -> int:
        """Pixels of a tile: even shares of the row, in half vectors."""
        lanes = self.target.lanes()
        count = -(-self.pixels // (self.vectors_wanted * lanes))
        half = max(1, lanes // 2)
        share = -(-self.pixels // count)
        return min(self.pixels, -(-share // half) * half)

    @functools.cached_property
    def vectors(self) -> tuple[Vector, ...]:
        """The vectors of a tile."""
        lanes = self.target.lanes()
        if self.packed or self.pixels == self.length:
            found = line(self.length, lanes)
            if self.packed or found[-1].whole:
                return tuple(found)
        # Unpacked, nothing beyond the row may be read: the last vectors overlap.
        return tuple(Vector(at, width, (Piece(0, width, at),)) for at, width in rows.cover(self.length, lanes))

    @property
    def bands(self) -> int:
        """Pieces that are staged one by one."""
        return -(-self.pixels // self.length)

    tiles_per_band = 1

    @property
    def pitch(self) -> int:
        """Elements from one channel to the next where the kernel reads."""
        lanes = self.target.lanes()
        return -(-self.length // lanes) * lanes if self.packed else self.plane or self.pixels

    @property
    def scratch(self) -> int:
        """Elements of staged memory per band."""
        return self.channels * self.pitch if self.packed else 0

    @property
    def aligned(self) -> bool:
        """True if vectors lie within cache lines."""
        lanes = self.target.lanes()
        return self.packed or (self.pixels % lanes == 0 and self.length % lanes == 0)

    @property
    def footprint(self) -> int:
        """Elements, in whole cache lines, that one tile reads."""
        return self.channels * (len(self.vectors) + (not self.aligned)) * self.target.lanes()

    @property
    def whole_lines(self) -> bool:
        """True if the rows of a tile, in the image, are whole cache lines."""
        return (self.plane or self.pixels) % LINE == 0 and self.length % LINE == 0

    @property
    def scattered(self) -> int:
        """Rows of a tile that lie apart from each other where the kernel reads them."""
        return 0 if self.packed else self.channels

    @property
    def unit(self) -> int:
        """What a position is counted in."""
        return self.pitch

    step = 1

    def position(self, channel: int, ky: int, kx: int) -> int:
        """The position of a weight, in units."""
        return channel

    @property
    def positions(self) -> int:
        """Positions are below this."""
        return self.channels

    def first_pixel(self, e: Emitter, band: Index, tile: Index) -> Index:
        """The first pixel of y in a tile; the last tile overlaps its neighbour rather than being shorter."""
        if self.bands == 1:
            return 0
        return e.let(tirx.min(band * self.length, self.pixels - self.length))

    def origin(self, e: Emitter, band: Index, tile: Index) -> Index:
        """Where the tile begins, in staged memory or in the image."""
        return 0 if self.packed else self.first_pixel(e, band, tile)

    def stage(self, e: Emitter, x: Array, image: Index, band: Index, channel: Index, scratch: Array, at: Index) -> None:
        """Copy one channel of a band."""
        source = e.let(image + channel * self.pixels + self.first_pixel(e, band, 0))
        rows.copy(e, scratch, e.let(at + channel * self.pitch), x, source, 1, self.length, self.target.lanes())


@dataclass(frozen=True)
class WindowTiles:
    """Any window: rows of the padded image are staged, those of each remainder modulo the strides apart."""

    spec: ConvSpec
    vectors_wanted: int
    target: Target

    @functools.cached_property
    def _phases(self) -> tuple[list[int], list[int]]:
        (kh, kw), (sh, sw), (dh, dw) = self.spec.kernel, self.spec.strides, self.spec.dilations
        return sorted({k * dh % sh for k in range(kh)}), sorted({k * dw % sw for k in range(kw)})

    @functools.cached_property
    def _reach(self) -> tuple[int, int]:
        """Rows and columns that the farthest tap is away from its pixel, within its phase."""
        (kh, kw), (sh, sw), (dh, dw) = self.spec.kernel, self.spec.strides, self.spec.dilations
        return (kh - 1) * dh // sh, (kw - 1) * dw // sw

    @functools.cached_property
    def _margin(self) -> int:
        """Zero columns that a row's end may share with the beginning of the next one."""
        spec = self.spec
        stride, left, needed = spec.strides[1], spec.pads[1], spec.out_width + self._reach[1]
        shared = needed
        for phase in self._phases[1]:
            leading = max(0, -((phase - left) // stride))
            inside = max(leading, min(needed, (spec.width - 1 - phase + left) // stride + 1))
            shared = min(shared, leading, needed - inside)
        return shared

    @functools.cached_property
    def _needed(self) -> int:
        return self.spec.out_width + self._reach[1] - self._margin

    @functools.cached_property
    def rows_per_vector(self) -> int:
        """Output rows in one vector: more than one only where rows are at most half a vector long."""
        lanes = self.target.lanes()
        return lanes // rows.power_of_two_above(self._needed) if self._needed <= lanes // 2 else 1

    @functools.cached_property
    def pitch(self) -> int:
        """Elements of a staged row."""
        lanes = self.target.lanes()
        if self._needed <= lanes:
            return rows.power_of_two_above(self._needed)
        half = max(1, lanes // 2)
        return -(-self._needed // half) * half

    @functools.cached_property
    def columns(self) -> int:
        """Pixels of a row that one tile takes."""
        wide, lanes = self.spec.out_width, self.target.lanes()
        if wide <= self.vectors_wanted * lanes:
            return wide
        count, half = -(-wide // (self.vectors_wanted * lanes)), max(1, lanes // 2)
        share = -(-wide // count)
        return min(wide, -(-share // half) * half)

    @functools.cached_property
    def height(self) -> int:
        """Rows of a tile."""
        high, lanes = self.spec.out_height, self.target.lanes()
        if self.rows_per_vector > 1:
            return min(high, self.vectors_wanted * self.rows_per_vector)
        most = max(1, self.vectors_wanted // -(-self.columns // lanes))
        return -(-high // -(-high // most))

    @functools.cached_property
    def vectors(self) -> tuple[Vector, ...]:
        """The vectors of a tile."""
        wide, lanes, group = self.spec.out_width, self.target.lanes(), self.rows_per_vector
        found: list[Vector] = []
        if group == 1:
            for row in range(self.height):
                found += line(self.columns, lanes, row * self.pitch, row * wide)
            return tuple(found)
        for first in range(0, self.height, group):
            there = range(first, min(first + group, self.height))
            pieces = tuple(Piece((row - first) * self.pitch, wide, row * wide) for row in there)
            width = rows.power_of_two_above(pieces[-1].lane + wide)
            found.append(Vector(first * self.pitch, width, pieces))
        return tuple(found)

    @functools.cached_property
    def _grid(self) -> tuple[int, int]:
        return -(-self.spec.out_height // self.height), -(-self.spec.out_width // self.columns)

    @functools.cached_property
    def tile_rows_per_band(self) -> int:
        """Rows of tiles that are staged together."""
        down = self._grid[0]
        inputs = self.spec.in_channels // self.spec.groups
        for count in range(down, 1, -1):
            if -(-down // count) == -(-down // (count - 1)):
                continue
            if inputs * self._plane(count) <= min(_REACH, self.target.l2_bytes // 16):
                return count
        return 1

    @property
    def tiles_per_band(self) -> int:
        """Tiles that read one staged band."""
        return self.tile_rows_per_band * self._grid[1]

    @property
    def bands(self) -> int:
        """Pieces that are staged one by one."""
        return -(-self._grid[0] // self.tile_rows_per_band)

    @functools.cached_property
    def band_height(self) -> int:
        """Output rows of a band."""
        return min(self.spec.out_height, self.tile_rows_per_band * self.height)

    def _lines(self, tile_rows: int) -> int:
        """Staged rows of one phase."""
        high = min(self.spec.out_height, tile_rows * self.height)
        return high + self._reach[0]

    def _plane(self, tile_rows: int) -> int:
        """Elements from one staged channel to the next: an odd number of cache lines, which spreads them over the
        sets of the cache."""
        size = len(self._phases[0]) * len(self._phases[1]) * self._lines(tile_rows) * self.pitch + self._margin
        return (-(-size // LINE) | 1) * LINE

    @property
    def scratch(self) -> int:
        """Elements of staged memory per band."""
        slack = 2 * self.target.lanes() + self.pitch * (self.rows_per_vector + 1)
        inputs = self.spec.in_channels // self.spec.groups
        return -(-(inputs * self._plane(self.tile_rows_per_band) + slack) // 16) * 16

    unit = 1
    aligned = False
    whole_lines = True
    scattered = 0

    @property
    def step(self) -> int:
        """Units from one input channel to the next."""
        return self._plane(self.tile_rows_per_band)

    @property
    def footprint(self) -> int:
        """Elements that one tile reads."""
        inputs, images = self.spec.in_channels // self.spec.groups, len(self._phases[0]) * len(self._phases[1])
        across = min(self.pitch, self.columns + self.target.lanes())
        return inputs * images * (self.height + self._reach[0]) * across

    def position(self, channel: int, ky: int, kx: int) -> int:
        """The position of a weight."""
        (sh, sw), (dh, dw) = self.spec.strides, self.spec.dilations
        row_phase, column_phase = self._phases[0].index(ky * dh % sh), self._phases[1].index(kx * dw % sw)
        image = row_phase * len(self._phases[1]) + column_phase
        line = image * self._lines(self.tile_rows_per_band) + ky * dh // sh
        return channel * self._plane(self.tile_rows_per_band) + line * self.pitch + kx * dw // sw

    @property
    def positions(self) -> int:
        """Positions are below this."""
        return self.spec.in_channels // self.spec.groups * self._plane(self.tile_rows_per_band)

    def _band_row(self, e: Emitter, band: Index) -> Index:
        if self.bands == 1:
            return 0
        return e.let(tirx.min(band * self.band_height, self.spec.out_height - self.band_height))

    def _place(self, e: Emitter, tile: Index) -> tuple[Index, Index]:
        """Row in the band and column of a tile."""
        down, across = self.tile_rows_per_band, self._grid[1]
        row_index, column_index = divide(e, tile, across)
        row: Index = 0
        if down > 1:
            row = e.let(tirx.min(row_index * self.height, self.band_height - self.height))
        column: Index = 0
        if across > 1:
            column = e.let(tirx.min(column_index * self.columns, self.spec.out_width - self.columns))
        return row, column

    def first_pixel(self, e: Emitter, band: Index, tile: Index) -> Index:
        """The first pixel of y in a tile."""
        row, column = self._place(e, tile)
        return e.let((self._band_row(e, band) + row) * self.spec.out_width + column)

    def origin(self, e: Emitter, band: Index, tile: Index) -> Index:
        """Where the tile begins in staged memory."""
        row, column = self._place(e, tile)
        return e.let(row * self.pitch + column)

    def stage(self, e: Emitter, x: Array, image: Index, band: Index, channel: Index, scratch: Array, at: Index) -> None:
        """Copy one channel of a band, zeros around it."""
        spec, lanes = self.spec, self.target.lanes()
        (sh, sw), (top, left, _, _) = spec.strides, spec.pads
        lines, needed = self._lines(self.tile_rows_per_band), self.pitch
        source = e.let(image + channel * (spec.height * spec.width))
        plane = e.let(at + channel * self._plane(self.tile_rows_per_band))
        self._stage_margin(e, scratch, plane)
        first = e.let(self._band_row(e, band) * sh - top)
        for i, row_phase in enumerate(self._phases[0]):
            block = e.let(plane + i * (len(self._phases[1]) * lines * self.pitch))
            with e.loop(lines) as r:
                row = e.let(first + r * sh + row_phase)
                line = e.let(source + row * spec.width)
                to = e.let(block + r * self.pitch)

                def inside(line: Index = line, to: Index = to) -> None:
                    for j, phase in enumerate(self._phases[1]):
                        low = min(needed, max(0, -((phase - left) // sw)))
                        high = max(low, min(needed, (spec.width - 1 - phase + left) // sw + 1))
                        here = to + j * (lines * self.pitch)
                        rows.fill(e, scratch, here, low, lanes, 0.0)
                        rows.copy(e, scratch, here + low, x, line + (low * sw + phase - left), sw, high - low, lanes)
                        rows.fill(e, scratch, here + high, needed - high, lanes, 0.0)

                def outside(to: Index = to) -> None:
                    for j in range(len(self._phases[1])):
                        rows.fill(e, scratch, to + j * (lines * self.pitch), needed, lanes, 0.0)

                e.choose(tirx.all(row >= 0, row < spec.height), inside, outside)

    def _stage_margin(self, e: Emitter, scratch: Array, plane: Index) -> None:
        """The zeros that the last row of a channel shares with what follows."""
        size = len(self._phases[0]) * len(self._phases[1]) * self._lines(self.tile_rows_per_band) * self.pitch
        rows.fill(e, scratch, e.let(plane + size), self._margin, self.target.lanes(), 0.0)
