"""Convolution: depthwise layers by their own schedule, everything else as a matrix product over pixels.

1x1 convolutions read the image as it is; others copy a block of rows into a panel [channel and tap][pixel] that
stays in the second-level cache while all weights pass (im2col, one block at a time).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import tvm
from tvm import tirx

from backends.schedules import rows
from backends.schedules.dense_cost import dense_methods, direct_schedule
from backends.schedules.depthwise import depthwise
from backends.schedules.emit import Array, Emitter, Expr, Index, const
from backends.schedules.kernel import Kernel, symbol_for
from backends.schedules.microkernel import Operands, plan
from backends.schedules.product import GRAINS, Product, array_or_none, divide, waves
from backends.schedules.specs import ConvSpec
from backends.schedules.winograd import winograd
from backends.target import Target
from compiler.errors import SecateurError

#: Kernels wider than this are gathered element by element.
_WIDEST_UNROLLED = 11
#: Steps of a reduction that are worth storing and loading the sums around them.
_SHALLOWEST = 192


def conv2d(spec: ConvSpec, target: Target, parallel: bool = False, method: str = "auto") -> Kernel:
    """y = epilogue(conv(x, w)); parameters x, w, bias?, residual?, y, workspace?.

    pack(weights[out, in // groups, kh, kw], bias[out]) -> w, bias. method: "direct" sums as written and packs weights
    to their own size; "winograd2", "winograd3" and "winograd4" (square windows of one group, as `winograd.tile_sizes`
    says) multiply 2.25 to 4 times less, with weights up to 4 times as large; "auto" is the one of the least estimated
    cost.
    """
    possible = dense_methods(spec, target)
    if method != "auto" and method not in possible:
        raise SecateurError("E_SPEC", f"no method '{method}' for this convolution", where=repr(spec), hint="use auto")
    chosen = next(iter(possible)) if method == "auto" else method
    if chosen != "direct":
        return winograd(spec, target, parallel, int(chosen.removeprefix("winograd")))
    schedule = direct_schedule(spec)
    if schedule == "depthwise":
        return depthwise(spec, target, parallel)
    symbol = symbol_for("conv", spec, target, parallel)
    outputs, inputs = spec.out_channels // spec.groups, spec.in_channels // spec.groups
    depth = inputs * spec.kernel[0] * spec.kernel[1]
    build = _pointwise if schedule == "pointwise" else _by_panels
    func, product, params, workspace = build(symbol, spec, target, parallel, outputs, depth)
    return Kernel(symbol, func, params, workspace, _packer(spec, product), spec.macs)


def _packer(spec: ConvSpec, product: Product) -> Callable[..., dict[str, np.ndarray]]:
    def pack(weights: np.ndarray, bias: np.ndarray | None = None) -> dict[str, np.ndarray]:
        grouped = np.asarray(weights, np.float32).reshape(spec.groups, product.outputs, product.depth)
        packed = {"w": np.concatenate([product.pack_weights(part) for part in grouped])}
        if spec.epilogue.bias:
            full = np.zeros(spec.out_channels, np.float32) if bias is None else np.asarray(bias, np.float32)
            parts = full.reshape(spec.groups, product.outputs)
            packed["bias"] = np.concatenate([product.pack_bias(part) for part in parts])
        return packed

    return pack


Built = tuple[tvm.tirx.PrimFunc, Product, tuple[str, ...], int]


def _declare(
    e: Emitter, spec: ConvSpec, product: Product, workspace: int, target: Target
) -> tuple[Callable[[Expr, Array, Index, int, Index], Operands], Array, Array | None, tuple[str, ...]]:
    """Parameters, and operands of (image and group, matrix, its offset and row length, first pixel of y)."""
    pixels = spec.out_height * spec.out_width
    streams = (
        spec.in_channels * spec.height * spec.width + spec.out_channels * pixels
    ) * target.itemsize > target.l2_bytes // 4
    x = e.param("x", spec.batch * spec.in_channels * spec.height * spec.width)
    w = e.param("w", spec.groups * product.packed_weights)
    bias = array_or_none(e, spec.epilogue.bias, "bias", spec.groups * product.packed_bias)
    residual = array_or_none(e, spec.epilogue.residual, "residual", spec.batch * spec.out_channels * pixels)
    y = e.param("y", spec.batch * spec.out_channels * pixels)
    scratch = array_or_none(e, workspace > 0, "workspace", workspace)

    def operands(problem: Expr, matrix: Array, at: Index, step: int, pixel: Index) -> Operands:
        _, group = divide(e, problem, spec.groups)
        return Operands(
            x=matrix,
            x_at=at,
            x_step=step,
            w=w,
            w_at=e.let(group * product.packed_weights),
            y=y,
            y_at=e.let(problem * (product.outputs * pixels) + pixel),
            y_channel=pixels,
            bias=bias,
            bias_at=e.let(group * product.packed_bias),
            residual=residual,
            x_streams=streams and matrix is x,
            y_streams=streams,
        )

    return operands, x, scratch, e.roles


def _pointwise(symbol: str, spec: ConvSpec, target: Target, parallel: bool, outputs: int, depth: int) -> Built:
    pixels = spec.height * spec.width
    product = Product(outputs, depth, pixels, target, spec.epilogue, spec.groups)
    e = Emitter(symbol, parallel, target.dtype, target.max_keeps_nan)
    operands, x, _, params = _declare(e, spec, product, 0, target)
    product.emit_blocks(
        e,
        spec.batch * spec.groups,
        lambda problem: operands(problem, x, e.let(problem * (depth * pixels)), pixels, 0),
    )
    return e.finish(), product, params, 0


@dataclass(frozen=True)
class _Panels:
    """How the image is cut: `blocks` of `height` output rows, and the reduction in parts of `inputs` channels."""

    height: int
    blocks: int
    inputs: int

    @classmethod
    def of(cls, spec: ConvSpec, target: Target, parallel: bool, outputs: int, per_channel: int) -> _Panels:
        """The cut with the least estimated work whose panel stays in the second-level cache."""
        high, wide, channels = spec.out_height, spec.out_width, spec.in_channels // spec.groups
        budget, outer = target.l2_bytes // 4, spec.batch * spec.groups
        best, least = cls(1, high, channels), math.inf
        for blocks in sorted({-(-high // height) for height in range(1, high + 1)}):
            height = -(-high // blocks)
            fit = max(1, budget // (height * wide * per_channel * target.itemsize))
            parts = -(-channels // fit)
            inputs = -(-channels // parts)
            if parts > 1 and (inputs * per_channel < _SHALLOWEST and height > 1):
                continue
            if parts > 1 and blocks * height != high:
                continue
            cost = blocks * plan(height * wide, outputs, target).cost * channels * per_channel
            # Sums that pause are stored and loaded again; weights that return come from afar.
            cost *= 1 + 6.0 * (parts - 1) / (channels * per_channel) + 0.002 * blocks
            if parallel and outer * blocks < GRAINS:
                cost *= 1 + 0.01 * (GRAINS - outer * blocks)
            if cost < least:
                best, least = cls(height, blocks, inputs), cost
        return best


def _by_panels(symbol: str, spec: ConvSpec, target: Target, parallel: bool, outputs: int, depth: int) -> Built:
    """Blocks of whole output rows; the last block overlaps its neighbour rather than being shorter."""
    wide, high, outer = spec.out_width, spec.out_height, spec.batch * spec.groups
    inputs, per_channel = spec.in_channels // spec.groups, spec.kernel[0] * spec.kernel[1]
    cut = _Panels.of(spec, target, parallel, outputs, per_channel)
    height, blocks = cut.height, cut.blocks
    product = Product(outputs, depth, height * wide, target, spec.epilogue, spec.groups)
    panel, panels = _aligned(cut.inputs * per_channel * height * wide), outer * blocks
    together = waves(panels, panel * target.itemsize, target) if parallel else 1
    rounds = -(-panels // together)

    e = Emitter(symbol, parallel, target.dtype, target.max_keeps_nan)
    operands, x, scratch, params = _declare(e, spec, product, together * panel, target)
    assert scratch is not None

    def start_row(block: Index) -> Index:
        return 0 if blocks == 1 else e.let(tirx.min(block * height, high - height))

    def gather(item: Index, at: Index, channel: Index, slot: Index) -> None:
        """Channel `channel` of the input into place `slot` of the panel at `at`."""
        problem, block = divide(e, item, blocks)
        source = e.let((problem * inputs + channel) * (spec.height * spec.width))
        _gather(e, spec, x, source, start_row(block), height, scratch, at, slot, target.lanes())

    def multiply(item: Index, at: Index, part: Part, start: Index, sweeps: Index) -> None:
        problem, block = divide(e, item, blocks)
        o = operands(problem, scratch, at, height * wide, start_row(block) * wide)
        skip = e.let(part.first * (per_channel * product.plan.channels))
        o = replace(o, w_at=e.let(o.w_at + skip), resumes=part.resumes, ends=part.ends)
        count, per_block = product.plan.count, product.tiles_per_block(cut.inputs * per_channel)
        groups = max(1, -(-count // per_block))
        with e.loop(groups) as group:
            first = e.let(group * per_block)
            tiles: Index = per_block if count % per_block == 0 else e.let(tirx.min(per_block, count - first))
            last = group >= groups - 1 if groups > 1 else True
            product.emit(e, first, tiles, start, sweeps, last, o, e.let(part.count * per_channel))

    splits = min(product.sweeps, -(-GRAINS // together)) if parallel else 1
    each = -(-product.sweeps // splits)
    splits = -(-product.sweeps // each)
    with e.loop(rounds) as wave:
        start = e.let(wave * together)
        count: Index = together if panels % together == 0 else e.let(tirx.min(together, panels - start))
        with _parts(e, inputs, cut.inputs) as part:
            with e.loop(e.let(count * part.count), parallel=True) as job:
                place = e.let(tirx.truncdiv(job, part.count))
                slot = e.let(job - place * part.count)
                gather(e.let(start + place), e.let(place * panel), e.let(part.first + slot), slot)
            with e.loop(e.let(count * splits), parallel=True) as job:
                place, split = divide(e, job, splits)
                sweep = e.let(split * each)
                left = each if product.sweeps % each == 0 else e.let(tirx.min(each, product.sweeps - sweep))
                multiply(e.let(start + place), e.let(place * panel), part, sweep, left)
    return e.finish(), product, params, together * panel * target.itemsize


@dataclass(frozen=True)
class Part:
    """Input channels [first, first + count) of a reduction."""

    first: Index
    count: Index
    resumes: Expr | bool
    ends: Expr | bool


@contextmanager
def _parts(e: Emitter, inputs: int, each: int) -> Iterator[Part]:
    """A loop over the parts of the reduction."""
    parts = -(-inputs // each)
    with e.loop(parts) as index:
        first = e.let(index * each)
        count: Index = each if inputs % each == 0 else e.let(tirx.min(each, inputs - first))
        yield Part(first, count, index > 0 if parts > 1 else False, index >= parts - 1 if parts > 1 else True)


def _aligned(elements: int) -> int:
    return -(-elements // 16) * 16


def _gather(
    e: Emitter,
    spec: ConvSpec,
    x: Array,
    source: Index,
    first_row: Index,
    height: int,
    panel: Array,
    at: Index,
    channel: Index,
    lanes: int,
) -> None:
    """panel[(channel, ky, kx)][row, column] = the padded image under each tap, for `height` rows from first_row on."""
    (kh, kw), (sh, sw), (dh, dw) = spec.kernel, spec.strides, spec.dilations
    (top, left, _, _), wide = spec.pads, spec.out_width
    may_leave = top > 0 or (spec.out_height - 1) * sh + (kh - 1) * dh - top >= spec.height

    with e.loop(kh) as ky, e.loop(height) as r:
        row = e.let((first_row + r) * sh + ky * dh - top)
        line = e.let(source + row * spec.width)
        base = e.let(at + (channel * kh + ky) * (kw * height * wide) + r * wide)
        inside = tirx.all(row >= 0, row < spec.height) if may_leave else True

        def tap(kx: int, line: Index = line, base: Index = base) -> None:
            low, high = valid_range(wide, spec.width, kx * dw - left, sw)
            to = base + kx * (height * wide)
            rows.fill(e, panel, to, low, lanes, 0.0)
            rows.copy(e, panel, to + low, x, line + (low * sw + kx * dw - left), sw, high - low, lanes)
            rows.fill(e, panel, to + high, wide - high, lanes, 0.0)

        def taps() -> None:
            for kx in range(kw):
                tap(kx)

        def one_by_one(line: Index = line, base: Index = base) -> None:
            with e.loop(kw) as kx, e.loop(wide) as column:
                at_x = e.let(column * sw + kx * dw - left)
                to = e.let(base + kx * (height * wide) + column)
                known = tirx.all(at_x >= 0, at_x < spec.width)
                e.choose(
                    known,
                    lambda: panel.store(to, x.load(line + at_x)),
                    lambda: panel.store(to, const(0.0, 1, panel.dtype)),
                )

        def outside(base: Index = base) -> None:
            with e.loop(kw) as kx:
                rows.fill(e, panel, e.let(base + kx * (height * wide)), wide, lanes, 0.0)

        e.choose(inside, taps if kw <= _WIDEST_UNROLLED else one_by_one, outside)


def valid_range(out: int, size: int, shift: int, stride: int) -> tuple[int, int]:
    """The outputs [low, high) whose input i * stride + shift lies in [0, size)."""
    low = min(out, max(0, -(shift // stride)))
    high = max(low, min(out, (size - 1 - shift) // stride + 1))
    return low, high
