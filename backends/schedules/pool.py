"""Pooling: windows of maxima or averages, and reductions of whole planes.

Averages multiply by a table of 1 / (elements counted), made at compile time, which covers every rule for padding.
"""

from __future__ import annotations

import numpy as np
from tvm import tirx

from backends.schedules.emit import STACK_BYTES, Array, Emitter, Expr, Index, const, shuffle, widened
from backends.schedules.kernel import Kernel, symbol_for
from backends.schedules.product import GRAINS, array_or_none
from backends.schedules.rows import cover, load_part
from backends.schedules.specs import PoolSpec
from backends.schedules.windows import Windows
from backends.target import Target
from compiler.errors import SecateurError

_LOWEST = -float(np.finfo(np.float32).max)


def pool2d(spec: PoolSpec, target: Target, parallel: bool = False) -> Kernel:
    """y = max or average of windows of x; parameters x, scale (average only), y, workspace?. pack() -> scale."""
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
    symbol = symbol_for("pool", spec, target, parallel)
    planes, plane, out_plane = spec.batch * spec.channels, spec.height * spec.width, spec.out_height * spec.out_width
    slots = min(GRAINS * 2, planes) if parallel else 1
    share = -(-planes // slots)
    slots = -(-planes // share)
    average = spec.kind == "average"
    empty = 0.0 if average else -np.inf

    e = Emitter(symbol, parallel, target.dtype, target.max_keeps_nan)
    x = e.param("x", planes * plane)
    scale = array_or_none(e, average, "scale", out_plane)
    y = e.param("y", planes * out_plane)
    on_stack = windows.scratch * target.itemsize <= STACK_BYTES
    workspace = None if on_stack else e.param("workspace", slots * windows.scratch)

    def start(lanes: int) -> Expr:
        return const(empty, lanes, e.dtype)

    def combine(total: Expr, pixels: Expr, tap: Index, lanes: int) -> Expr:
        return total + pixels if average else largest(total, pixels)

    with e.loop(slots, parallel=True) as slot:
        scratch = workspace or e.stack(windows.scratch)
        at = e.let(slot * windows.scratch) if workspace else 0
        windows.stage_edges(e, scratch, at, empty)
        with e.loop(share if planes % share == 0 else e.let(tirx.min(share, planes - slot * share))) as j:
            item = e.let(slot * share + j)
            y_at = e.let(item * out_plane)

            def finish(total: Expr, to: Index, lanes: int, stored: int, y_at: Expr = y_at) -> Expr:
                return total * load_part(scale, to - y_at, lanes, stored) if scale else total

            with e.loop(-(-spec.out_height // windows.block)) as b:
                first = windows.first_row(e, b)
                windows.stage(e, x, e.let(item * plane), first, scratch, at, empty)
                windows.compute(e, scratch, at, first, start, combine, finish, y, y_at)

    def pack() -> dict[str, np.ndarray]:
        return {"scale": _reciprocal_counts(spec)} if average else {}

    workspace_bytes = 0 if on_stack else slots * windows.scratch * target.itemsize
    return Kernel(symbol, e.finish(), e.roles, workspace_bytes, pack, spec.macs)


def largest(a: Expr, b: Expr) -> Expr:
    """max(a, b)."""
    return tirx.Select(a < b, b, a)


def _reciprocal_counts(spec: PoolSpec) -> np.ndarray:
    def counts(axis: int, length: int, out: int) -> np.ndarray:
        before, after = spec.pads[axis], spec.pads[axis + 2]
        starts = np.arange(out)[:, None] * spec.strides[axis] - before
        taps = starts + np.arange(spec.kernel[axis])[None, :] * spec.dilations[axis]
        low, high = (-before, length + after) if spec.count_include_pad else (0, length)
        return ((taps >= low) & (taps < high)).sum(1)

    table = np.outer(counts(0, spec.height, spec.out_height), counts(1, spec.width, spec.out_width))
    return (1.0 / np.maximum(table, 1)).astype(np.float32).reshape(-1)


def global_pool(kind: str, planes: int, elements: int, target: Target, parallel: bool = False) -> Kernel:
    """y[planes] = max, average or sum over each of `planes` runs of `elements`; parameters x, y."""
    if kind not in ("max", "average", "sum") or min(planes, elements) < 1:
        raise SecateurError("E_SPEC", f"no global pooling '{kind}' of {planes} x {elements}")
    symbol = symbol_for("globalpool", (kind, planes, elements), target, parallel)
    e = Emitter(symbol, parallel, target.dtype, target.max_keeps_nan)
    x, y = e.param("x", planes * elements), e.param("y", planes)
    combine = largest if kind == "max" else _add
    slots = min(planes, 4 * GRAINS)
    share = -(-planes // slots)
    slots = -(-planes // share)
    with (
        e.loop(slots, parallel=True) as slot,
        e.loop(share if planes % share == 0 else e.let(tirx.min(share, planes - slot * share))) as j,
    ):
        item = e.let(slot * share + j)
        total = _reduce(e, x, e.let(item * elements), elements, kind, combine, target.lanes())
        y.store(item, widened(total * const(1.0 / elements) if kind == "average" else total, e.dtype))
    return Kernel(symbol, e.finish(), e.roles, 0, dict, planes * elements)


def _add(a: Expr, b: Expr) -> Expr:
    return a + b


def _reduce(e: Emitter, x: Array, at: Index, elements: int, kind: str, combine: object, lanes: int) -> Expr:
    """Combine a run: four vectors at a time, then single vectors, then halves, then what is left; in float32."""
    neutral = -np.inf if kind == "max" else 0.0
    assert callable(combine)
    parts = 4 if elements >= 8 * lanes else 1

    def load(index: Index, width: int) -> Expr:
        return widened(x.load(index, width))

    sums = e.registers(parts, lanes, "float32")
    for part in range(parts):
        sums[part] = const(neutral, lanes)
    whole = elements // (lanes * parts)
    if whole:
        with e.loop(whole) as i:
            for part in range(parts):
                sums[part] = combine(sums[part], load(at + i * (lanes * parts) + part * lanes, lanes))
    done = whole * lanes * parts
    while elements - done >= lanes:
        sums[0] = combine(sums[0], load(at + done, lanes))
        done += lanes
    for part in range(1, parts):
        sums[0] = combine(sums[0], sums[part])
    value, width = sums[0], lanes
    while width > 1:
        half = width // 2
        value = e.name(combine(shuffle([value], range(half)), shuffle([value], range(half, width))))
        width = half
    for offset, width in cover(elements - done, 1):
        value = e.name(combine(value, load(at + done + offset, width)))
    return value
