"""Depthwise convolution (one input channel per group, any channel multiplier), one plane at a time.

Rows of outputs are computed together, so that each vector of pixels is loaded once for all the windows that contain
it. Planes are read where they lie; those of larger strides, wide dilations or less than a vector are staged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from tvm import tirx

from backends.schedules.emit import Array, Emitter, Expr, Index, const
from backends.schedules.epilogue import Epilogue
from backends.schedules.kernel import Kernel, symbol_for
from backends.schedules.microkernel import factors
from backends.schedules.product import GRAINS, array_or_none, divide
from backends.schedules.rows import load_part
from backends.schedules.specs import ConvSpec
from backends.schedules.windows import Combine, Finish, Windows
from backends.schedules.windows_in_place import WindowsInPlace
from backends.target import Target

#: Taps of a channel that registers may hold, where multiply-adds take one lane of a vector.
_HELD = 32


def one_channel(
    e: Emitter,
    epilogue: Epilogue,
    w: Array,
    w_at: Index,
    taps: int,
    bias: Array | None,
    channel: Index,
    residual: Array | None,
    by_lane: int = 0,
) -> tuple[Callable[[int], Expr], Combine, Finish]:
    """How the windows of an output channel, whose taps begin at w_at, start, add up and end. by_lane: see `factors`."""
    factor = factors(e, w, w_at, taps, by_lane if taps <= _HELD else 0)

    def start(lanes: int) -> Expr:
        return bias.splat(channel, lanes) if bias else const(0.0, lanes, w.dtype)

    def combine(total: Expr, pixels: Expr, tap: Index, lanes: int) -> Expr:
        return total + pixels * (factor(tap, lanes) if isinstance(tap, int) else w.splat(w_at + tap, lanes))

    def finish(total: Expr, to: Index, lanes: int, stored: int) -> Expr:
        if residual is not None:
            total = total + load_part(residual, to, lanes, stored)
        return epilogue.apply(total)

    return start, combine, finish


def depthwise(spec: ConvSpec, target: Target, parallel: bool) -> Kernel:
    """y = epilogue(conv(x, w)) with groups == in_channels; parameters as conv2d's."""
    symbol = symbol_for("depthwise", spec, target, parallel)
    epilogue, taps = spec.epilogue, spec.kernel[0] * spec.kernel[1]
    planes, plane = spec.batch * spec.in_channels, spec.height * spec.width
    multiplier, out_plane = spec.out_channels // spec.in_channels, spec.out_height * spec.out_width
    far = planes * plane * target.itemsize > target.l2_bytes // 2
    in_place = WindowsInPlace.of(spec, target, ahead=far, swept=target.few_in_flight)
    # Rows that are halved are better copied in order, where memory is far and planes are large.
    copied = far and spec.strides[1] > 1 and not in_place.sweeps
    staged = None if in_place.applies and not copied else Windows.of(spec, target)
    slots = min(GRAINS * 2, planes) if parallel else 1
    share = -(-planes // slots)
    slots = -(-planes // share)
    workspace = slots * staged.scratch if staged else 0

    e = Emitter(symbol, parallel, target.dtype, target.max_keeps_nan)
    x = e.param("x", planes * plane)
    w = e.param("w", spec.out_channels * taps)
    bias = array_or_none(e, epilogue.bias, "bias", spec.out_channels)
    residual = array_or_none(e, epilogue.residual, "residual", planes * multiplier * out_plane)
    y = e.param("y", planes * multiplier * out_plane)
    scratch = array_or_none(e, workspace > 0, "workspace", workspace)

    def output(channel: Index) -> tuple[Callable[[int], Expr], Combine, Finish]:
        return one_channel(e, epilogue, w, e.let(channel * taps), taps, bias, channel, residual, target.by_lane)

    def each_output(item: Index) -> Iterator[tuple[Index, Index]]:
        """Output channels of a plane, each with its place in y."""
        _, channel = divide(e, item, spec.in_channels)
        with e.loop(multiplier) as m:
            yield e.let(channel * multiplier + m), e.let((item * multiplier + m) * out_plane)

    with e.loop(slots, parallel=True) as slot:
        if staged and scratch:
            at = e.let(slot * staged.scratch)
            staged.stage_edges(e, scratch, at, 0.0)
        with e.loop(share if planes % share == 0 else e.let(tirx.min(share, planes - slot * share))) as j:
            item = e.let(slot * share + j)
            source = e.let(item * plane)
            if staged and scratch:
                with e.loop(-(-spec.out_height // staged.block)) as b:
                    first = staged.first_row(e, b)
                    staged.stage(e, x, source, first, scratch, at, 0.0)
                    for channel, y_at in each_output(item):
                        staged.compute(e, scratch, at, first, *output(channel), y, y_at)
            else:
                for channel, y_at in each_output(item):
                    in_place.compute(e, x, source, *output(channel), y, y_at)

    def pack(weights: np.ndarray, bias: np.ndarray | None = None) -> dict[str, np.ndarray]:
        packed = {"w": np.ascontiguousarray(weights, np.float32).reshape(-1)}
        if epilogue.bias:
            full = np.zeros(spec.out_channels, np.float32) if bias is None else bias
            packed["bias"] = np.ascontiguousarray(full, np.float32).reshape(-1)
        return packed

    return Kernel(symbol, e.finish(), e.roles, workspace * target.itemsize, pack, spec.macs)
