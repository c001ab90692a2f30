"""Resize: every axis by itself, as an index or as a matrix of interpolation weights.

Positions are computed in float32, as ONNX Runtime does, so that both round alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from compiler.exporters.torch.differentiable.rules import Operation, torch_rule


@dataclass(frozen=True)
class _Axis:
    """One axis: its extents before and after, the scale between them, and the region of interest."""

    axis: int
    size: int
    length: int
    scale: float
    roi: tuple[float, float]


@torch_rule("Resize", host=(1, 2, 3))
def _resize(
    op: Operation,
    x: Tensor,
    roi: list[float] | None = None,
    scales: list[float] | None = None,
    sizes: list[int] | None = None,
) -> Tensor:
    crop = op.attribute("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize"
    for axis in _axes(op, x, roi, scales, sizes):
        if axis.size == axis.length and axis.scale == 1 and not crop:
            continue
        x = _along(op, x, axis)
    return x


def _axes(
    op: Operation, x: Tensor, roi: list[float] | None, scales: list[float] | None, sizes: list[int] | None
) -> list[_Axis]:
    axes = [a % x.dim() for a in op.attribute("axes") or range(x.dim())]
    extents = [x.shape[a] for a in axes]
    if sizes:
        factors = [n / m for n, m in zip(sizes, extents, strict=True)]
        policy = op.attribute("keep_aspect_ratio_policy", "stretch")
        if policy != "stretch":
            factors = [(min if policy == "not_larger" else max)(factors)] * len(factors)
            sizes = [math.floor(f * n + 0.5) for f, n in zip(factors, extents, strict=True)]
    else:
        factors = list(scales or [])
        sizes = [math.floor(f * n) for f, n in zip(factors, extents, strict=True)]
    region = roi or [0.0] * len(axes) + [1.0] * len(axes)
    return [_Axis(a, extents[i], sizes[i], factors[i], (region[i], region[len(axes) + i])) for i, a in enumerate(axes)]


def _along(op: Operation, x: Tensor, axis: _Axis) -> Tensor:
    places = _places(op.attribute("coordinate_transformation_mode", "half_pixel"), axis)
    mode = op.attribute("mode", "nearest")
    if mode == "nearest":
        index = _nearest(places, op.attribute("nearest_mode", "round_prefer_floor")).clamp(0, axis.size - 1)
        y = x.index_select(axis.axis, index.long().to(x.device))
    else:
        weights = _weights(op, mode, places, axis).to(x.device, x.dtype if x.is_floating_point() else torch.float32)
        y = torch.tensordot(x.to(weights.dtype), weights, ([axis.axis], [1])).movedim(-1, axis.axis)
        y = y if x.is_floating_point() else y.round().to(x.dtype)
    if op.attribute("coordinate_transformation_mode") != "tf_crop_and_resize":
        return y
    outside = (places < 0) | (places > axis.size - 1)
    outside = outside.reshape(-1, *[1] * (x.dim() - axis.axis - 1)).to(x.device)
    return torch.where(outside, torch.full_like(y, op.attribute("extrapolation_value", 0.0)), y)


def _places(mode: str, axis: _Axis) -> Tensor:
    """Where each element of the result lies in the source, `float32 [length]`."""
    i = torch.arange(axis.length, dtype=torch.float32)
    scale = torch.tensor(axis.scale, dtype=torch.float32)
    if mode == "asymmetric":
        return i / scale
    if mode == "align_corners":
        return i * (axis.size - 1) / (axis.length - 1) if axis.length > 1 else i * 0
    if mode == "pytorch_half_pixel" and axis.length == 1:
        return i * 0
    if mode == "tf_crop_and_resize":
        low, high = axis.roi
        if axis.length == 1:
            return i * 0 + 0.5 * (low + high) * (axis.size - 1)
        return low * (axis.size - 1) + i * (high - low) * (axis.size - 1) / (axis.length - 1)
    places = (i + 0.5) / scale - 0.5
    if mode == "half_pixel_symmetric":
        places = places + axis.size / 2 * (1 - axis.length / (axis.scale * axis.size))
    return places


def _nearest(places: Tensor, mode: str) -> Tensor:
    if mode == "floor":
        return places.floor()
    if mode == "ceil":
        return places.ceil()
    return (places - 0.5).ceil() if mode == "round_prefer_floor" else (places + 0.5).floor()


def _weights(op: Operation, mode: str, places: Tensor, axis: _Axis) -> Tensor:
    """What each source element counts for each element of the result, `[length, size]`."""
    stretch = min(axis.scale, 1.0) if op.attribute("antialias", 0) else 1.0
    reach = math.ceil((1 if mode == "linear" else 2) / stretch) + 1
    taps = places.floor().long().unsqueeze(1) + torch.arange(-reach, reach + 1)
    distance = ((taps - places.unsqueeze(1)) * stretch).abs()
    shares = _triangle(distance) if mode == "linear" else _cubic(distance, op.attribute("cubic_coeff_a", -0.75))
    if op.attribute("exclude_outside", 0):
        shares = torch.where((taps >= 0) & (taps < axis.size), shares, torch.zeros_like(shares))
    shares = shares / shares.sum(1, keepdim=True)
    matrix = torch.zeros(axis.length, axis.size)
    return matrix.scatter_add(1, taps.clamp(0, axis.size - 1), shares)


def _triangle(distance: Tensor) -> Tensor:
    return (1 - distance).clamp(min=0)


def _cubic(distance: Tensor, a: float) -> Tensor:
    """Keys' cubic convolution kernel (1981, https://doi.org/10.1109/TASSP.1981.1163711)."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return torch.where(distance <= 1, near, torch.where(distance < 2, far, torch.zeros_like(far)))
