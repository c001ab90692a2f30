"""3x3 convolutions of stride 1 with 2.25 times fewer multiplications, by Winograd's F(2x2, 3x3).

Tiles of 4x4 pixels become 16 points, each point a matrix product over channels; the coefficients are 0, 1 and 1/2, so
results are as accurate as the direct sum. Packed weights are 16/9 as large. Lavin and Gray, arXiv:1509.09308.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from backends.schedules.emit import Array, Emitter, Expr, Index, shuffle
from backends.schedules.epilogue import Epilogue
from backends.schedules.kernel import Kernel, symbol_for
from backends.schedules.microkernel import Operands, plan
from backends.schedules.product import GRAINS, Product, array_or_none
from backends.schedules.rows import load_part, store_part
from backends.schedules.specs import ConvSpec
from backends.schedules.windows import Windows
from backends.target import Target

_POINTS = 16
_KERNEL_TRANSFORM = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])


def applies(spec: ConvSpec) -> bool:
    """Whether the method can compute this convolution."""
    return spec.kernel == (3, 3) and spec.strides == (1, 1) and spec.dilations == (1, 1) and spec.groups == 1


@dataclass(frozen=True)
class _Shape:
    """Tiles of 2x2 outputs: `down` rows of `across` tiles, of which `rows` rows are in flight at once."""

    down: int
    across: int
    rows: int
    windows: Windows

    @classmethod
    def of(cls, spec: ConvSpec, target: Target) -> _Shape:
        down, across = -(-spec.out_height // 2), -(-spec.out_width // 2)
        channels, best, least = spec.in_channels + spec.out_channels, 1, math.inf
        for rows in sorted({-(-down // blocks) for blocks in range(1, down + 1)}):
            blocks = -(-down // rows)
            cost = blocks * plan(rows * across, spec.out_channels, target).cost * spec.in_channels
            size = rows * across * channels * 4
            # Beyond the second-level cache each point goes out and comes back at about 16 bytes a cycle.
            cost += blocks * size * (4 / 16) * max(0.0, 1 - target.l2_bytes / (_POINTS * size)) + blocks * 2000
            if cost < least:
                best, least = rows, cost
        windows = Windows(
            height=spec.height,
            width=spec.width,
            out_height=down,
            out_width=across,
            kernel=(4, 4),
            strides=(2, 2),
            top=spec.pads[0],
            left=spec.pads[1],
            dilations=(1, 1),
            target=target,
            block_rows=best,
        )
        return cls(down, across, best, windows)

    @property
    def tiles(self) -> int:
        return self.rows * self.across

    @property
    def pitch(self) -> int:
        """Elements per channel and point: the tiles, and what vectors write beyond the last."""
        covered = max(offset + width for offset, width, _ in self.windows.pieces)
        return (self.rows - 1) * self.across + max(self.across, covered)

    def points(self, channels: int) -> int:
        """Elements of one point of all channels."""
        return -(-channels * self.pitch // 16) * 16


def winograd(spec: ConvSpec, target: Target, parallel: bool = False) -> Kernel:
    """As conv2d, for a spec to which the method `applies`."""
    symbol = symbol_for("winograd", spec, target, parallel)
    shape = _Shape.of(spec, target)
    windows, epilogue = shape.windows, spec.epilogue
    product = Product(spec.out_channels, spec.in_channels, shape.tiles, target, Epilogue())
    inputs, outputs = shape.points(spec.in_channels), shape.points(spec.out_channels)
    share = -(-spec.in_channels // min(spec.in_channels, 2 * GRAINS)) if parallel else spec.in_channels
    slots = -(-spec.in_channels // share)
    workspace = _POINTS * (inputs + outputs) + slots * windows.scratch
    plane, out_plane = spec.height * spec.width, spec.out_height * spec.out_width

    e = Emitter(symbol, parallel)
    x = e.param("x", spec.batch * spec.in_channels * plane)
    w = e.param("w", _POINTS * product.packed_weights)
    bias = array_or_none(e, epilogue.bias, "bias", spec.out_channels)
    residual = array_or_none(e, epilogue.residual, "residual", spec.batch * spec.out_channels * out_plane)
    y = e.param("y", spec.batch * spec.out_channels * out_plane)
    scratch = e.param("workspace", workspace)
    sums_at, stage_at = _POINTS * inputs, _POINTS * (inputs + outputs)

    def point_operands(point: Expr) -> Operands:
        return Operands(
            x=scratch,
            x_at=e.let(point * inputs),
            x_step=shape.pitch,
            w=w,
            w_at=e.let(point * product.packed_weights),
            y=scratch,
            y_at=e.let(point * outputs + sums_at),
            y_channel=shape.pitch,
        )

    with e.loop(slots, parallel=True) as slot:
        windows.stage_edges(e, scratch, e.let(slot * windows.scratch + stage_at), 0.0)
    with e.loop(spec.batch) as image, e.loop(-(-shape.down // shape.rows)) as block:
        first = windows.first_row(e, block)
        with e.loop(slots, parallel=True) as slot:
            at = e.let(slot * windows.scratch + stage_at)
            with e.loop(share) as j:
                channel = e.let(slot * share + j)
                with e.when(True if spec.in_channels % share == 0 else channel < spec.in_channels):
                    source = e.let((image * spec.in_channels + channel) * plane)
                    windows.stage(e, x, source, first, scratch, at, 0.0)
                    _to_points(e, shape, scratch, at, e.let(channel * shape.pitch), inputs)
        product.emit_blocks(e, _POINTS, point_operands)
        with e.loop(spec.out_channels, parallel=True) as channel:
            to = e.let((image * spec.out_channels + channel) * out_plane)

            def finish(value: Expr, place: Index, lanes: int, stored: int, channel: Expr = channel) -> Expr:
                if bias is not None:
                    value = value + bias.splat(channel, lanes)
                if residual is not None:
                    value = value + load_part(residual, place, lanes, stored)
                return epilogue.apply(value)

            source = e.let(channel * shape.pitch + sums_at)
            with e.loop(shape.rows) as row:
                start = e.let(source + row * shape.across)
                _from_points(e, spec, shape, scratch, start, outputs, e.let(first + row), y, to, finish)

    def pack(weights: np.ndarray, bias: np.ndarray | None = None) -> dict[str, np.ndarray]:
        g = _KERNEL_TRANSFORM
        points = np.einsum("ua,ocab,vb->uvoc", g, np.asarray(weights, np.float64), g)
        points = points.reshape(_POINTS, spec.out_channels, spec.in_channels).astype(np.float32)
        packed = {"w": np.concatenate([product.pack_weights(point) for point in points])}
        if epilogue.bias:
            full = np.zeros(spec.out_channels, np.float32) if bias is None else bias
            packed["bias"] = np.ascontiguousarray(full, np.float32).reshape(-1)
        return packed

    return Kernel(symbol, e.finish(), e.roles, workspace * 4, pack, spec.macs)


def _to_points(e: Emitter, shape: _Shape, scratch: Array, at: Expr, channel: Expr, point: int) -> None:
    """The 16 points of every tile of one staged channel."""
    windows = shape.windows

    def both(d0: Expr, d1: Expr, d2: Expr, d3: Expr) -> list[Expr]:
        return [e.name(d0 - d2), e.name(d1 + d2), e.name(d2 - d1), e.name(d1 - d3)]

    with e.loop(shape.rows) as row:
        line = e.let(at + row * (2 * windows.line))
        to = e.let(channel + row * shape.across)
        for offset, width, _ in windows.pieces:
            columns = []
            for j in range(4):
                place = line + (j % 2 * windows.pitch + j // 2 + offset)
                columns.append(
                    both(*[e.name(scratch.load(place + i * windows.line, width)) for i in range(4)]),
                )
            for i in range(4):
                for j, value in enumerate(both(*[columns[k][i] for k in range(4)])):
                    scratch.store(to + ((i * 4 + j) * point + offset), value, width)


def _from_points(
    e: Emitter,
    spec: ConvSpec,
    shape: _Shape,
    scratch: Array,
    start: Expr,
    point: int,
    tile_row: Expr,
    y: Array,
    to: Expr,
    finish: object,
) -> None:
    """Two rows of outputs from the 16 sums of one row of tiles."""
    assert callable(finish)
    for offset, width, _ in shape.windows.pieces:
        rows: list[list[Expr]] = [[], []]
        for j in range(4):
            m = [e.name(scratch.load(start + ((i * 4 + j) * point + offset), width)) for i in range(4)]
            middle = e.name(m[1] - m[2])
            rows[0].append(e.name(m[0] + m[1] + m[2]))
            rows[1].append(e.name(middle - m[3]))
        for r in range(2):
            s = rows[r]
            even, odd = e.name(s[0] + s[1] + s[2]), e.name(s[1] - s[2] - s[3])
            row = e.let(tile_row * 2 + r)
            with e.when(True if spec.out_height % 2 == 0 or r == 0 else row < spec.out_height):
                base = e.let(to + row * spec.out_width)
                for half in range(2):
                    column = 2 * offset + half * width
                    stored = min(width, spec.out_width - column)
                    if stored > 0:
                        lanes = [half * (width // 2) + i // 2 + i % 2 * width for i in range(width)]
                        value = shuffle([even, odd], lanes) if width > 1 else (even, odd)[half]
                        place = base + column
                        store_part(y, place, e.name(finish(value, place, width, stored)), width, stored)
