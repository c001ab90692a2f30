"""Transposed convolution: a matrix product onto taps, whose planes are then added up where they land in the output.

The product is the dense one (weights transposed at compile time); no multiplication by inserted zeros is made.
"""

from __future__ import annotations

import numpy as np
from tvm import tirx

from backends.schedules.emit import Array, Emitter, Expr, Index
from backends.schedules.epilogue import Epilogue
from backends.schedules.kernel import Kernel, symbol_for
from backends.schedules.microkernel import Operands
from backends.schedules.product import Product, array_or_none, divide
from backends.schedules.rows import each_piece, fill
from backends.schedules.specs import ConvTransposeSpec
from backends.target import Target


def conv_transpose2d(spec: ConvTransposeSpec, target: Target, parallel: bool = False) -> Kernel:
    """y = epilogue(conv_transpose(x, w)); parameters x, w, bias?, residual?, y, workspace.

    pack(weights[in, out // groups, kh, kw], bias[out]) -> w, bias.
    """
    symbol = symbol_for("convtranspose", spec, target, parallel)
    inputs, outputs = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    taps, pixels = spec.kernel[0] * spec.kernel[1], spec.height * spec.width
    product = Product(outputs * taps, inputs, pixels, target, Epilogue())
    problems, out_plane = spec.batch * spec.groups, spec.out_height * spec.out_width
    columns = problems * outputs * taps * pixels if parallel else outputs * taps * pixels

    e = Emitter(symbol, parallel, target.dtype, target.max_keeps_nan)
    x = e.param("x", spec.batch * spec.in_channels * pixels)
    w = e.param("w", spec.groups * product.packed_weights)
    bias = array_or_none(e, spec.epilogue.bias, "bias", spec.out_channels)
    residual = array_or_none(e, spec.epilogue.residual, "residual", spec.batch * spec.out_channels * out_plane)
    y = e.param("y", spec.batch * spec.out_channels * out_plane)
    scratch = e.param("workspace", columns)

    def operands(problem: Expr, base: Expr) -> Operands:
        _, group = divide(e, problem, spec.groups)
        return Operands(
            x=x,
            x_at=e.let(problem * (inputs * pixels)),
            x_step=pixels,
            w=w,
            w_at=e.let(group * product.packed_weights),
            y=scratch,
            y_at=base,
            y_channel=pixels,
        )

    def add_up(plane: Expr, source: Expr) -> None:
        """Plane `plane` of y (image, channel) from the planes of its taps in scratch."""
        channel = divide(e, plane, spec.out_channels)[1]
        with e.loop(spec.out_height) as row:
            _output_row(e, spec, scratch, source, row, y, e.let(plane * out_plane + row * spec.out_width), target)
            to = e.let(plane * out_plane + row * spec.out_width)

            def finish(offset: Index, width: int, to: Expr = to) -> None:
                value = y.load(to + offset, width)
                if bias is not None:
                    value = value + bias.splat(channel, width)
                if residual is not None:
                    value = value + residual.load(to + offset, width)
                y.store(to + offset, spec.epilogue.apply(value), width)

            if bias is not None or residual is not None or spec.epilogue.activation is not None:
                _disjoint(e, spec.out_width, target.lanes(), finish)

    size = outputs * taps * pixels
    if parallel:
        product.emit_blocks(e, problems, lambda problem: operands(problem, e.let(problem * size)))
        with e.loop(spec.batch * spec.out_channels, parallel=True) as plane:
            add_up(plane, e.let(plane * (taps * pixels)))
    else:
        with e.loop(problems) as problem:
            product.emit_blocks(e, 1, lambda _: operands(problem, tirx.IntImm("int32", 0)))
            with e.loop(outputs) as output:
                add_up(e.let(problem * outputs + output), e.let(output * (taps * pixels)))

    def pack(weights: np.ndarray, bias: np.ndarray | None = None) -> dict[str, np.ndarray]:
        array = np.asarray(weights, np.float32).reshape(spec.groups, inputs, outputs * taps)
        packed = {"w": np.concatenate([product.pack_weights(part.T) for part in array])}
        if spec.epilogue.bias:
            full = np.zeros(spec.out_channels, np.float32) if bias is None else bias
            packed["bias"] = np.ascontiguousarray(full, np.float32).reshape(-1)
        return packed

    return Kernel(symbol, e.finish(), e.roles, columns * target.itemsize, pack, spec.macs)


def _output_row(
    e: Emitter, spec: ConvTransposeSpec, taps: Array, source: Expr, row: Expr, y: Array, to: Expr, target: Target
) -> None:
    """One row of sums: every tap row that lands on it is added with the stride of the columns."""
    (kh, kw), (sh, sw), (dh, dw) = spec.kernel, spec.strides, spec.dilations
    pixels, lanes = spec.height * spec.width, target.lanes()
    fill(e, y, to, spec.out_width, lanes, 0.0)
    with e.loop(kh) as ky:
        offset = e.let(row + spec.pads[0] - ky * dh)
        line = e.let(tirx.truncdiv(offset, sh))
        with e.when(tirx.all(offset >= 0, line * sh == offset, line < spec.height)):
            for kx in range(kw):
                shift = kx * dw - spec.pads[1]
                low = min(spec.width, max(0, -(shift // sw)))
                high = max(low, min(spec.width, (spec.out_width - 1 - shift) // sw + 1))
                at = e.let(source + (ky * kw + kx) * pixels + line * spec.width)
                _accumulate(e, y, to + shift, sw, taps, at, low, high, lanes)


def _accumulate(
    e: Emitter, y: Array, to: Index, stride: int, source: Array, at: Index, low: int, high: int, lanes: int
) -> None:
    """y[to + i * stride] += source[at + i] for i in [low, high)."""
    if stride == 1:

        def add(offset: Index, width: int) -> None:
            place = to + low + offset
            y.store(place, y.load(place, width) + source.load(at + low + offset, width), width)

        _disjoint(e, high - low, lanes, add)
    elif high > low:
        with e.loop(high - low) as i:
            place = e.let(to + (low + i) * stride)
            y.store(place, y.load(place) + source.load(at + low + i))


def _disjoint(e: Emitter, length: int, lanes: int, body: object) -> None:
    """`body(offset, width)` over [0, length) in vectors that do not overlap, for updates in place."""
    assert callable(body)
    whole = length // lanes * lanes
    each_piece(e, whole, lanes, body)
    offset, width = whole, lanes
    while offset < length:
        while width > length - offset:
            width //= 2
        body(offset, width)
        offset += width
