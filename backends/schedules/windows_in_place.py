"""Sliding windows over one plane at a time, read where it lies: nothing is staged.

Rows beyond the plane take no part, and the vectors at the left and right edge get their zeros from a shuffle in
registers. Groups of rows whose windows leave the plane at the top or bottom have code of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from backends.schedules import rows
from backends.schedules.emit import LINE, Array, Emitter, Expr, Index, const, shuffle
from backends.schedules.windows import Combine, Finish, Geometry

#: Groups of rows at the top and at the bottom that may have code of their own, together.
_MOST_EDGES = 6
#: Multiply-adds of straight code for one tile.
_MOST_TAPS = 512
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
        known = [c for c in columns if c is not None]
        first = shift - shift % self.stride
        bases = [self._within(line, base) for base in range(first, first + lanes * self.stride, lanes)]
        if self.stride == 1 and None in columns:
            bases = [self._there(key, known) or bases[0]]
        vectors = [self._load(key, line, base) for base in bases]
        zero = lanes * len(bases)
        places = [zero if c is None else self._lane(c, bases) for c in columns]
        places += [places[-1]] * (lanes - len(places))
        if places[: len(columns)] == list(range(len(columns))):
            return vectors[0]
        return self.e.name(shuffle([*vectors, const(0.0, lanes)] if None in columns else vectors, places))

    def _within(self, line: _Line, base: int) -> int:
        """The nearest place to `base` that a vector may be loaded from."""
        if self.piece.place is None:
            return base
        origin = self.piece.place * self.stride
        return min(max(base, -line.before - origin), self.width + line.after - self.piece.width - origin)

    def _there(self, key: int, known: list[int]) -> int | None:
        """Where a vector begins that is there already and holds all columns."""
        for line, base in self.loaded:
            if line == key and base <= min(known) and max(known) < base + self.piece.width:
                return base
        return None

    def _lane(self, column: int, bases: list[int]) -> int:
        lanes = self.piece.width
        return next(i * lanes + column - base for i, base in enumerate(bases) if base <= column < base + lanes)

    def _load(self, key: int, line: _Line, base: int) -> Expr:
        if (key, base) not in self.loaded:
            at = self.e.let(line.at + self.piece.at * self.stride)
            self.loaded[key, base] = self.e.name(self.x.load(at + base, self.piece.width))
        return self.loaded[key, base]


@dataclass(frozen=True)
class WindowsInPlace(Geometry):
    """Windows of stride 1 or 2 along a row, over a plane that holds at least a vector.

    ahead: ask for the lines of the next group of rows, for planes that come from beyond the second-level cache.
    """

    ahead: bool = False

    @property
    def applies(self) -> bool:
        """Whether the plane can be read in place, with little code."""
        (kh, kw), stride, width = self.kernel, self.strides[1], max(w for _, w, _ in self.pieces)
        room = self.width if stride == 2 or self.height == 1 else 2 * self.width
        few = len(self._edges) <= _MOST_EDGES and kh * kw * self.together <= _MOST_TAPS
        return stride <= 2 and width <= room and few

    @property
    def together(self) -> int:
        """Output rows computed at once: enough sums in flight, few enough registers."""
        most = max(1, self.target.vector_registers // 4 // self.strides[0])
        return -(-self.out_height // -(-self.out_height // most))

    @property
    def _groups(self) -> int:
        return -(-self.out_height // self.together)

    @property
    def _edges(self) -> list[int]:
        """Groups with code of their own: those whose windows leave the plane, and the last one."""
        return [g for g in range(self._groups) if g == self._groups - 1 or not self._inside(g)]

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

        def group(first: Index, lowest: int, highest: int, last: bool) -> None:
            base = e.let(x_at + (first * self.strides[0] - self.top) * self.width)
            out = e.let(y_at + first * self.out_width)
            lines = self._lines(base, lowest, highest)
            self._each_piece(
                e, lambda piece: self._tile(e, x, base, lines, piece, start, combine, finish, y, out, last)
            )

        edges = self._edges
        middle = [g for g in range(self._groups) if g not in edges]
        for index in edges:
            if middle and index == middle[-1] + 1:
                with e.loop(len(middle)) as g:
                    ends = self._first_row(middle[0]), self._first_row(middle[-1])
                    group(e.let((g + middle[0]) * self.together), *ends, False)
            first = self._first_row(index)
            group(first, first, first, index == self._groups - 1)

    def _lines(self, base: Index, lowest: int, highest: int) -> dict[int, _Line]:
        """The lines of a group whose first row is between the two, by their distance from the first."""
        found = {}
        for i in range(self._lines_needed):
            low, high = self._first_line(lowest) + i, self._first_line(highest) + i
            if low >= 0 and high < self.height:
                before, after = low * self.width, (self.height - 1 - high) * self.width
                found[i] = _Line(base + i * self.width, before, after)
        return found

    def _each_piece(self, e: Emitter, tile: Callable[[_Piece], None]) -> None:
        """Pieces of a row in order; many whose windows stay inside share code."""
        pieces = [_Piece(place, width, stored, place) for place, width, stored in self.pieces]
        inner = [p for p in pieces if p.width == self.lanes == p.stored and self._stays_inside(p)]
        looped = (
            inner if len(inner) > _UNROLL and inner[-1].place == inner[0].at + self.lanes * (len(inner) - 1) else []
        )
        for piece in pieces:
            if piece not in looped:
                tile(piece)
            elif piece == looped[0]:
                with e.loop(len(looped)) as i:
                    tile(_Piece(e.let(piece.at + i * self.lanes), piece.width, piece.stored, None))

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

    def _tile(
        self,
        e: Emitter,
        x: Array,
        base: Index,
        lines: dict[int, _Line],
        piece: _Piece,
        start: Callable[[int], Expr],
        combine: Combine,
        finish: Finish,
        y: Array,
        out: Index,
        last: bool,
    ) -> None:
        """One piece of each of the group's rows."""
        (kh, kw), width = self.kernel, piece.width
        pixels = _Pixels(e, x, self.width, self.strides[1], piece)
        sums = e.registers(self.together, width)
        for r in range(self.together):
            sums[r] = start(width)
        for kx in range(kw):
            shift = kx * self.dilations[1] - self.left
            columns = self._columns(piece, shift)
            if not any(c is not None for c in columns):
                continue
            seen: dict[int, Expr] = {}
            for r in range(self.together):
                for ky in range(kh):
                    index = r * self.strides[0] + ky * self.dilations[0]
                    if index not in lines:
                        continue
                    if index not in seen:
                        seen[index] = pixels.under(index, lines[index], shift, columns)
                    sums[r] = combine(sums[r], seen[index], ky * kw + kx, width)
        if self.ahead:
            self._prefetch(x, base, piece)
        for r in range(self.together):
            to = e.let(out + r * self.out_width + piece.at)
            value = e.name(finish(sums[r], to, width, piece.stored))
            # Lanes beyond the row are overwritten by the next one.
            ends = last and r == self.together - 1
            rows.store_part(y, to, value, width, piece.stored if ends else width)
