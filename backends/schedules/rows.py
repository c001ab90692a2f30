"""Copying, filling and storing rows of any length with whole vectors, never touching an element outside the row.

A row that is no multiple of the vector width is covered by overlapping vectors of the largest power of two that fits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from backends.schedules.emit import Array, Emitter, Expr, Index, const, lanes_of, shuffle

#: Rows of at most this many vectors are unrolled.
_UNROLL = 4


def power_of_two_below(value: int) -> int:
    """The largest power of two that is at most `value` (>= 1)."""
    return 1 << (value.bit_length() - 1)


def power_of_two_above(value: int) -> int:
    """The smallest power of two that is at least `value` (>= 1)."""
    return 1 << (value - 1).bit_length()


def cover(length: int, lanes: int) -> list[tuple[int, int]]:
    """(offset, width) of vectors that cover [0, length) exactly; the last one may overlap its neighbour."""
    if length <= 0:
        return []
    if length < lanes:
        width = power_of_two_below(length)
        return [(0, width)] if width == length else [(0, width), (length - width, width)]
    pieces = [(offset, lanes) for offset in range(0, length - lanes + 1, lanes)]
    rest = length % lanes
    if rest:
        width = power_of_two_above(rest)
        pieces.append((length - width, width))
    return pieces


def each_piece(e: Emitter, length: int, lanes: int, body: Callable[[Index, int], None]) -> None:
    """Call `body(offset, width)` for vectors that cover [0, length), in a run-time loop if they are many."""
    pieces = cover(length, lanes)
    whole = length // lanes
    if whole <= _UNROLL:
        for offset, width in pieces:
            body(offset, width)
        return
    with e.loop(whole) as i:
        body(e.let(i * lanes), lanes)
    for offset, width in pieces[whole:]:
        body(offset, width)


def fill(e: Emitter, to: Array, at: Index, length: int, lanes: int, value: float) -> None:
    """to[at : at + length] = value."""
    each_piece(e, length, lanes, lambda offset, width: to.store(at + offset, const(value, width, to.dtype), width))


def load_strided(source: Array, at: Index, stride: int, width: int) -> Expr:
    """source[at], source[at + stride], ... as a vector; stride is 1 or 2, no element beyond the last is read."""
    if stride == 1 or width == 1:
        return source.load(at, width)
    low, high = source.load(at, width), source.load(at + (width - 1), width)
    return shuffle([low, high], [*range(0, width, 2), *range(width + 1, 2 * width, 2)])


def copy(e: Emitter, to: Array, at: Index, source: Array, start: Index, stride: int, length: int, lanes: int) -> None:
    """to[at + i] = source[start + i * stride] for i in [0, length)."""
    if stride <= 2:

        def move(offset: Index, width: int) -> None:
            to.store(at + offset, load_strided(source, start + offset * stride, stride, width), width)

        each_piece(e, length, lanes, move)
    elif length > 0:
        with e.loop(length) as i:
            to.store(at + i, source.load(start + i * stride))


def store_part(to: Array, at: Index, value: Expr, width: int, length: int) -> None:
    """Store the first `length` lanes of a vector of `width` lanes."""
    if length == width:
        to.store(at, value, width)
        return
    for offset, part in cover(length, width // 2 if length > width // 2 else width):
        lanes = shuffle([value], range(offset, offset + part))
        to.store(at + offset, lanes, part)


def lanes(value: Expr, width: int, first: int, count: int) -> Expr:
    """`count` lanes of a vector of `width` lanes from `first` on."""
    return value if count == width else shuffle([value], list(range(first, first + count)))


def store_lanes(to: Array, at: Index, value: Expr, width: int, first: int, count: int) -> None:
    """Store lanes [first, first + count) of a vector of `width` lanes, and nothing else."""
    if count == width:
        to.store(at, value, width)
        return
    largest = power_of_two_below(count)
    for offset, part in cover(count, largest):
        to.store(at + offset, lanes(value, width, first + offset, part), part)


def gather(e: Emitter, vectors: Sequence[Expr], places: Sequence[int]) -> Expr:
    """The chosen lanes of the concatenation of equal vectors, by shuffles of two: what processors have."""
    each = lanes_of(vectors[0])
    used = sorted({place // each for place in places})
    if len(used) <= 2:
        order = {index: i * each for i, index in enumerate(used)}
        if len(used) == 1 and list(places) == [used[0] * each + lane for lane in range(each)]:
            return vectors[used[0]]
        chosen = [vectors[index] for index in used]
        chosen += chosen[:1] * (-(-len(places) // each) - len(chosen))
        return shuffle(chosen, [order[place // each] + place % each for place in places])
    half = used[len(used) // 2]
    low = e.name(gather(e, vectors, [place if place // each < half else used[0] * each for place in places]))
    high = e.name(gather(e, vectors, [place if place // each >= half else half * each for place in places]))
    width = len(places)
    return shuffle([low, high], [lane if place // each < half else width + lane for lane, place in enumerate(places)])


def load_part(source: Array, at: Index, width: int, length: int) -> Expr:
    """A vector of `width` lanes of which the first `length` come from memory, the others are 0."""
    if length == width:
        return source.load(at, width)
    pieces = cover(length, width // 2)
    vectors = [source.load(at + offset, part) for offset, part in pieces]
    lanes, base = {}, 0
    for offset, part in pieces:
        for lane in range(part):
            lanes[offset + lane] = base + lane
        base += part
    return shuffle([*vectors, const(0.0, width, source.dtype)], [lanes.get(lane, base) for lane in range(width)])


def transpose_square(
    e: Emitter, size: int, source: Array, start: Index, pitch: int, to: Array, at: Index, to_pitch: int
) -> None:
    """to[at + j * to_pitch + i] = source[start + i * pitch + j] for i, j in [0, size), a power of two, in registers."""
    rows = [e.name(source.load(start + i * pitch, size)) for i in range(size)]
    for j, row in enumerate(transposed(e, rows)):
        to.store(at + j * to_pitch, row, size)


def transposed(e: Emitter, vectors: Sequence[Expr]) -> list[Expr]:
    """Lane i of vector j for lane j of vector i; as many vectors as they have lanes, a power of two.

    Each round exchanges blocks half as large between vectors: log2(lanes) shuffles for each.
    """
    rows, size = list(vectors), len(vectors)
    block = size // 2
    while block:
        low = [lane if lane % (2 * block) < block else size + lane - block for lane in range(size)]
        high = [lane + block if lane % (2 * block) < block else size + lane for lane in range(size)]
        for i in range(size):
            if i % (2 * block) < block:
                pair = [rows[i], rows[i + block]]
                rows[i], rows[i + block] = e.name(shuffle(pair, low)), e.name(shuffle(pair, high))
        block //= 2
    return rows
