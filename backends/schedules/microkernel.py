"""The register tile at the bottom of every product: pixels by output channels, summed over a reduction axis.

Pixels are the vector axis and a weight is broadcast; the odd pixels that fill no vector turn it round: one pixel is
broadcast to a vector of weights, so that leftovers never walk the weights again (and a single row is a GEMV).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

from tvm import tirx

from backends.schedules.emit import LINE, Array, Emitter, Expr, Index, Registers, const, lanes_of, shuffle, splat
from backends.schedules.epilogue import Epilogue
from backends.schedules.rows import cover, power_of_two_below
from backends.target import Target

#: Fused multiply-adds that must be in flight to hide their latency.
_LATENCY = 4.0
#: Steps of a reduction whose sums half precision holds well enough: their rounding errors grow with the root of them.
NARROW_STEPS = 64
#: Activations whose code is too long to be repeated for every register.
LONG = {"sigmoid", "silu", "tanh", "gelu", "gelu_tanh", "elu", "selu", "celu", "softplus", "mish", "softsign"}


@dataclass(frozen=True)
class Tile:
    """Pixels of one register tile: vectors (offset, width), and single pixels (offsets)."""

    pixels: int
    vectors: tuple[tuple[int, int], ...]
    singles: tuple[int, ...]

    @classmethod
    def of(cls, pixels: int, lanes: int) -> Tile:
        """The cheapest tile of so many pixels: at most two of them are single."""
        whole, rest = divmod(pixels, lanes)
        if rest == 0:
            return cls(pixels, tuple(cover(pixels, lanes)), ())
        if rest <= 2:
            return cls(pixels, tuple(cover(whole * lanes, lanes)), tuple(range(whole * lanes, pixels)))
        if pixels < lanes and pixels == power_of_two_below(pixels) + 1:
            return cls(pixels, ((0, pixels - 1),), (pixels - 1,))
        return cls(pixels, tuple(cover(pixels, lanes)), ())

    def cycles(self, channels: int, lanes: int) -> float:
        """Estimated cost of one step of the reduction, in multiply-adds of whole vectors."""
        half = 0.5 if lanes > 8 else 1.0
        vectors = sum(1.0 if width == lanes else half for _, width in self.vectors)
        work = channels * vectors + len(self.singles) * sum(
            1.0 if width == lanes else half for _, width in channel_vectors(channels, lanes)
        )
        return max(work, _LATENCY) + 0.25 * (len(self.vectors) + channels + 1)

    def registers(self, channels: int, target: Target) -> int:
        """Vector registers in use at once."""
        across = len(channel_vectors(channels, target.lanes())) if self.singles else 0
        sums = len(self.vectors) * channels + len(self.singles) * across
        if target.loads_first:
            operands = len(self.vectors) + (channels if self.vectors else 0) + across + len(self.singles)
            return sums + operands + 1
        return sums + len(self.vectors) + 1 + (1 if self.singles else 0)


def channel_vectors(channels: int, lanes: int) -> list[tuple[int, int]]:
    """Disjoint vectors (offset, width) over the channels of a tile."""
    pieces, offset = [], 0
    while offset < channels:
        width = min(lanes, power_of_two_below(channels - offset))
        pieces.append((offset, width))
        offset += width
    return pieces


def factors(e: Emitter, source: Array, at: Index, count: int, by_lane: int) -> Callable[[int, int], Expr]:
    """Element `at` + i of `source` in every lane of a vector of so many, for i below `count`.

    by_lane: the processor multiplies by one lane of a vector: so many elements are loaded at once (0: one by one).
    """
    if not by_lane or count == 1:
        return lambda i, width: source.splat(at + i, width)
    pieces = channel_vectors(count, by_lane)
    loaded = [(e.name(source.load(at + offset, size)), size, lane) for offset, size in pieces for lane in range(size)]

    def factor(i: int, width: int) -> Expr:
        vector, size, lane = loaded[i]
        return splat(vector, width) if size == 1 else shuffle([vector] * -(-width // size), [lane] * width)

    return factor


@dataclass(frozen=True)
class Plan:
    """A main tile of pixels, repeated `count` times, then `tail` (if any), each by `channels` channels."""

    channels: int
    main: Tile
    count: int
    tail: Tile | None
    cost: float


@functools.cache
def plan(pixels: int, channels: int, target: Target) -> Plan:
    """The tiling of `pixels` by `channels` with the least estimated cost on `target`."""
    lanes, best = target.lanes(), None
    for width in range(1, min(channels, 16) + 1):
        sweeps = -(-channels // width)
        for size in sorted({min(pixels, v * lanes + s) for v in range(5) for s in range(3)} - {0}):
            main, rest = Tile.of(size, lanes), pixels % size
            tail = Tile.of(rest, lanes) if rest else None
            if any(t.registers(width, target) > target.vector_registers for t in (main, tail) if t):
                continue
            if main.singles and width & (width - 1):
                continue
            cost = (pixels // size) * main.cycles(width, lanes) + (tail.cycles(width, lanes) if tail else 0)
            choice = Plan(width, main, pixels // size, tail, cost * sweeps)
            if best is None or choice.cost < best.cost * 0.999:
                best = choice
    assert best is not None
    return best


@dataclass(frozen=True)
class Operands:
    """Where a tile reads and writes: element (k, p) of x, k of packed w, channel c and pixel p of y.

    x: at x_at + k * x_step + p * x_pixel. w: `channels` floats per k from w_at on. y, residual: at
    y_at + c * y_channel + p * y_pixel. bias: per channel (or per pixel) from bias_at on. left: number of channels that
    exist, if not all may. A reduction cut in parts leaves its sums in y: one that `resumes` starts from them, only the
    one that `ends` applies residual and activation. x_streams, y_streams: the array is too large for the caches and is
    prefetched: the next tile of x, this tile of y and of the residual. w_next: elements of w that the tiles after these
    read first, w_next_step of them to be asked for at each step. w_by_lane: see `factors`. narrow_steps: after so many
    steps a sum in half precision is added to that of the steps before.
    """

    x: Array
    x_at: Index
    x_step: int
    w: Array
    w_at: Index
    y: Array
    y_at: Index
    y_channel: int
    bias: Array | None = None
    bias_at: Index = 0
    residual: Array | None = None
    left: Expr | None = None
    x_pixel: int = 1
    y_pixel: int = 1
    bias_per_pixel: bool = False
    resumes: Expr | bool = False
    ends: Expr | bool = True
    x_streams: bool = False
    y_streams: bool = False
    w_next: Index | None = None
    w_next_step: int = 0
    w_by_lane: int = 0
    narrow_steps: int = NARROW_STEPS

    def initial(self, channel: int, pixel: int, across: bool, width: int) -> Expr:
        """What a sum starts with: the bias of a vector of pixels, or (across) of channels."""
        if self.bias is None:
            return const(0.0, width, self.y.dtype)
        at = self.bias_at + (pixel if self.bias_per_pixel else channel)
        return self.bias.load(at, width) if across != self.bias_per_pixel else self.bias.splat(at, width)


def microkernel(
    e: Emitter, tile: Tile, channels: int, depth: Index, o: Operands, epilogue: Epilogue, lanes: int
) -> None:
    """Emit one tile: sums over `depth` steps, then the epilogue and the stores."""
    sums = [e.registers(channels, width) for _, width in tile.vectors]
    across = channel_vectors(channels, lanes) if tile.singles else []
    single = [[e.registers(1, width) for _, width in across] for _ in tile.singles]

    def start() -> None:
        for c in range(channels):
            for (offset, width), acc in zip(tile.vectors, sums, strict=True):
                acc[c] = o.initial(c, offset, False, width)
        for pixel, group in zip(tile.singles, single, strict=True):
            for (offset, width), acc in zip(across, group, strict=True):
                acc[0] = o.initial(offset, pixel, True, width)

    e.choose(o.resumes, lambda: _resume(e, tile, channels, o, sums, single, across), start)

    x_at, w_at = e.let(o.x_at), e.let(o.w_at)
    w_next = e.let(0 if o.w_next is None else o.w_next)
    if o.y_streams:
        for c in range(channels):
            for offset in range(0, tile.pixels, LINE):
                o.y.prefetch(o.y_at + c * o.y_channel + offset, write=True)
                if o.residual is not None:
                    o.residual.prefetch(o.y_at + c * o.y_channel + offset)

    def step(k: Index) -> None:
        x_row, w_row = e.let(x_at + k * o.x_step), e.let(w_at + k * channels)
        if o.x_streams:
            for offset in range(0, tile.pixels, LINE):
                o.x.prefetch(x_row + tile.pixels + offset)
        if o.w_next is not None:
            for offset in range(0, o.w_next_step, LINE):
                o.w.prefetch(w_next + k * o.w_next_step + offset, near=False)
        xs = [e.name(o.x.load(x_row + offset, width)) for offset, width in tile.vectors]
        weight = factors(e, o.w, w_row, channels, o.w_by_lane if tile.vectors else 0)
        for c in range(channels):
            for (_, width), acc, x in zip(tile.vectors, sums, xs, strict=True):
                acc[c] = acc[c] + x * weight(c, width)
        for pixel, group in zip(tile.singles, single, strict=True):
            for (offset, width), acc in zip(across, group, strict=True):
                acc[0] = acc[0] + o.w.load(w_row + offset, width) * o.x.splat(x_row + pixel * o.x_pixel, width)

    if e.dtype == "float32" or (isinstance(depth, int) and depth <= o.narrow_steps):
        with e.loop(depth) as k:
            step(k)
    else:
        _in_blocks(e, depth, o.narrow_steps, step, [*sums, *(acc for group in single for acc in group)])

    def store(last: bool) -> None:
        how, place = (epilogue, o) if last else (Epilogue(), replace(o, residual=None))
        _store_vectors(e, tile, channels, place, how, sums)
        for pixel, group in zip(tile.singles, single, strict=True):
            _store_single(e, pixel, across, channels, place, how, group)

    e.choose(o.ends, lambda: store(True), lambda: store(False))


def _in_blocks(e: Emitter, depth: Index, steps: int, step: Callable[[Index], None], sums: list[Registers]) -> None:
    """All steps, whose sums go to memory each time that so many were added that a narrow type loses digits."""
    stored = [(acc, i, e.stack(lanes_of(acc[0]))) for acc in sums for i in range(acc.count)]
    for acc, i, total in stored:
        total.store(0, acc[i], lanes_of(acc[0]))
    blocks = e.let(tirx.truncdiv(depth + (steps - 1), steps))
    with e.loop(blocks) as block:
        first = e.let(block * steps)
        for acc, i, _ in stored:
            acc[i] = const(0.0, lanes_of(acc[i]), e.dtype)
        with e.loop(e.let(tirx.min(steps, depth - first))) as k:
            step(e.let(first + k))
        for acc, i, total in stored:
            lanes = lanes_of(acc[i])
            total.store(0, total.load(0, lanes) + acc[i], lanes)
    for acc, i, total in stored:
        acc[i] = total.load(0, lanes_of(acc[i]))


def _resume(
    e: Emitter,
    tile: Tile,
    channels: int,
    o: Operands,
    sums: list[Registers],
    single: list[list[Registers]],
    across: list[tuple[int, int]],
) -> None:
    """Load the sums that an earlier part of the reduction left in y; channels that do not exist start anywhere."""
    for c in range(channels):
        row = e.let(o.y_at + (c if o.left is None else tirx.min(c, o.left - 1)) * o.y_channel)
        for (offset, width), acc in zip(tile.vectors, sums, strict=True):
            acc[c] = o.y.load(row + offset, width)
        for pixel, group in zip(tile.singles, single, strict=True):
            for (offset, width), acc in zip(across, group, strict=True):
                if offset <= c < offset + width:
                    value = splat(o.y.load(row + pixel * o.y_pixel), width)
                    lanes = [width + lane if lane == c - offset else lane for lane in range(width)]
                    acc[0] = value if width == 1 or c == offset else shuffle([acc[0], value], lanes)


def _finish(o: Operands, epilogue: Epilogue, value: Expr, at: Index, width: int) -> None:
    if o.residual is not None:
        value = value + o.residual.load(at, width)
    o.y.store(at, epilogue.apply(value), width)


def _store_vectors(
    e: Emitter, tile: Tile, channels: int, o: Operands, epilogue: Epilogue, sums: list[Registers]
) -> None:
    y_at = e.let(o.y_at)
    if epilogue.activation in LONG:
        for (offset, width), acc in zip(tile.vectors, sums, strict=True):
            spill = e.stack(channels * width)
            for c in range(channels):
                spill.store(c * width, acc[c], width)
            with e.loop(channels) as c, e.when(True if o.left is None else c < o.left):
                _finish(o, epilogue, spill.load(c * width, width), e.let(y_at + c * o.y_channel + offset), width)
        return
    for c in range(channels):
        with e.when(True if o.left is None or c == 0 else o.left > c):
            row = e.let(y_at + c * o.y_channel)
            for (offset, width), acc in zip(tile.vectors, sums, strict=True):
                _finish(o, epilogue, acc[c], row + offset, width)


def _activate_stored(e: Emitter, across: list[tuple[int, int]], y: Array, at: Index, epilogue: Epilogue) -> None:
    """The activation on vectors that were just stored, its code once per width."""
    for width in dict.fromkeys(width for _, width in across):
        offsets = [offset for offset, w in across if w == width]
        with e.loop(len(offsets)) as i:
            place = e.let(at + (offsets[0] + i * width))
            y.store(place, epilogue.apply(y.load(place, width)), width)


def _store_single(
    e: Emitter,
    pixel: int,
    across: list[tuple[int, int]],
    channels: int,
    o: Operands,
    epilogue: Epilogue,
    group: list[Registers],
) -> None:
    at = e.let(o.y_at + pixel * o.y_pixel)

    def one_by_one() -> None:
        spill = e.stack(channels)
        for (offset, width), acc in zip(across, group, strict=True):
            spill.store(offset, acc[0], width)
        with e.loop(channels) as c, e.when(True if o.left is None else c < o.left):
            _finish(o, epilogue, spill.load(c), e.let(at + c * o.y_channel), 1)

    def whole() -> None:
        long = epilogue.activation in LONG
        for (offset, width), acc in zip(across, group, strict=True):
            _finish(o, Epilogue() if long else epilogue, acc[0], at + offset, width)
        if long:
            _activate_stored(e, across, o.y, at, epilogue)

    if o.y_channel == 1:
        e.choose(True if o.left is None else o.left >= channels, whole, one_by_one)
    elif epilogue.activation in LONG or o.residual is not None:
        one_by_one()
    else:
        for (offset, width), acc in zip(across, group, strict=True):
            value = e.name(epilogue.apply(acc[0]))
            for lane in range(width):
                c = offset + lane
                with e.when(True if o.left is None or c == 0 else o.left > c):
                    o.y.store(at + c * o.y_channel, value if width == 1 else shuffle([value], [lane]))
