"""Sliding windows over one plane at a time, read where it lies: nothing is staged.

Rows beyond the plane take no part, and the vectors at the left and right edge get their zeros from a shuffle in
registers. Groups of rows whose windows leave the plane at the top or bottom have code of their own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from tvm import tirx

from backends.schedules import rows
from backends.schedules.emit import LINE, Array, Emitter, Expr, Index, Registers, const, shuffle
from backends.schedules.windows import Combine, Finish, Geometry

#: Groups of rows at the top and at the bottom that may have code of their own, together.
_MOST_EDGES = 6
#: Multiply-adds of straight code for one tile.
_MOST_TAPS = 512
#: As many of a vector of columns that is swept from top to bottom.
_MOST_SWEPT = 720
#: Planes that the first-level cache holds at least of those that are swept, which jumps from line to line.
_SWEPT_PLANES = 8
#: Neighbouring vectors of columns that are swept at once.
_ABREAST = 2
#: Taps above which the sweep is held back from loading ahead.
_FREE_TAPS = 9
#: What each column of taps multiplies, by its number.
_Under: TypeAlias = list[tuple[int, Expr]]
#: Vectors of a row that are unrolled.
_UNROLL = 2


@dataclass(frozen=True)
class _Piece:
    """A vector of outputs of a row: `stored` of `width` lanes from `at` on, which is `place` where that is known."""

    at: Index
    width: int
    stored: int
    place: int | None


@dataclass(frozen=True)
class _Line:
    """Where a row of x begins, and how many elements before its first and beyond its last may be read."""

    at: Index
    before: int
    after: int


@dataclass
class _Pixels:
    """The pixels under the taps of one tile; a vector that several taps share is loaded once."""

    e: Emitter
    x: Array
    width: int
    stride: int
    piece: _Piece
    loaded: dict[tuple[int, int], Expr] = field(default_factory=dict)

    def under(self, key: int, line: _Line, shift: int, columns: list[int | None]) -> Expr:
        """Lane j is the pixel `columns[j]` from the piece's first on, or 0; a column is `shift` from its output."""
        lanes = self.piece.width
        first = shift - shift % self.stride
        bases = [self._within(line, base) for base in range(first, first + lanes * self.stride, lanes)]
        if self.stride == 1 and None in columns:
            bases = [self._row_edge(line, first)]
        vectors = [self._load(key, line, base) for base in bases]
        zero = lanes * len(bases)
        places = [zero if c is None else self._lane(c, bases) for c in columns]
        places += [places[-1]] * (lanes - len(places))
        if places[: len(columns)] == list(range(len(columns))):
            return vectors[0]
        return self.e.name(shuffle([*vectors, const(0.0, lanes, self.e.dtype)] if None in columns else vectors, places))

    def _within(self, line: _Line, base: int) -> int:
        """The nearest place to `base` that a vector may be loaded from."""
        if self.piece.place is None:
            return base
        origin = self.piece.place * self.stride
        return min(max(base, -line.before - origin), self.width + line.after - self.piece.width - origin)

    def _row_edge(self, line: _Line, base: int) -> int:
        """Where a vector begins that holds what the row has of one from `base` on: where other taps load it too."""
        assert self.piece.place is not None
        low, high = -self.piece.place, max(0, self.width - self.piece.width) - self.piece.place
        return self._within(line, min(max(base, low), high))

    def _lane(self, column: int, bases: list[int]) -> int:
        lanes = self.piece.width
        return next(i * lanes + column - base for i, base in enumerate(bases) if base <= column < base + lanes)

    def _load(self, key: int, line: _Line, base: int) -> Expr:
        if (key, base) not in self.loaded:
            at = self.e.let(line.at + self.piece.at * self.stride)
            self.loaded[key, base] = self.e.name(self.x.load(at + base, self.piece.width))
        return self.loaded[key, base]


@dataclass(frozen=True)
class _Tile:
    """What a tile reads, does and writes. whole: rows are stored in order, so that lanes beyond one may be stored too,
    which the next one overwrites."""

    e: Emitter
    x: Array
    start: Callable[[int], Expr]
    combine: Combine
    finish: Finish
    y: Array
    whole: bool


@dataclass(frozen=True)
class _Column:
    """A piece of every row of a plane: places in x and y are known distances from where it begins there."""

    piece: _Piece
    pixels: _Pixels
    sums: Registers
    begin: Index
    to: Index

    @classmethod
    def of(cls, tile: _Tile, windows: WindowsInPlace, piece: _Piece, base: Index, out: Index) -> _Column:
        """The column of `piece` in the planes at `base` and `out`."""
        e, stride = tile.e, windows.strides[1]
        begin, to, fixed = e.let(base + piece.at * stride), e.let(out + piece.at), replace(piece, at=0)
        pixels = _Pixels(e, tile.x, windows.width, stride, fixed)
        return cls(fixed, pixels, e.registers(windows.together, piece.width), begin, to)


@dataclass(frozen=True)
class WindowsInPlace(Geometry):
    """Windows of stride 1 or 2 along a row, over a plane that holds at least a vector.

    ahead: ask for the lines of the next group of rows, for planes that come from beyond the second-level cache.
    swept: small planes are computed line by line from top to bottom, as one group of rows, so that few sums and pixels
    are in flight at once.
    """

    ahead: bool = False
    swept: bool = False

    @property
    def applies(self) -> bool:
        """Whether the plane can be read in place, with little code."""
        (kh, kw), stride, width = self.kernel, self.strides[1], max(w for _, w, _ in self.pieces)
        room = self.width if stride == 2 or self.height == 1 else 2 * self.width
        few = self.sweeps or (len(self._edges) <= _MOST_EDGES and kh * kw * self.together <= _MOST_TAPS)
        return stride <= 2 and width <= room and few

    @property
    def together(self) -> int:
        """Output rows computed at once: enough sums in flight, few enough registers."""
        if self.sweeps:
            return self.out_height
        most = max(1, self.target.vector_registers // 4 // self.strides[0])
        return -(-self.out_height // -(-self.out_height // most))

    @property
    def sweeps(self) -> bool:
        """Whether this plane is small enough to be swept."""
        small = _SWEPT_PLANES * self.height * self.width * self.target.itemsize <= self.target.l1_bytes
        return self.swept and small and self.kernel[0] * self.kernel[1] * self.out_height <= _MOST_SWEPT

    @property
    def groups(self) -> int:
        """Groups of rows of the plane."""
        return -(-self.out_height // self.together)

    @property
    def _edges(self) -> list[int]:
        """Groups with code of their own: those whose windows leave the plane, and the last one."""
        return [g for g in range(self.groups) if g == self.groups - 1 or not self._inside(g)]

    def _first_row(self, group: int) -> int:
        """The last group overlaps its neighbour rather than being shorter."""
        return min(group * self.together, self.out_height - self.together)

    def _first_line(self, row: int) -> int:
        return row * self.strides[0] - self.top

    @property
    def _lines_needed(self) -> int:
        return (self.together - 1) * self.strides[0] + (self.kernel[0] - 1) * self.dilations[0] + 1

    def _inside(self, group: int) -> bool:
        first = self._first_line(self._first_row(group))
        return first >= 0 and first + self._lines_needed <= self.height

    def lines(self, groups: int) -> int:
        """Lines of the plane that so many groups read at most."""
        rows = min(self.out_height, groups * self.together)
        return min(self.height, (rows - 1) * self.strides[0] + (self.kernel[0] - 1) * self.dilations[0] + 1)

    def compute(
        self,
        e: Emitter,
        x: Array,
        x_at: Index,
        start: Callable[[int], Expr],
        combine: Combine,
        finish: Finish,
        y: Array,
        y_at: Index,
    ) -> None:
        """All windows of the plane at x_at, stored to the plane at y_at; taps beyond the plane are left out."""
        tile = _Tile(e, x, start, combine, finish, y, whole=True)
        edges = self._edges
        middle = [g for g in range(self.groups) if g not in edges]
        for index in edges:
            if middle and index == middle[-1] + 1:
                with e.loop(len(middle)) as g:
                    self._group(tile, x_at, y_at, middle, e.let((g + middle[0]) * self.together))
            self._group(tile, x_at, y_at, [index])

    def compute_some(
        self,
        e: Emitter,
        band: tuple[Index, int],
        x: Array,
        x_at: Index,
        start: Callable[[int], Expr],
        combine: Combine,
        finish: Finish,
        y: Array,
        y_at: Index,
    ) -> None:
        """As `compute`, the windows of a band of groups: its first and their number.

        Of the plane at x_at only the lines that they read need to exist. Groups beyond the last are the last.
        """
        first, count = band
        tile = _Tile(e, x, start, combine, finish, y, whole=False)
        edges = self._edges
        middle = [g for g in range(self.groups) if g not in edges]

        def one_of(known: list[int], group: Index) -> None:
            if not known:
                self._group(tile, x_at, y_at, middle, e.let(group * self.together))
                return
            yes, rest = known[0], known[1:]
            if not rest and not middle:
                self._group(tile, x_at, y_at, [yes])
                return
            e.choose(group == yes, lambda: self._group(tile, x_at, y_at, [yes]), lambda: one_of(rest, group))

        with e.loop(count) as i:
            one_of(edges, e.let(tirx.min(first + i, self.groups - 1)))

    def _group(self, tile: _Tile, x_at: Index, y_at: Index, groups: list[int], first: Index | None = None) -> None:
        """One group of rows: the only one of `groups`, or that of them whose first row is `first`."""
        e = tile.e
        ends = self._first_row(groups[0]), self._first_row(groups[-1])
        row = ends[0] if first is None else first
        base = e.let(x_at + (row * self.strides[0] - self.top) * self.width)
        out = e.let(y_at + row * self.out_width)
        lines, last = self._lines(base, *ends), groups[-1] == self.groups - 1
        if self.sweeps:
            self._each_piece(e, lambda pieces: self._sweep(tile, base, lines, pieces, out), _ABREAST)
        else:
            self._each_piece(e, lambda pieces: self._tile(tile, base, lines, pieces[0], out, last), 1)

    def _lines(self, base: Index, lowest: int, highest: int) -> dict[int, _Line]:
        """The lines of a group whose first row is between the two, by their distance from the first."""
        found = {}
        for i in range(self._lines_needed):
            low, high = self._first_line(lowest) + i, self._first_line(highest) + i
            if low >= 0 and high < self.height:
                before, after = low * self.width, (self.height - 1 - high) * self.width
                found[i] = _Line(base + i * self.width, before, after)
        return found

    def _each_piece(self, e: Emitter, tile: Callable[[list[_Piece]], None], most: int) -> None:
        """Pieces of a row in order, at most so many neighbours at once; many whose windows stay inside share code."""
        pieces = [_Piece(place, width, stored, place) for place, width, stored in self.pieces]
        inner = [p for p in pieces if p.width == self.lanes == p.stored and self._stays_inside(p)]
        looped = (
            inner
            if len(inner) > self._unrolled and inner[-1].place == inner[0].at + self.lanes * (len(inner) - 1)
            else []
        )
        before = pieces.index(looped[0]) if looped else len(pieces)
        for start in range(0, before, most):
            tile(pieces[start : min(start + most, before)])
        if looped:
            with e.loop(len(looped)) as i:
                tile([_Piece(e.let(looped[0].at + i * self.lanes), self.lanes, self.lanes, None)])
            for start in range(before + len(looped), len(pieces), most):
                tile(pieces[start : start + most])

    @property
    def _unrolled(self) -> int:
        """Vectors of a row that have code of their own each.

        What is swept shares no pixels with its neighbours then, which would have to wait in memory for them.
        """
        reach = (self.kernel[1] - 1) * self.dilations[1]
        return 1 if self.sweeps and (reach >= self.lanes or self.strides[1] > 1) else _UNROLL

    def _stays_inside(self, piece: _Piece) -> bool:
        """True if all taps of the piece, and the vectors that hold them, lie within the row."""
        assert piece.place is not None
        stride, origin = self.strides[1], piece.place * self.strides[1]
        shifts = [kx * self.dilations[1] - self.left for kx in range(self.kernel[1])]
        first, last = min(shifts), max(shifts)
        beyond = last - last % stride + piece.width * stride
        return origin + first - first % stride >= 0 and origin + beyond <= self.width

    def _prefetch(self, x: Array, base: Index, piece: _Piece) -> None:
        """Ask for what the next group needs of this piece's columns."""
        stride = self.strides[1]
        for i in range(self.together * self.strides[0]):
            line = base + (self._lines_needed + i) * self.width + piece.at * stride
            for at in range(0, piece.width * stride, LINE):
                x.prefetch(line + at)

    def _columns(self, piece: _Piece, shift: int) -> list[int | None]:
        """The column under each stored lane, counted from the piece's first; None is beyond the plane."""
        columns = [lane * self.strides[1] + shift for lane in range(piece.stored)]
        if piece.place is None:
            return list(columns)
        origin = piece.place * self.strides[1]
        return [c if 0 <= origin + c < self.width else None for c in columns]

    def _tile(self, tile: _Tile, base: Index, lines: dict[int, _Line], piece: _Piece, out: Index, last: bool) -> None:
        """One piece of each of the group's rows."""
        e, (kh, kw), width = tile.e, self.kernel, piece.width
        pixels = _Pixels(e, tile.x, self.width, self.strides[1], piece)
        sums = e.registers(self.together, width)
        for r in range(self.together):
            sums[r] = tile.start(width)
        for kx, shift, columns in self._taps(piece):
            seen: dict[int, Expr] = {}
            for r in range(self.together):
                for ky in range(kh):
                    index = r * self.strides[0] + ky * self.dilations[0]
                    if index not in lines:
                        continue
                    if index not in seen:
                        seen[index] = pixels.under(index, lines[index], shift, columns)
                    sums[r] = tile.combine(sums[r], seen[index], ky * kw + kx, width)
        if self.ahead:
            self._prefetch(tile.x, base, piece)
        for r in range(self.together):
            self._store(tile, sums[r], piece, out, r, tile.whole and not (last and r == self.together - 1))

    def _taps(self, piece: _Piece) -> Iterator[tuple[int, int, list[int | None]]]:
        """Each column of taps that meets the plane, how far it is from its output, and the columns under it."""
        for kx in range(self.kernel[1]):
            shift = kx * self.dilations[1] - self.left
            columns = self._columns(piece, shift)
            if any(c is not None for c in columns):
                yield kx, shift, columns

    def _store(self, tile: _Tile, total: Expr, piece: _Piece, out: Index, r: int, whole: bool = False) -> None:
        to = tile.e.let(out + r * self.out_width + piece.at)
        value = tile.e.name(tile.finish(total, to, piece.width, piece.stored))
        rows.store_part(tile.y, to, value, piece.width, piece.width if whole else piece.stored)

    def _sweep(self, tile: _Tile, base: Index, lines: dict[int, _Line], pieces: list[_Piece], out: Index) -> None:
        """Neighbouring pieces of all rows, each row from the first line that it needs to the last.

        What a line holds is loaded before the one above it is multiplied. Where few multiply-adds use a vector, or many
        factors stand in registers, code generation would load whole planes ahead and run out of registers: asking for
        a line of the next plane, across which it moves no load, keeps it from that.
        """
        kh, sh, dh = self.kernel[0], self.strides[0], self.dilations[0]
        needed = {
            r: {r * sh + ky * dh: ky for ky in range(kh) if r * sh + ky * dh in lines} for r in range(self.together)
        }
        users = {index: [(r, at[index]) for r, at in needed.items() if index in at] for index in sorted(lines)}
        columns = [_Column.of(tile, self, piece, base, out) for piece in pieces]
        steps = [(column, index) for index, rows_above in users.items() if rows_above for column in columns]
        under: _Under = []
        finished = [(column, r) for column in columns for r, at in needed.items() if not at]
        for column, r in finished:
            column.sums[r] = tile.start(column.piece.width)
        for step, following in zip([None, *steps], [*steps, None], strict=True):
            loaded, under = under, self._under(*following, lines) if following else []
            if step is None:
                continue
            column, index = step
            if self._held_back:
                tile.x.prefetch(column.begin + (index + self.height) * self.width)
            for done, r in finished:
                self._store(tile, done.sums[r], done.piece, done.to, r)
            for r in (r for r, _ in users[index] if index == min(needed[r])):
                column.sums[r] = tile.start(column.piece.width)
            for (kx, value), (r, ky) in itertools.product(loaded, users[index]):
                tap = ky * self.kernel[1] + kx
                column.sums[r] = tile.combine(column.sums[r], value, tap, column.piece.width)
            finished = [(column, r) for r, _ in users[index] if index == max(needed[r])]
        for done, r in finished:
            self._store(tile, done.sums[r], done.piece, done.to, r)

    @property
    def _held_back(self) -> bool:
        return self.strides[1] > 1 or self.kernel[0] * self.kernel[1] > _FREE_TAPS

    def _under(self, column: _Column, index: int, lines: dict[int, _Line]) -> _Under:
        """The pixels of one line that each column of taps multiplies."""
        here = replace(lines[index], at=column.begin + index * self.width)
        return [(kx, column.pixels.under(index, here, shift, at)) for kx, shift, at in self._taps(column.piece)]
