"""Poolings over windows and over whole feature maps."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from compiler.exporters.torch.differentiable.operators.convolution import spatial_rank
from compiler.exporters.torch.differentiable.operators.windows import Windows, ones, pad_axes, windows
from compiler.exporters.torch.differentiable.rules import Operation, torch_rule
from compiler.ir import Node

_MAX = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_AVERAGE = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}
_CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


def _up_to_three(node: Node) -> str | None:
    rank = spatial_rank(node)
    return None if rank is None or rank in _MAX else f"over {rank} spatial axes"


@torch_rule("MaxPool", check=_up_to_three)
def max_pool(op: Operation, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
    """The maxima, and where they lie if that is wanted."""
    kernel = op.attribute("kernel_shape")
    slide = windows(op, x.shape[2:], kernel, bool(op.attribute("ceil_mode", 0)))
    data = x if x.is_floating_point() else x.double()
    padded = slide.pad(data, -math.inf)
    pool = _MAX[len(kernel)]
    if not op.wants(1):
        return pool(padded, slide.kernel, slide.strides, 0, slide.dilations).to(x.dtype)
    y, index = pool(padded, slide.kernel, slide.strides, 0, slide.dilations, return_indices=True)
    return y.to(x.dtype), _positions(op, x, padded, slide, index)


def _positions(op: Operation, x: Tensor, padded: Tensor, slide: Windows, index: Tensor) -> Tensor:
    """Where the maxima lie in the whole of `x`, flattened; the last axis runs fastest, or the first spatial one."""
    sizes = list(x.shape[2:])
    axes = list(range(len(sizes)))
    places = {}
    for axis in reversed(axes):
        places[axis] = index % padded.shape[2 + axis] - slide.begins[axis]
        index = index // padded.shape[2 + axis]
    flat = torch.zeros_like(index)
    for axis in reversed(axes) if op.attribute("storage_order", 0) else axes:
        flat = flat * sizes[axis] + places[axis]
    maps = torch.arange(x.shape[0] * x.shape[1], device=x.device).reshape(*x.shape[:2], *[1] * len(sizes))
    return flat + maps * math.prod(sizes)


@torch_rule("MaxUnpool", host=(2,))
def _max_unpool(op: Operation, x: Tensor, index: Tensor, shape: list[int] | None = None) -> Tensor:
    """The positions count in the whole of the result, whose shape may be given."""
    rank = x.dim() - 2
    strides, pads = op.attribute("strides") or [1] * rank, op.attribute("pads") or [0] * (2 * rank)
    kernel = op.attribute("kernel_shape")
    sizes = [(n - 1) * strides[a] - pads[a] - pads[rank + a] + kernel[a] for a, n in enumerate(x.shape[2:])]
    full = shape or [*x.shape[:2], *sizes]
    return x.new_zeros(math.prod(full)).scatter(0, index.reshape(-1), x.reshape(-1)).reshape(full)


def _window_sum(x: Tensor, slide: Windows) -> Tensor:
    """The sum over each window of `x`, which is padded already."""
    rank = len(slide.kernel)
    if all(d == 1 for d in slide.dilations):
        return _AVERAGE[rank](x, slide.kernel, slide.strides) * math.prod(slide.kernel)
    maps = x.reshape(-1, 1, *x.shape[2:])
    y = _CONV[rank](maps, x.new_ones(1, 1, *slide.kernel), None, slide.strides, 0, slide.dilations)
    return y.reshape(*x.shape[:2], *y.shape[2:])


@torch_rule("AveragePool", check=_up_to_three)
def average_pool(op: Operation, x: Tensor) -> Tensor:
    """Padding counts where the node says so; what ceil_mode adds behind it never does."""
    kernel = op.attribute("kernel_shape")
    slide = windows(op, x.shape[2:], kernel, bool(op.attribute("ceil_mode", 0)))
    total = _window_sum(slide.pad(x), slide)
    if not slide.padded:
        return total / math.prod(kernel)
    counted, begins, ends = ones(x), slide.begins, slide.ends
    if op.attribute("count_include_pad", 0):
        declared = windows(op, x.shape[2:], kernel)
        counted = pad_axes(counted, declared.begins, declared.ends, 1.0)
        ends = tuple(e - d for e, d in zip(slide.ends, declared.ends, strict=True))
        begins = (0,) * len(kernel)
    return total / _window_sum(pad_axes(counted, begins, ends), slide)


def _root(total: Tensor, p: float) -> Tensor:
    """The p-th root, whose gradient at zero is zero."""
    positive = total > 0
    return torch.where(positive, torch.where(positive, total, torch.ones_like(total)).pow(1 / p), total)


@torch_rule("LpPool", check=_up_to_three)
def _lp_pool(op: Operation, x: Tensor) -> Tensor:
    p = op.attribute("p", 2)
    slide = windows(op, x.shape[2:], op.attribute("kernel_shape"), bool(op.attribute("ceil_mode", 0)))
    return _root(_window_sum(slide.pad(x.abs().pow(p)), slide), p)


@torch_rule("GlobalAveragePool")
def _global_average_pool(op: Operation, x: Tensor) -> Tensor:
    return x.mean(tuple(range(2, x.dim())), keepdim=True)


@torch_rule("GlobalMaxPool")
def _global_max_pool(op: Operation, x: Tensor) -> Tensor:
    return torch.amax(x, tuple(range(2, x.dim())), keepdim=True)


@torch_rule("GlobalLpPool")
def _global_lp_pool(op: Operation, x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, op.attribute("p", 2), tuple(range(2, x.dim())), keepdim=True)


@torch_rule("RoiAlign")
def _roi_align(op: Operation, x: Tensor, rois: Tensor, batch: Tensor) -> Tensor:
    """Bilinear samples of regions (He et al. 2017, https://arxiv.org/abs/1703.06870), averaged or maximised."""
    height, width = op.attribute("output_height", 1), op.attribute("output_width", 1)
    shift = 0.5 if op.attribute("coordinate_transformation_mode", "half_pixel") == "half_pixel" else 0.0
    scale, ratio = op.attribute("spatial_scale", 1.0), op.attribute("sampling_ratio", 0)
    maximum = op.attribute("mode", "avg") == "max"
    pooled = [x.new_zeros((0, x.shape[1], height, width))]
    for roi, image in zip(rois * scale - shift, batch.tolist(), strict=True):
        left, top, right, bottom = roi.unbind()
        wide, high = right - left, bottom - top
        if not shift:
            wide, high = wide.clamp(min=1), high.clamp(min=1)
        rows = ratio or max(1, math.ceil(float(high) / height))
        columns = ratio or max(1, math.ceil(float(wide) / width))
        ys = top + (torch.arange(height * rows, device=x.device) + 0.5) * high / (height * rows)
        xs = left + (torch.arange(width * columns, device=x.device) + 0.5) * wide / (width * columns)
        corners = _corners(x[image], ys, xs)
        if maximum:  # of the weighed corners, as ONNX Runtime has it
            parts = torch.stack(corners).reshape(4, -1, height, rows, width, columns)
            pooled.append(parts.amax((0, 3, 5))[None])
        else:
            pooled.append(sum(corners).reshape(-1, height, rows, width, columns).mean((2, 4))[None])  # type: ignore[union-attr]
    return torch.cat(pooled)


def _corners(image: Tensor, ys: Tensor, xs: Tensor) -> list[Tensor]:
    """The four weighed neighbours of each position of a grid; positions more than one element outside give zero."""
    inside = []
    sides = []
    for places, size in ((ys, image.shape[1]), (xs, image.shape[2])):
        inside.append((places >= -1) & (places <= size))
        places = places.clamp(0, size - 1)
        low = places.detach().floor().long().clamp(max=size - 1)
        part = places - low
        sides.append(((low, 1 - part), ((low + 1).clamp(max=size - 1), part)))
    known = (inside[0][:, None] & inside[1]).to(image.dtype)
    return [
        image[:, row][:, :, column] * (above[:, None] * beside * known)
        for row, above in sides[0]
        for column, beside in sides[1]
    ]


@torch_rule("MaxRoiPool")
def _max_roi_pool(op: Operation, x: Tensor, rois: Tensor) -> Tensor:
    """The maximum of each cell of each region, whose corners are rounded; empty cells give zero."""
    height, width = op.attribute("pooled_shape")
    scale = op.attribute("spatial_scale", 1.0)
    pooled = [x.new_zeros((0, x.shape[1], height, width))]
    for image, *corners in rois.tolist():
        left, top, right, bottom = (math.floor(n * scale + 0.5) for n in corners)
        high, wide = max(bottom - top + 1, 1), max(right - left + 1, 1)
        cells = []
        for row in range(height):
            for column in range(width):
                y0, y1 = top + math.floor(row * high / height), top + math.ceil((row + 1) * high / height)
                x0, x1 = left + math.floor(column * wide / width), left + math.ceil((column + 1) * wide / width)
                cell = x[int(image), :, max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)]
                cells.append(cell.amax((1, 2)) if cell.numel() else x.new_zeros(x.shape[1]))
        pooled.append(torch.stack(cells, -1).reshape(1, x.shape[1], height, width))
    return torch.cat(pooled)
