"""Matrix products: fully connected layers, Gemm, and the products of two activations in transformers.

The columns of y are the vector axis and elements of `a` are broadcast, so a single row is a GEMV at the speed of
memory; a constant `a` is the same problem as a 1x1 convolution over n pixels, and is scheduled as one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from tvm import tirx

from backends.schedules.emit import Array, Emitter, Expr, Index
from backends.schedules.kernel import Kernel, symbol_for
from backends.schedules.microkernel import Operands, Tile, microkernel
from backends.schedules.product import GRAINS, Product, array_or_none, divide
from backends.schedules.rows import copy, fill
from backends.schedules.specs import MatMulSpec
from backends.target import Target

#: Tiles of rows from which fetching the next columns can be spread over the work on these.
_ROWS_TO_FETCH_AHEAD = 4


def matmul(spec: MatMulSpec, target: Target, parallel: bool = False) -> Kernel:
    """y = epilogue(a @ b); parameters a, b, bias?, residual?, y, workspace?.

    pack(weights, bias) takes the constant operand as it is stored, and returns it under its own name, and bias.
    Without a constant operand, pack(bias=bias) returns the bias alone.
    """
    return _constant_left(spec, target, parallel) if spec.weight_side == "a" else _rows(spec, target, parallel)


@dataclass(frozen=True)
class _Tiling:
    """Rows of a by columns of b in one register tile."""

    rows: int
    columns: int

    @classmethod
    def of(cls, m: int, n: int, target: Target) -> _Tiling:
        lanes, best, least = target.lanes(), None, 0.0
        for vectors in range(1, 9):
            columns = min(vectors * lanes, -(-n // lanes) * lanes)
            for height in range(1, min(m, 12) + 1):
                tile = Tile(height, (), tuple(range(height)))
                needed = tile.registers(columns, target) + (0 if target.loads_first else vectors - 1)
                if needed > target.vector_registers and height * vectors > 1:
                    continue
                work, loads = height * vectors, vectors + height
                steps = -(-m // height) * -(-n // columns)
                cost = steps * (
                    max(work, 4.0 if m > 1 else 1.0) + 0.25 * loads + (2.0 if vectors < 4 and m == 1 else 0)
                )
                if best is None or cost < least * 0.999:
                    best, least = cls(height, columns), cost
        assert best is not None
        return best


def _rows(spec: MatMulSpec, target: Target, parallel: bool) -> Kernel:
    symbol = symbol_for("matmul", spec, target, parallel)
    lanes, epilogue = target.lanes(), spec.epilogue
    tiling = _Tiling.of(spec.m, spec.n, target)
    columns, sweeps = tiling.columns, -(-spec.n // tiling.columns)
    a_count = spec.batch if spec.a_batched else 1
    b_count = spec.batch if spec.b_batched else 1
    packed = sweeps * spec.k * columns
    constant = spec.weight_side == "b"
    per_row = epilogue.bias and spec.bias_axis == "m"

    e = Emitter(symbol, parallel, target.dtype, target.max_keeps_nan)
    a = e.param("a", a_count * spec.m * spec.k)
    b = e.param("b", b_count * (packed if constant else spec.k * spec.n))
    bias = array_or_none(e, epilogue.bias, "bias", spec.m if per_row else sweeps * columns)
    residual = array_or_none(e, epilogue.residual, "residual", spec.batch * spec.m * spec.n)
    y = e.param("y", spec.batch * spec.m * spec.n)
    scratch = array_or_none(e, not constant, "workspace", b_count * packed)

    if scratch is not None:
        with e.loop(b_count * sweeps, parallel=True) as job:
            which, sweep = divide(e, job, sweeps)
            _pack_columns(e, spec, b, e.let(which * (spec.k * spec.n)), sweep, columns, scratch, job, lanes)

    weights = b if scratch is None else scratch
    main, tail = spec.m // tiling.rows, spec.m % tiling.rows
    splits = min(main, -(-GRAINS // (spec.batch * sweeps))) if parallel and main else 1
    each = max(1, -(-main // splits))
    splits = max(1, -(-main // each))
    # While one panel of constant columns meets the rows, the next one comes from memory, a little at each step.
    ahead = -(-columns // main) if constant and main >= _ROWS_TO_FETCH_AHEAD else 0
    with e.loop(spec.batch * sweeps * splits, parallel=True) as job:
        rest, split = divide(e, job, splits)
        item, sweep = divide(e, rest, sweeps)
        left = e.let(spec.n - sweep * columns) if spec.n % columns else None
        b_item = item if spec.b_batched else 0
        operands = Operands(
            x=a,
            x_at=e.let(item * (spec.m * spec.k)) if spec.a_batched else 0,
            x_step=spec.m if spec.transpose_a else 1,
            x_pixel=1 if spec.transpose_a else spec.k,
            w=weights,
            w_at=e.let(b_item * packed + sweep * (spec.k * columns)),
            y=y,
            y_at=e.let(item * (spec.m * spec.n) + sweep * columns),
            y_channel=1,
            y_pixel=spec.n,
            bias=bias,
            bias_at=e.let(sweep * columns),
            bias_per_pixel=per_row,
            residual=residual,
            left=left,
        )

        def tile(first: Index, height: int, o: Operands = operands, index: Index | None = None) -> None:
            shape = Tile(height, (), tuple(range(height)))
            here = replace(
                o,
                x_at=e.let(o.x_at + first * o.x_pixel),
                y_at=e.let(o.y_at + first * o.y_pixel),
                bias_at=first if per_row else o.bias_at,
                w_next=e.let(o.w_at + spec.k * (columns + index * ahead)) if ahead and index is not None else None,
                w_next_step=ahead,
            )
            microkernel(e, shape, columns, spec.k, here, epilogue, lanes)

        if main:
            begin = e.let(split * each)
            with e.loop(each if main % each == 0 else e.let(tirx.min(each, main - begin))) as t:
                index = e.let(begin + t)
                tile(e.let(index * tiling.rows), tiling.rows, index=index)
        if tail:
            with e.when(split >= splits - 1 if splits > 1 else True):
                tile(main * tiling.rows, tail)

    def pack(weights: np.ndarray | None = None, bias: np.ndarray | None = None) -> dict[str, np.ndarray]:
        result: dict[str, np.ndarray] = {}
        if constant:
            assert weights is not None
            array = np.asarray(weights, np.float32).reshape(
                b_count, *((spec.n, spec.k) if spec.transpose_b else (spec.k, spec.n))
            )
            array = array.transpose(0, 2, 1) if spec.transpose_b else array
            padded = np.zeros((b_count, spec.k, sweeps * columns), np.float32)
            padded[:, :, : spec.n] = array
            tiles = padded.reshape(b_count, spec.k, sweeps, columns).transpose(0, 2, 1, 3)
            result["b"] = np.ascontiguousarray(tiles).reshape(-1)
        if epilogue.bias:
            full = np.zeros(spec.m if per_row else sweeps * columns, np.float32)
            if bias is not None:
                flat = np.asarray(bias, np.float32).reshape(-1)
                full[: flat.size] = flat
            result["bias"] = full
        return result

    return Kernel(symbol, e.finish(), e.roles, 0 if constant else b_count * packed * target.itemsize, pack, spec.macs)


def _pack_columns(
    e: Emitter, spec: MatMulSpec, b: Array, at: Index, sweep: Index, columns: int, to: Array, job: Index, lanes: int
) -> None:
    """One tile of columns of b as [k][column], with zeros beyond the last column."""
    first, target_at = e.let(sweep * columns), e.let(job * (spec.k * columns))
    whole, rest = divmod(spec.n, columns)

    def run(width: int) -> None:
        if spec.transpose_b:
            with e.loop(width) as c:
                source = e.let(at + (first + c) * spec.k)
                with e.loop(spec.k) as k:
                    to.store(target_at + k * columns + c, b.load(source + k))
            if width < columns:
                with e.loop(spec.k) as k:
                    fill(e, to, e.let(target_at + k * columns + width), columns - width, lanes, 0.0)
            return
        with e.loop(spec.k) as k:
            row = e.let(target_at + k * columns)
            copy(e, to, row, b, e.let(at + k * spec.n + first), 1, width, lanes)
            fill(e, to, row + width, columns - width, lanes, 0.0)

    if not rest:
        run(columns)
    elif not whole:
        run(rest)
    else:
        e.choose(sweep < whole, lambda: run(columns), lambda: run(rest))


def _constant_left(spec: MatMulSpec, target: Target, parallel: bool) -> Kernel:
    """a is constant: weights [m, k] times pixels b[k, n]; a transposed b is turned over in the workspace first."""
    symbol = symbol_for("matmul", spec, target, parallel)
    product = Product(spec.m, spec.k, spec.n, target, spec.epilogue)
    a_count = spec.batch if spec.a_batched else 1
    b_count = spec.batch if spec.b_batched else 1
    per_column = spec.epilogue.bias and spec.bias_axis == "n"

    e = Emitter(symbol, parallel, target.dtype, target.max_keeps_nan)
    a = e.param("a", a_count * product.packed_weights)
    b = e.param("b", b_count * spec.k * spec.n)
    bias = array_or_none(e, spec.epilogue.bias, "bias", spec.n if per_column else product.packed_bias)
    residual = array_or_none(e, spec.epilogue.residual, "residual", spec.batch * spec.m * spec.n)
    y = e.param("y", spec.batch * spec.m * spec.n)
    size = spec.k * spec.n
    scratch = array_or_none(e, spec.transpose_b, "workspace", b_count * size)
    if scratch is not None:
        with e.loop(b_count * spec.k, parallel=True) as job:
            which, k = divide(e, job, spec.k)
            with e.loop(spec.n) as column:
                scratch.store(job * spec.n + column, b.load(which * size + column * spec.k + k))

    def operands(item: Expr) -> Operands:
        return Operands(
            x=b if scratch is None else scratch,
            x_at=e.let(item * size) if spec.b_batched else 0,
            x_step=spec.n,
            w=a,
            w_at=e.let(item * product.packed_weights) if spec.a_batched else 0,
            y=y,
            y_at=e.let(item * (spec.m * spec.n)),
            y_channel=spec.n,
            bias=bias,
            bias_per_pixel=per_column,
            residual=residual,
        )

    product.emit_blocks(e, spec.batch, operands)

    def pack(weights: np.ndarray, bias: np.ndarray | None = None) -> dict[str, np.ndarray]:
        array = np.asarray(weights, np.float32)
        array = array.reshape(a_count, *((spec.k, spec.m) if spec.transpose_a else (spec.m, spec.k)))
        array = array.transpose(0, 2, 1) if spec.transpose_a else array
        result = {"a": np.concatenate([product.pack_weights(part) for part in array])}
        if spec.epilogue.bias:
            full = np.zeros(spec.n if per_column else spec.m, np.float32) if bias is None else np.asarray(bias)
            full = np.broadcast_to(np.asarray(full, np.float32).reshape(-1), (spec.n if per_column else spec.m,))
            result["bias"] = np.ascontiguousarray(full) if per_column else product.pack_bias(full)
        return result

    return Kernel(symbol, e.finish(), e.roles, b_count * size * target.itemsize if scratch else 0, pack, spec.macs)
