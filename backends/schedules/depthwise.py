"""Depthwise convolution (one input channel per group, any channel multiplier), one plane at a time.

The work is bound by loads, not by arithmetic: rows of outputs are computed together, so that each staged vector of
pixels is loaded once for all the windows that contain it.
"""

from __future__ import annotations

import numpy as np
from tvm import tirx

from backends.schedules.emit import Emitter, Expr, Index, const
from backends.schedules.kernel import Kernel, symbol_for
from backends.schedules.product import GRAINS, array_or_none, divide
from backends.schedules.rows import load_part
from backends.schedules.specs import ConvSpec
from backends.schedules.windows import Windows
from backends.target import Target


def depthwise(spec: ConvSpec, target: Target, parallel: bool) -> Kernel:
    """y = epilogue(conv(x, w)) with groups == in_channels; parameters as conv2d's."""
    windows = Windows(
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
    )
    symbol = symbol_for("depthwise", spec, target, parallel)
    epilogue, taps = spec.epilogue, spec.kernel[0] * spec.kernel[1]
    planes, plane = spec.batch * spec.in_channels, spec.height * spec.width
    multiplier, out_plane = spec.out_channels // spec.in_channels, spec.out_height * spec.out_width
    slots = min(GRAINS * 2, planes) if parallel else 1
    share = -(-planes // slots)
    slots = -(-planes // share)

    e = Emitter(symbol, parallel)
    x = e.param("x", planes * plane)
    w = e.param("w", spec.out_channels * taps)
    bias = array_or_none(e, epilogue.bias, "bias", spec.out_channels)
    residual = array_or_none(e, epilogue.residual, "residual", planes * multiplier * out_plane)
    y = e.param("y", planes * multiplier * out_plane)
    scratch = e.param("workspace", slots * windows.scratch)

    def one_output(channel: Expr, at: Index, first: Index, y_at: Index) -> None:
        w_at = e.let(channel * taps)

        def start(lanes: int) -> Expr:
            return bias.splat(channel, lanes) if bias else const(0.0, lanes)

        def combine(total: Expr, pixels: Expr, tap: Index, lanes: int) -> Expr:
            return total + pixels * w.splat(w_at + tap, lanes)

        def finish(total: Expr, to: Index, lanes: int, stored: int) -> Expr:
            if residual is not None:
                total = total + load_part(residual, to, lanes, stored)
            return epilogue.apply(total)

        windows.compute(e, scratch, at, first, start, combine, finish, y, y_at)

    with e.loop(slots, parallel=True) as slot:
        at = e.let(slot * windows.scratch)
        windows.stage_edges(e, scratch, at, 0.0)
        with e.loop(share if planes % share == 0 else e.let(tirx.min(share, planes - slot * share))) as j:
            item = e.let(slot * share + j)
            _, channel = divide(e, item, spec.in_channels)
            with e.loop(-(-spec.out_height // windows.block)) as b:
                first = windows.first_row(e, b)
                windows.stage(e, x, e.let(item * plane), first, scratch, at, 0.0)
                with e.loop(multiplier) as m:
                    output = e.let(channel * multiplier + m)
                    one_output(output, at, first, e.let((item * multiplier + m) * out_plane))

    def pack(weights: np.ndarray, bias: np.ndarray | None = None) -> dict[str, np.ndarray]:
        packed = {"w": np.ascontiguousarray(weights, np.float32).reshape(-1)}
        if epilogue.bias:
            full = np.zeros(spec.out_channels, np.float32) if bias is None else bias
            packed["bias"] = np.ascontiguousarray(full, np.float32).reshape(-1)
        return packed

    return Kernel(symbol, e.finish(), e.roles, slots * windows.scratch * 4, pack, spec.macs)
