"""Sliding windows over one plane at a time: the shared part of depthwise convolution and pooling.

A block of the padded plane is staged in scratch, its columns split by their remainder modulo the stride; then every
tap of every window is a contiguous vector, whatever the stride, and no edge needs a case of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from tvm import tirx

from backends.schedules import rows
from backends.schedules.emit import Array, Emitter, Expr, Index, Registers
from backends.schedules.specs import ConvSpec
from backends.target import Target

#: combine(sum, pixels, tap, lanes) -> sum; finish(sum, index in y, lanes, lanes that exist) -> value to store.
Combine = Callable[[Expr, Expr, Index, int], Expr]
Finish = Callable[[Expr, Index, int, int], Expr]


@dataclass(frozen=True)
class Geometry:
    """Windows on a plane of height x width, `top` rows and `left` columns of padding before it."""

    height: int
    width: int
    out_height: int
    out_width: int
    kernel: tuple[int, int]
    strides: tuple[int, int]
    top: int
    left: int
    dilations: tuple[int, int]
    target: Target

    @classmethod
    def of(cls, spec: ConvSpec, target: Target, **options: bool) -> Self:
        """The windows of a convolution."""
        return cls(
            height=spec.height,
            width=spec.width,
            out_height=spec.out_height,
            out_width=spec.out_width,
            kernel=spec.kernel,
            strides=spec.strides,
            top=spec.pads[0],
            left=spec.pads[1],
            dilations=spec.dilations,
            target=target,
            **options,
        )

    @property
    def lanes(self) -> int:
        """Vector width for rows of this length."""
        return min(self.target.lanes(), rows.power_of_two_above(self.out_width))

    @property
    def pieces(self) -> list[tuple[int, int, int]]:
        """(offset, width, stored) of the vectors over an output row."""
        if self.out_width < self.lanes:
            return [(0, self.lanes, self.out_width)]
        return [(offset, width, width) for offset, width in rows.cover(self.out_width, self.lanes)]


@dataclass(frozen=True)
class Windows(Geometry):
    """Windows over a staged block of the padded plane; everything a schedule asks is derived."""

    @property
    def phases(self) -> list[int]:
        """Remainders of staged columns modulo the stride that some tap reads."""
        return sorted({kx * self.dilations[1] % self.strides[1] for kx in range(self.kernel[1])})

    @property
    def pitch(self) -> int:
        """Elements of one staged row of one phase."""
        reach = (self.kernel[1] - 1) * self.dilations[1] // self.strides[1]
        covered = max(offset + width for offset, width, _ in self.pieces)
        return -(-(covered + reach) // self.lanes) * self.lanes

    @property
    def line(self) -> int:
        """Elements of one staged row, all phases."""
        return self.pitch * len(self.phases)

    def staged_rows(self, block: int) -> int:
        """Rows of the padded plane that `block` output rows need."""
        return (block - 1) * self.strides[0] + (self.kernel[0] - 1) * self.dilations[0] + 1

    @property
    def block(self) -> int:
        """Output rows per staged block: half the first-level cache, evenly divided."""
        budget = self.target.l1_bytes // 2
        most = max(1, (budget // (4 * self.line) - self.staged_rows(1)) // self.strides[0] + 1)
        if most >= self.out_height:
            return self.out_height
        return -(-self.out_height // -(-self.out_height // max(most, min(4, self.out_height))))

    @property
    def scratch(self) -> int:
        """Elements of scratch for one block."""
        return -(-self.staged_rows(self.block) * self.line // 16) * 16

    @property
    def together(self) -> int:
        """Output rows computed at once: enough sums in flight, few enough registers."""
        vectors = min(len(self.pieces), 4)
        most = max(1, min(8, (self.target.vector_registers // 2) // vectors))
        if self.block <= most:
            return self.block
        exact = [n for n in range(most, 0, -1) if self.block % n == 0]
        return exact[0] if exact[0] * 2 >= most else most

    def first_row(self, e: Emitter, block: Index) -> Index:
        """The first output row of a block; the last block overlaps its neighbour rather than being shorter."""
        if self.block == self.out_height:
            return 0
        return e.let(tirx.min(block * self.block, self.out_height - self.block))

    def stage_edges(self, e: Emitter, scratch: Array, at: Index, fill: float) -> None:
        """Fill the whole scratch, so that columns beyond the plane hold `fill` from then on."""
        rows.fill(e, scratch, at, self.scratch, self.target.lanes(), fill)

    def stage(self, e: Emitter, x: Array, source: Index, first: Index, scratch: Array, at: Index, fill: float) -> None:
        """Copy the padded rows for the block whose first output row is `first`."""
        count = self.staged_rows(self.block)
        leaves = self.top > 0 or (self.out_height - 1) * self.strides[0] + self.staged_rows(1) - self.top > self.height
        with e.loop(count) as r:
            row = e.let(first * self.strides[0] + r - self.top)
            to = e.let(at + r * self.line)
            line = e.let(source + row * self.width)

            def inside(line: Index = line, to: Index = to) -> None:
                for slot, phase in enumerate(self.phases):
                    self._stage_phase(e, x, line, scratch, to + slot * self.pitch, phase)

            def outside(to: Index = to) -> None:
                rows.fill(e, scratch, to, self.line, self.target.lanes(), fill)

            known = tirx.all(row >= 0, row < self.height) if leaves else True
            e.choose(known, inside, outside)

    def _stage_phase(self, e: Emitter, x: Array, line: Index, scratch: Array, to: Index, phase: int) -> None:
        stride = self.strides[1]
        start = (phase - self.left) % stride if phase < self.left else phase - self.left
        column = (start + self.left) // stride
        length = max(0, min((self.width - 1 - start) // stride + 1, self.pitch - column))
        rows.copy(e, scratch, to + column, x, line + start, stride, length, self.target.lanes())

    def compute(
        self,
        e: Emitter,
        scratch: Array,
        at: Index,
        first: Index,
        start: Callable[[int], Expr],
        combine: Combine,
        finish: Finish,
        y: Array,
        y_at: Index,
    ) -> None:
        """All windows of the staged block, stored to the plane of y at y_at."""
        block, together = self.block, self.together
        groups = -(-block // together)
        whole = self.out_width // self.lanes
        with e.loop(groups) as g:
            row = g * together if block % together == 0 else e.let(tirx.min(g * together, block - together))
            base = e.let(at + row * (self.strides[0] * self.line))
            out = e.let(y_at + (first + row) * self.out_width)
            if whole > 4:
                with e.loop(whole) as i:
                    offset = e.let(i * self.lanes)
                    self._tile(
                        e,
                        scratch,
                        base + offset,
                        together,
                        self.lanes,
                        self.lanes,
                        start,
                        combine,
                        finish,
                        y,
                        out + offset,
                    )
                rest = self.pieces[whole:]
            else:
                rest = self.pieces
            for offset, width, stored in rest:
                self._tile(e, scratch, base + offset, together, width, stored, start, combine, finish, y, out + offset)

    def _tile(
        self,
        e: Emitter,
        scratch: Array,
        base: Index,
        together: int,
        width: int,
        stored: int,
        start: Callable[[int], Expr],
        combine: Combine,
        finish: Finish,
        y: Array,
        out: Index,
    ) -> None:
        (kh, kw), (sh, sw), (dh, dw) = self.kernel, self.strides, self.dilations
        base, out = e.let(base), e.let(out)
        sums = e.registers(together, width)
        for r in range(together):
            sums[r] = start(width)
        if kh * kw * together > 512:
            self._taps_in_loops(e, scratch, base, together, width, combine, sums)
        else:
            for kx in range(kw):
                shift = self.phases.index(kx * dw % sw) * self.pitch + kx * dw // sw
                loaded: dict[int, Expr] = {}
                for r in range(together):
                    for ky in range(kh):
                        line = r * sh + ky * dh
                        if line not in loaded:
                            loaded[line] = e.name(scratch.load(base + (line * self.line + shift), width))
                        sums[r] = combine(sums[r], loaded[line], ky * kw + kx, width)
        for r in range(together):
            to = out + r * self.out_width
            value = e.name(finish(sums[r], to, width, stored))
            rows.store_part(y, to, value, width, stored)

    def _taps_in_loops(
        self, e: Emitter, scratch: Array, base: Index, together: int, width: int, combine: Combine, sums: Registers
    ) -> None:
        (kh, kw), (sh, sw), (dh, dw) = self.kernel, self.strides, self.dilations
        period = sw // math.gcd(sw, dw)
        with e.loop(kh) as ky:
            line = e.let(base + ky * (dh * self.line))
            for first in range(min(period, kw)):
                shift = self.phases.index(first * dw % sw) * self.pitch + first * dw // sw
                with e.loop(-(-(kw - first) // period)) as j:
                    tap = e.let(ky * kw + first + j * period)
                    at = e.let(line + shift + j * (period * dw // sw))
                    for r in range(together):
                        sums[r] = combine(sums[r], scratch.load(at + r * (sh * self.line), width), tap, width)
