"""Resize: every interpolation of the ONNX standard is, per axis, a small table of indices and weights.

The tables are made at compile time (the coordinate formulas are the standard's) and applied one axis at a
time; upsampling by repetition is a strided copy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from tvm import tirx

from backends.lowering.context import Lowering
from backends.lowering.elementwise import PARALLEL_WORK, contiguous, emit_program, nest, step, strided_map
from backends.lowering.expressions import cast, const
from backends.lowering.layout import shape_of
from backends.lowering.program import Buffer
from backends.lowering.rules import lowering, no_lowering
from backends.schedules.emit import Array, Emitter, Expr
from compiler.ir.graph import Node


@dataclass(frozen=True)
class Axis:
    """Interpolation along one axis: y[o] = sum over t of weights[o, t] * x[indices[o, t]]; outside marks the o
    whose coordinate lies beyond the input (tf_crop_and_resize)."""

    indices: np.ndarray
    weights: np.ndarray
    outside: np.ndarray


@dataclass(frozen=True)
class TapSpec:
    """One axis of extent n -> m inside (outer, inner), with `taps` per result; nearest has no weights."""

    outer: int
    n: int
    m: int
    inner: int
    taps: int
    weighted: bool
    dtype: str


@lowering("Resize", "Upsample")
def _resize(node: Node, lower: Lowering) -> None:
    source = lower.buffer(node.input(0))
    output = node.outputs[0]
    shape = shape_of(output)
    axes = resize_axes(node, source.shape, shape)
    buffer = source
    changed = [a for a, axis in enumerate(axes) if axis is not None]
    if not changed:
        lower.alias(output, node.input(0))
        return
    outside = [axes[a].outside for a in changed]  # type: ignore[union-attr]
    masked = any(o.any() for o in outside)
    for position, a in enumerate(changed):
        axis = axes[a]
        assert axis is not None
        last = position == len(changed) - 1 and not masked
        target_shape = (*buffer.shape[:a], shape[a], *buffer.shape[a + 1 :])
        target = lower.result(output) if last else lower.temporary(target_shape, buffer.dtype, output.name)
        _apply(lower, buffer, target, a, axis)
        buffer = target
    if masked:
        _fill_outside(node, lower, buffer, changed, outside)


def _fill_outside(node: Node, lower: Lowering, buffer: Buffer, changed: list[int], outside: list[np.ndarray]) -> None:
    mask = np.zeros((1,) * len(buffer.shape), bool)
    for a, flags in zip(changed, outside, strict=True):
        mask = mask | flags.reshape([-1 if i == a else 1 for i in range(len(buffer.shape))])
    value = ("constant", float(node.attribute("extrapolation_value", 0.0)), str(buffer.dtype))
    program = (step("Where", 1, value, 0, dtype=str(buffer.dtype)),)
    emit_program(lower, [buffer, lower.constant(mask, "outside")], lower.result(node.outputs[0]), program)


def _apply(lower: Lowering, source: Buffer, target: Buffer, a: int, axis: Axis) -> None:
    n, m = source.shape[a], target.shape[a]
    outer, inner = math.prod(source.shape[:a]), math.prod(source.shape[a + 1 :])
    nearest = axis.indices.shape[1] == 1
    if nearest and m % n == 0 and np.array_equal(axis.indices[:, 0], np.arange(m) // (m // n)):
        extents = (outer, n, m // n, inner)
        strided_map(lower, extents, [(source, (n * inner, inner, 0, 1), 0)], (target, contiguous(extents), 0))
        return
    taps = axis.indices.shape[1]
    spec = TapSpec(outer, n, m, inner, taps, not nearest, str(source.dtype))
    reads = [source, lower.constant(axis.indices.astype(np.int32), "indices")]
    if not nearest:
        reads.append(lower.constant(axis.weights.astype(np.float32), "weights"))
    lower.call(_taps, spec, reads, [target])


def _taps(e: Emitter, spec: TapSpec, x: Array, index: Array, *rest: Array) -> None:
    y = rest[-1]
    weight = rest[0] if spec.weighted else None

    def at(row: Expr, o: Expr, t: int, k: Expr) -> Expr:
        place = index.load(o * spec.taps + t)
        value = x.load((row * spec.n + place) * spec.inner + k)
        if weight is None:
            return value
        return cast(value, "float32") * weight.load(o * spec.taps + t)

    def body(indices: list[Expr]) -> None:
        row, o = indices
        with e.loop(spec.inner) as k:
            total = at(row, o, 0, k)
            for t in range(1, spec.taps):
                total = total + at(row, o, t, k)
            if weight is not None and not spec.dtype.startswith("float"):
                kind = spec.dtype
                low, high = np.iinfo(kind).min, np.iinfo(kind).max
                total = tirx.max(tirx.min(total, const(high, "float32")), const(low, "float32"))
            y.store((row * spec.m + o) * spec.inner + k, cast(total, spec.dtype))

    nest(e, (spec.outer, spec.m), body, parallel=spec.outer * spec.m * spec.inner >= PARALLEL_WORK)


def resize_axes(node: Node, source: tuple[int, ...], output: tuple[int, ...]) -> list[Axis | None]:
    """The tables of every axis; None for an axis that stays as it is."""
    rank = len(source)
    chosen = [a % rank for a in node.attribute("axes") or range(rank)]
    scales = _constant(node, 1 if node.op == "Upsample" else 2)
    sizes = _constant(node, 3)
    roi = _constant(node, 1) if node.op == "Resize" else None
    factors = [o / s for o, s in zip(output, source, strict=True)]
    if sizes is not None and node.attribute("keep_aspect_ratio_policy", "stretch") != "stretch":
        wanted = [sizes[i] / source[a] for i, a in enumerate(chosen)]
        smaller = node.attribute("keep_aspect_ratio_policy") == "not_larger"
        factor = min(wanted) if smaller else max(wanted)
        factors = [factor if a in chosen else f for a, f in enumerate(factors)]
    elif scales is not None:
        for i, a in enumerate(chosen):
            factors[a] = float(scales[i])
    axes: list[Axis | None] = []
    for a in range(rank):
        span = (0.0, 1.0)
        if roi is not None and a in chosen:
            span = (float(roi[chosen.index(a)]), float(roi[chosen.index(a) + len(chosen)]))
        crop = node.attribute("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize"
        same = source[a] == output[a] and factors[a] == 1.0 and not (crop and span != (0.0, 1.0))
        axes.append(None if same else _axis(node, source[a], output[a], factors[a], span))
    return axes


def _constant(node: Node, index: int) -> np.ndarray | None:
    value = node.input(index)
    if value is None:
        return None
    if not value.is_constant:
        raise no_lowering(node, f"input {index} ({value.name!r}) of {node.op} must be constant")
    array = value.numpy().reshape(-1)
    return array if array.size else None


def _axis(node: Node, n: int, m: int, scale: float, span: tuple[float, float]) -> Axis:
    mode = node.attribute("mode", "nearest")
    transform = node.attribute("coordinate_transformation_mode", "half_pixel")
    if node.op == "Upsample":
        transform = "asymmetric"
    places = _coordinates(transform, np.arange(m, dtype=np.float64), n, m, scale, span)
    outside = np.zeros(m, bool)
    if transform == "tf_crop_and_resize":
        outside = (places < 0) | (places > n - 1)
    if mode == "nearest":
        rounding = "floor" if node.op == "Upsample" else node.attribute("nearest_mode", "round_prefer_floor")
        indices = np.clip(_nearest(rounding, places), 0, n - 1).astype(np.int64)
        return Axis(indices[:, None], np.ones((m, 1)), outside)
    antialias = bool(node.attribute("antialias", 0)) and scale < 1
    cubic = mode == "cubic"
    slope = node.attribute("cubic_coeff_a", -0.75)
    indices, weights = _filter(places, cubic, slope, scale if antialias else 1.0)
    if node.attribute("exclude_outside", 0):
        weights = np.where((indices < 0) | (indices >= n), 0.0, weights)
    weights = weights / weights.sum(axis=1, keepdims=True)
    return Axis(np.clip(indices, 0, n - 1), weights, outside)


def _coordinates(transform: str, x: np.ndarray, n: int, m: int, scale: float, span: tuple[float, float]) -> np.ndarray:
    """Where in the input each result lies (the formulas of the ONNX standard)."""
    if transform == "align_corners":
        return x * (n - 1) / (m - 1) if m > 1 else np.zeros_like(x)
    if transform == "asymmetric":
        return x / scale
    if transform == "pytorch_half_pixel":
        return (x + 0.5) / scale - 0.5 if m > 1 else np.zeros_like(x)
    if transform == "tf_half_pixel_for_nn":
        return (x + 0.5) / scale
    if transform == "tf_crop_and_resize":
        start, end = span
        if m > 1:
            return start * (n - 1) + x * (end - start) * (n - 1) / (m - 1)
        return np.full_like(x, 0.5 * (start + end) * (n - 1))
    if transform == "half_pixel_symmetric":
        adjustment = m / (scale * n)
        center = n / 2
        return center * (1 - adjustment) + (x + 0.5) / scale - 0.5
    return (x + 0.5) / scale - 0.5


def _nearest(rounding: str, x: np.ndarray) -> np.ndarray:
    if rounding == "round_prefer_floor":
        return np.ceil(x - 0.5)
    if rounding == "round_prefer_ceil":
        return np.floor(x + 0.5)
    return np.ceil(x) if rounding == "ceil" else np.floor(x)


def _filter(places: np.ndarray, cubic: bool, a: float, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Indices and weights of a linear or cubic filter, widened by 1/scale where it must not alias."""
    support = (2 if cubic else 1) / scale
    if scale == 1.0:
        first = np.floor(places).astype(np.int64) - (1 if cubic else 0)
        taps = 4 if cubic else 2
    else:
        first = np.floor(places - support).astype(np.int64) + 1
        taps = 2 * math.ceil(support)
    indices = first[:, None] + np.arange(taps)
    distance = np.abs((places[:, None] - indices) * scale)
    if not cubic:
        return indices, np.maximum(0.0, 1 - distance)
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return indices, np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))
